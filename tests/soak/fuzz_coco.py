"""Hostile COCO files: data sets with their pictures, and results of detectors."""

import json
import os
import shutil
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from fuzz_inputs import Reader, as_json, changed_tree, fault_of_message, hostile_value, require
from PIL import Image
from pycocotools import mask as run_lengths

from resnext_det.data import coco, coco_sets
from resnext_det.data.coco_checks import Rules
from resnext_det.data.coco_images import read_headers, set_pixel_limit
from resnext_det.data.findings import raise_first
from resnext_det.detection.predict_inputs import entries_of_coco
from resnext_det.detection.scorer_arrays import Detections, truth_of
from resnext_det.detection.scorer_results import read_results
from resnext_det.errors import InputError

PICTURES = ("a.png", "b.jpg", "sub/c.png")
NAMES = (*PICTURES, "./a.png", "sub/../a.png", "../images/a.png", "../x.json", "../outside.png")
NAMES += ("sub/../../outside.png", "link.png", "loop", "fifo", "sub", "/dev/zero", "/dev/full")
NAMES += ("/etc/passwd", "../../etc/passwd", "none.png", "A.PNG", "sub\\c.png", "text.png", "..")
NAMES += (".", "/", "//", "a.png/", "a.png/x", "~/a.png", "empty.png", "file:///etc/passwd")
LENIENT = Rules(True, True, True, "bitmask")
POLYGONS = Rules(masks="polygon")
RUNS = ("d0n0V2", "d019W1Y1", "PPYo0", "", "o" * 5000, "0", "00", "?" * 20, "P" * 400, "\x00")
RUNS += ("é", " ", "O" * 12 + "0")
CATEGORIES = [{"id": 3, "name": "cell"}, {"id": 7, "name": "dot"}]


def _content() -> dict[str, Any]:
    images = [
        {"id": 10 * n, "file_name": name, "height": 10, "width": 12}
        for n, name in enumerate(PICTURES, 1)
    ]
    annotations = [
        {
            "id": number,
            "image_id": 10 * (1 + number % 3),
            "category_id": 3 if number % 2 else 7,
            "bbox": [1, 1.5, 4 + number, 3],
            "area": 12.0,
            "iscrowd": 0,
            "segmentation": [[1, 1, 8, 1, 8, 6.5]],
        }
        for number in range(1, 5)
    ]
    annotations[3]["segmentation"] = {"size": [10, 12], "counts": [20, 30, 70]}
    annotations[3]["iscrowd"] = 1
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}


def _hostile_mask(random: Random) -> Any:
    what = random.random()
    if what < 0.3:
        counts = random.choice(RUNS)
    elif what < 0.5:
        counts = "".join(chr(random.randint(48, 111)) for _ in range(random.choice((1, 4, 9, 60))))
    elif what < 0.7:
        counts = random.choice(([120], [0, 120], [2**32, 0], [2**33], [-1, 121], [1.5, 118.5]))
    else:
        polygon = [1, 1, 8, 1, 8, 6.5]
        polygon[random.randrange(6)] = random.choice((1e8, -9e8, 5e5, 1e-320, 30, -12, 10**8))
        return [polygon] * random.choice((1, 1, 3))
    return {"size": random.choice(([10, 12], [10, 12], [12, 10], [10, 12, 1])), "counts": counts}


def _make(random: Random, _: None, folder: Path) -> Path:
    content, what = _content(), random.random()
    if what < 0.3:
        random.choice(content["images"])["file_name"] = random.choice(NAMES)
    elif what < 0.5:
        random.choice(content["annotations"])["segmentation"] = _hostile_mask(random)
    elif what < 0.7:
        entry = random.choice(content[random.choice(list(content))])
        entry[random.choice(list(entry))] = hostile_value(random)
    if what > 0.5 or random.random() < 0.2:
        content = changed_tree(random, content)
    path, data = folder / "set.json", as_json(random, content)
    if random.random() < 0.05:  # cut short at any place
        data = json.dumps(_content()).encode()
        data = data[: random.randrange(len(data))]
    path.write_bytes(data)
    return path


def put_pictures(folder: Path) -> Path:
    """An image folder with good pictures, and much else that a name may lead to."""
    images = folder / "images"
    if images.is_dir():
        return images
    (images / "sub").mkdir(parents=True)
    for name in PICTURES:
        Image.new("RGB", (12, 10), "red").save(images / name)
    shutil.copy(images / "a.png", folder / "outside.png")
    (images / "link.png").symlink_to(folder / "outside.png")
    (images / "loop").symlink_to(images / "loop")
    (images / "text.png").write_text("no picture")
    (images / "empty.png").touch()
    os.mkfifo(images / "fifo")
    return images


