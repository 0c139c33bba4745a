"""The boxes of a COCO file checked as arrays; `iscrowd` and `area` filled in."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .coco_files import Part
from .findings import DROPPED, MENDED, STOPS, Findings

LARGEST = 1e9  # of a coordinate; float32, which boxes end in, still holds its area
OVER_BORDER = 0.5  # pixels outside that are rounding and not worth a word
_NUMBERS = (int, float)


def is_box(value: Any) -> bool:
    """Whether ``value`` is a list of four finite numbers."""
    return (
        type(value) is list
        and len(value) == 4
        and all(type(v) in _NUMBERS and -LARGEST < v < LARGEST for v in value)
    )


def boxes_of(entries: list[dict]) -> np.ndarray:
    """float64 (N, 4), XYWH in pixels of the original image, as in the file."""
    return np.array([entry["bbox"] for entry in entries], dtype=np.float64).reshape(-1, 4)


def column(entries: list[dict], field: str) -> np.ndarray:
    """An integer field of every entry, int64 (N,)."""
    return np.array([entry[field] for entry in entries], dtype=np.int64)


def places(values: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """For each of ``values`` (N,) its index in ``ids``, where it is once; int64 (N,)."""
    order = np.argsort(ids)
    return order[np.searchsorted(ids[order], values)]


def sizes_of(images: list[dict]) -> np.ndarray:
    """(width, height) of every image, float64 (M, 2)."""
    sizes = [(image["width"], image["height"]) for image in images]
    return np.array(sizes, dtype=np.float64).reshape(-1, 2)


def check_boxes(
    findings: Findings,
    annotations: Part,
    images: Part,
    name: Callable[[int], str],
    drop_empty: bool,
) -> None:
    """Record and take out boxes that are none, have no area, or none inside their image.

    Args:
        name: how a message calls annotation number n.
        drop_empty: DATASETS.DROP_EMPTY_BOXES.
    """
    values = annotations.values("bbox")
    wrong = np.array([not is_box(value) for value in values], dtype=bool)
    findings.add(
        "box that is not four finite numbers",
        STOPS,
        np.flatnonzero(wrong),
        lambda n: (name(n), f"has the bbox {values[n]!r:.60}"),
        "write it as four numbers [x, y, width, height] in pixels",
    )
    annotations.take_out(wrong)
    boxes = boxes_of(annotations.entries)
    # In float32, which boxes end in: there 1e-320 is 0.
    empty = (boxes[:, 2:].astype(np.float32) <= 0).any(axis=1)
    _without_area(
        findings, annotations, name, empty, drop_empty, "box without area", "has a box without area"
    )
    _check_places(findings, annotations, images, name, drop_empty)


def _without_area(findings, annotations, name, at_fault, drop_empty, kind, found) -> None:
    entries = annotations.entries
    mend = "remove it, correct its box, or set DATASETS.DROP_EMPTY_BOXES True"
    findings.add(
        kind,
        DROPPED if drop_empty else STOPS,
        np.flatnonzero(at_fault),
        lambda n: (name(n), f"{found}, {entries[n]['bbox']}"),
        "left out (DATASETS.DROP_EMPTY_BOXES)" if drop_empty else mend,
    )
    annotations.take_out(at_fault)


def _check_places(findings, annotations, images, name, drop_empty) -> None:
    boxes = boxes_of(annotations.entries)
    image = places(column(annotations.entries, "image_id"), column(images.entries, "id"))
    sizes = sizes_of(images.entries)[image]
    ends = boxes[:, :2] + boxes[:, 2:]
    outside = ((ends <= 0) | (boxes[:, :2] >= sizes)).any(axis=1)
    over = np.maximum(-boxes[:, :2], ends - sizes).max(axis=1, initial=-math.inf)
    entries = annotations.entries

    def say(number: int) -> tuple[str, str]:
        width, height = sizes[number]
        found = f"reaches {over[number]:.4g} px over the border of its {width:g} x {height:g} image"
        return name(number), f"{found}, {entries[number]['bbox']}"

    findings.add(
        "box partly outside its image",
        MENDED,
        np.flatnonzero((over > OVER_BORDER) & ~outside),
        say,
        "nothing to do: training clips it to the image; the scorer takes it as it is",
    )
    _without_area(
        findings,
        annotations,
        lambda n: f"{name(n)}, an image of {sizes[n][0]:g} x {sizes[n][1]:g},",
        outside,
        drop_empty,
        "box wholly outside its image",
        "has a box wholly outside",
    )


def fill_in(findings: Findings, annotations: Part, name: Callable[[int], str]) -> None:
    """`iscrowd` 0 and `area` width x height where they are missing: the scorer needs both."""
    crowds = annotations.values("iscrowd")
    findings.add(
        "missing iscrowd",
        MENDED,
        np.flatnonzero(np.array([crowd is None for crowd in crowds], dtype=bool)),
        lambda n: (name(n), "has no iscrowd"),
        "nothing to do: taken as 0",
    )
    wrong = np.array([crowd is not None and crowd not in (0, 1) for crowd in crowds], dtype=bool)
    findings.add(
        "iscrowd that is not 0 or 1",
        STOPS,
        np.flatnonzero(wrong),
        lambda n: (name(n), f"has the iscrowd {crowds[n]!r:.40}"),
        "write 0 or 1",
    )
    annotations.take_out(wrong)
    for entry in annotations.entries:
        entry["iscrowd"] = int(entry.get("iscrowd") or 0)
    _fill_in_areas(findings, annotations, name)


def _fill_in_areas(findings: Findings, annotations: Part, name: Callable[[int], str]) -> None:
    areas = annotations.values("area")
    lacking = np.array(
        [type(area) not in _NUMBERS or not 0 <= area < LARGEST**2 for area in areas], dtype=bool
    )
    numbers = np.flatnonzero(lacking)
    findings.add(
        "missing area",
        MENDED,
        numbers,
        lambda n: (
            name(n),
            "has no area" if areas[n] is None else f"has the area {areas[n]!r:.40}",
        ),
        "nothing to do: taken as width x height of the box",
    )
    for number in numbers.tolist():
        entry = annotations.entries[number]
        entry["area"] = entry["bbox"][2] * entry["bbox"][3]
