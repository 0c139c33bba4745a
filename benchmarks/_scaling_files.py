"""The part of benchmarks/scaling.py without a network: data sets, scores, stored proposals."""

import argparse
import contextlib
import functools
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from _curves import Curve
from _drawn import coco_content, draw_proposals
from _proposal_files import NAMES, WRITERS, look_through, opener
from detectron2.data.datasets.coco import load_coco_json

from resnext_det.data import coco
from resnext_det.detection.scorer import score
from resnext_det.detection.scorer_arrays import Detections, Truth, truth_of
from resnext_det.detection.scorer_backends import DEFINITION, FAST, fault_of_fast

PICTURE = (480, 640)  # height, width
OBJECTS, DETECTIONS, BOXES = 7, 100, 1000  # an image
IMAGES = {"annotations": 1000, "detections": 100, "boxes": 200}  # while the others grow
SIZES = {
    "annotations": (1000, 10_000, 100_000),
    "images": (200, 1600, 12_800),
    "scored images": (25, 100, 400),
    "detections": (25, 75, 225),
    "stored images": (100, 400, 1600),
    "boxes": (250, 1000, 4000),
}
QUICK = {what: (8, 32) for what in SIZES}


def file_curves(args: argparse.Namespace, folder: Path) -> Iterator[Curve]:
    sizes = QUICK if args.quick else SIZES
    images = folder / "images"
    images.mkdir()
    for number in range(1, max(IMAGES["annotations"], *sizes["images"]) + 1):
        (images / f"{number}.jpg").touch()  # nothing opens them
    yield Curve(
        f"a data set of {IMAGES['annotations']} images read and checked",
        by="annotations",
        runs=loading({n: (IMAGES["annotations"], n) for n in sizes["annotations"]}, folder),
        why="each annotation is parsed, checked and copied once, and ids are looked up in tables: "
        "linear; Python's garbage collector, which looks at all that was made again and again, and "
        "caches that it no longer fits add some tenths",
    )
    yield Curve(
        f"a data set with {OBJECTS} annotations an image read and checked",
        by="images",
        runs=loading({n: (n, OBJECTS * n) for n in sizes["images"]}, folder),
        why="as for annotations; the image folder is listed once, not asked for every file: linear",
    )
    yield Curve(
        f"scores of {OBJECTS} objects and {DETECTIONS} detections an image",
        by="images",
        runs=scoring({n: (n, DETECTIONS) for n in sizes["scored images"]}),
        why="objects and detections meet within an image only, so matching is linear, above the "
        "fixed cost of the curves of every class; sorting by score adds a logarithm",
    )
    yield Curve(
        f"scores of {IMAGES['detections']} images",
        by="detections an image",
        runs=scoring({n: (IMAGES["detections"], n) for n in sizes["detections"]}),
        why="each detection is compared with the objects of its image and class, whose number does "
        "not grow; an image and class has a cost of its own, so below linear until they are full",
    )
    yield Curve(
        f"proposals opened and all read, {BOXES} an image",
        by="images",
        runs=reading({n: (n, BOXES) for n in sizes["stored images"]}, folder),
        why="an image is one slice of the file, found by its id in a table: linear; Detectron2's "
        "whole file is read first",
    )
    yield Curve(
        f"proposals of {IMAGES['boxes']} images opened and all read",
        by="boxes an image",
        runs=reading({n: (IMAGES["boxes"], n) for n in sizes["boxes"]}, folder),
        why="an image costs a fixed time for its two slices and a time for each byte: below linear "
        "until the bytes prevail",
    )


Runs = dict[str, dict[int, Callable[[], object]]]


def loading(cases: dict[int, tuple[int, int]], folder: Path) -> Runs:
    """``cases``: (images, annotations) by size."""
    runs: Runs = {"ours": {}, "Detectron2": {}}
    for size, case in cases.items():
        path, name = folder / "{}_{}.json".format(*case), "benchmark_{}_{}".format(*case)
        path.write_text(json.dumps(coco_content(*case, PICTURE)))
        coco.register_coco(name, path, folder / "images")
        runs["ours"][size] = functools.partial(coco.load_coco, name)
        runs["Detectron2"][size] = functools.partial(by_detectron2, path, folder / "images")
    return runs


def by_detectron2(path: Path, images: Path) -> list[dict]:
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        return load_coco_json(str(path), str(images))


def scoring(cases: dict[int, tuple[int, int]]) -> Runs:
    """``cases``: (images, detections an image) by size."""
    runs: Runs = {}
    for scorer in (DEFINITION,) if fault_of_fast() else (FAST, DEFINITION):
        runs[scorer] = {}
        for size, (images, detections) in cases.items():
            content = coco_content(images, OBJECTS * images, PICTURE)
            truth = truth_of(content, "drawn")
            found = draw_detections(truth, images * detections)
            runs[scorer][size] = functools.partial(score, truth, found, scorer=scorer)
    return runs


def draw_detections(truth: Truth, count: int) -> Detections:
    """Near objects, half of them in a class of their own choice."""
    random = np.random.default_rng(5)
    near = random.integers(0, len(truth.boxes), count)
    side = truth.boxes[near, 2:].mean(axis=1, keepdims=True)
    any_class = random.integers(0, len(truth.class_ids), count)
    return Detections(
        images=random.permutation(np.arange(count) % len(truth.image_ids)).astype(np.int32),
        classes=np.where(random.random(count) < 0.5, truth.classes[near], any_class).astype("i4"),
        boxes=np.maximum(truth.boxes[near] + random.normal(size=(count, 4)) * 0.15 * side, 0),
        scores=random.random(count),
    )


def reading(cases: dict[int, tuple[int, int]], folder: Path) -> Runs:
    """``cases``: (images, boxes an image) by size."""
    runs: Runs = {name: {} for name in NAMES}
    for size, (images, boxes) in cases.items():
        for name, file in NAMES.items():
            path, ids = folder / f"{images}_{boxes}_{file}", list(range(images))
            WRITERS[name](path, [(number, *draw_proposals(number, boxes)) for number in ids])
            runs[name][size] = functools.partial(open_and_read, opener(name, path, ids), ids)
    return runs


def open_and_read(start: Callable[[], Callable[[int], tuple]], ids: list[int]) -> None:
    look_through(start(), ids)