def _check_masks(content: dict[str, Any]) -> None:
    """As Detectron2's mapper and the scorer make masks of them."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    for entry in content["annotations"]:
        height, width = sizes[entry["image_id"]]
        if height * width <= 10**7:
            runs = entry["segmentation"]
            if isinstance(runs, list) or isinstance(runs["counts"], list):
                runs = run_lengths.frPyObjects(runs, height, width)
            mask = run_lengths.decode(runs)
            require(mask.shape[:2] == (height, width), f"a mask of {mask.shape}")


def _check_content(content: dict[str, Any]) -> None:
    ids = {image["id"] for image in content["images"]}
    classes = {entry["id"] for entry in content["categories"]}
    require(len(ids) == len(content["images"]) > 0, "image ids")
    require(len(classes) == len(content["categories"]) > 0, "category ids")
    for entry in content["annotations"]:
        require(entry["image_id"] in ids and entry["category_id"] in classes, "a reference")
        box = np.array(entry["bbox"], np.float32)
        require(bool(np.isfinite(box).all() and (box[2:] > 0).all()), f"the box {entry['bbox']}")
        require(entry["iscrowd"] in (0, 1) and 0 <= entry["area"] < 1e18, "crowd or area")
        require(entry["id"] != 0, "an annotation id 0")
    truth = truth_of(content, "x.json")
    require(len(truth.boxes) == len(content["annotations"]), "the truth's length")


def _check_set(path: Path, images: Path, rules: Rules) -> None:
    checked = coco_sets.check_set(
        path,
        images,
        rules,
        read=partial(read_headers, workers=1),
        most_detections=100,
        drops_empty_images=True,
    )
    for finding in checked.findings:
        require(finding.as_line().isprintable(), f"a finding {finding.as_line()!a:.300}")
    raise_first(checked.findings, "")
    if checked.content["images"]:
        _check_content(checked.content)
        if rules.masks:
            _check_masks(checked.content)


def _load(path: Path, images: Path, rules: Rules) -> None:
    coco.register_coco("fuzzed", path, images, rules)
    records = coco.load_coco("fuzzed")
    root = os.path.realpath(images)
    for record in records:
        name = record["file_name"]
        inside = os.path.normpath(os.path.join(root, os.path.relpath(name, images)))
        require(inside.startswith(root) or os.path.isabs(_name_of(path, record)), f"{name} leaves")


def _name_of(path: Path, record: dict) -> str:
    images = json.loads(path.read_bytes())["images"]
    return next(i["file_name"] for i in images if i["id"] == record["image_id"])


def _read(path: Path) -> None:
    """As training reads a set, by three choices of rules, and as prediction does.

    A result is what any of them takes; the first refusal counts where all refuse.
    """
    set_pixel_limit(4_000_000)
    images, refused = put_pictures(path.parent), []
    calls = [partial(_check_set, path, images, rules) for rules in (Rules(), LENIENT, POLYGONS)]
    calls += [partial(_load, path, images, rules) for rules in (Rules(), LENIENT)]
    calls.append(partial(entries_of_coco, path, images))
    for call in calls:
        try:
            call()
        except InputError as error:
            require(not fault_of_message(str(error)), f"the message {str(error)!a:.300}")
            refused.append(error)
    if len(refused) == len(calls):
        raise refused[0]


COCO = Reader("coco", lambda _: None, _make, _read, ("set.json",))


# ---- results ----


def _make_results(random: Random, _: None, folder: Path) -> Path:
    results = [
        {"image_id": 10 * n, "category_id": 3, "bbox": [1, 2, 3, 4.5], "score": 0.5}
        for n in (1, 2, 3)
    ]
    path = folder / "results.json"
    path.write_bytes(as_json(random, changed_tree(random, results)))
    return path


def _read_results(path: Path) -> Detections:
    content = _content()
    found = read_results(path, truth_of(content, "set.json"))
    boxes = np.isfinite(found.boxes).all() and (found.boxes[:, 2:] >= 0).all()
    require(bool(boxes and np.isfinite(found.scores).all()), "a box or a score")
    return found


RESULTS = Reader("results", lambda _: None, _make_results, _read_results, ("results.json",))
