"""Stages of reading images, timed one by one: runs, their pixels beside ours, whole loaders."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from _pairs import alternate, in_turn, milliseconds, ratio
from PIL import Image
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from resnext_det.engine.seeding import own_stream, seed_all

WORKERS, COMPARED = (0, 1), 8
SLOWEST = {"min": "max", "max": "min"}  # of rates, by that of times

Stage = Callable[[Any], Any]


def each(stage: Stage, items: list) -> Callable[[], None]:
    """A run of one stage over all items, with the same random draws every time."""

    def run() -> None:
        seed_all(0)
        for item in items:
            stage(item)

    return run


def pair(stages: dict[str, tuple[Stage, list]], repeats: int) -> dict:
    """Several programs' ways of doing one thing, in turn: {name: (stage, its inputs)}."""
    times = alternate({name: each(*both) for name, both in stages.items()}, repeats)
    items = len(next(iter(stages.values()))[1])
    return {"ms": milliseconds(times, items), "ratios": ratios(times)}


def ratios(times: dict) -> dict[str, float]:
    return {f"{who} / ours": ratio(times, who, "ours") for who in times if who != "ours"}


def with_pixels(stages: dict[str, tuple[Stage, list]], repeats: int) -> dict:
    """As `pair`, with how far the others' pixels are from ours on the first images."""
    found = {
        name: [as_array(stage(item)) for item in items[:COMPARED]]
        for name, (stage, items) in stages.items()
    }
    off = {who: distance(found["ours"], found[who]) for who in stages if who != "ours"}
    return {**pair(stages, repeats), "pixels": off}


def as_array(image: Any) -> np.ndarray:
    """(H, W, 3) of a Pillow image, an array, or a tensor (3, H, W)."""
    return image.permute(1, 2, 0).numpy() if torch.is_tensor(image) else np.asarray(image)


def distance(ours: list[np.ndarray], theirs: list[np.ndarray]) -> dict:
    if any(a.shape != b.shape for a, b in zip(ours, theirs, strict=True)):
        return {"equal": False, "why": "sizes differ, as by an EXIF tag"}
    off = np.concatenate(
        [np.abs(a.astype(int) - b).ravel() for a, b in zip(ours, theirs, strict=True)]
    )
    return {"equal": not off.any(), "mean": round(float(off.mean()), 4), "largest": int(off.max())}


def sizes(paths: list[str], images: list) -> dict:
    """Of files and pictures (arrays or Pillow's), in the mean."""
    pixels = np.mean([np.prod(np.shape(image)[:2]) for image in images])
    total = np.mean([Path(path).stat().st_size for path in paths])
    return {
        "images": len(paths),
        "pixels": round(float(pixels)),
        "bytes": round(float(total)),
        "bytes a pixel": round(float(total / pixels), 3),
    }


def seeds(_image: Any) -> None:
    """What makes a sample's draws repeatable (engine.sampler.SeededDataset)."""
    with own_stream(0, 0):
        pass


def decoders(paths: list[str], ours: Stage) -> dict[str, tuple[Stage, list]]:
    """Files to RGB; Pillow's is what torchvision's ImageFolder calls."""
    return {
        "ours": (ours, paths),
        "Pillow": (by_pillow, paths),
        "OpenCV": (by_opencv, paths),
        "torchvision.io": (by_torchvision, paths),
    }


def by_pillow(path: str) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def by_opencv(path: str) -> np.ndarray:
    pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def by_torchvision(path: str) -> torch.Tensor:
    return decode_image(path, ImageReadMode.RGB)  # decode_jpeg, where it is one


def resizers(
    images: list[Image.Image], to: Callable[[int, int], tuple[int, int]], ours: Stage, cubic: bool
) -> dict[str, tuple[Stage, list]]:
    """``to`` gives (height, width) of the result for those of an image."""
    arrays = [np.array(image) for image in images]
    tensors = [torch.from_numpy(array).permute(2, 0, 1).contiguous() for array in arrays]
    mode = v2.InterpolationMode.BICUBIC if cubic else v2.InterpolationMode.BILINEAR
    by = cv2.INTER_CUBIC if cubic else cv2.INTER_LINEAR
    return {
        "ours": (ours, images if cubic else arrays),
        "torchvision tensors": (
            lambda x: v2.functional.resize(x, list(to(*x.shape[1:])), mode, antialias=True),
            tensors,
        ),
        "OpenCV": (lambda x: cv2.resize(x, to(*x.shape[:2])[::-1], interpolation=by), arrays),
    }


def steps(stages: dict[str, Stage], items: list, repeats: int) -> dict[str, dict]:
    """Milliseconds of stages that follow each other."""
    runs = {}
    for name, stage in stages.items():
        runs[name] = each(stage, items)
        seed_all(0)
        items = [stage(item) for item in items]
    return milliseconds(alternate(runs, repeats), len(items))


def seconds_an_image(make: Callable[[], Iterable], batches: int) -> float:
    """From the first batch on, so that the start of a worker is not counted."""
    batch_of = iter(make())
    next(batch_of)
    start, images = time.perf_counter(), 0
    for _ in range(batches):
        batch = next(batch_of)
        images += images_in(batch)
    return (time.perf_counter() - start) / images


def images_in(batch: Any) -> int:
    """Ours is {"label": ..}, torchvision's [images, labels], that of detection a list of dicts."""
    labels = batch["label"] if isinstance(batch, dict) else batch[-1]
    return len(labels) if torch.is_tensor(labels) else len(batch)


def rates(makers: dict[str, Callable[[int], Iterable]], batches: int, repeats: int) -> dict:
    """Images a second of whole loaders, by the number of data workers."""
    found = {}
    for workers in WORKERS:
        runs = {
            name: lambda make=make, n=workers: seconds_an_image(lambda: make(n), batches)
            for name, make in makers.items()
        }
        times = in_turn(runs, repeats)
        found[f"{workers} workers"] = {
            "images a second": {
                name: {key: round(1 / of[SLOWEST.get(key, key)], 1) for key in of}
                for name, of in times.items()
            },
            "ratios of times": ratios(times),
        }
    return found
