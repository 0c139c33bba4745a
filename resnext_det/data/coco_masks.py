"""The segmentations of a COCO file checked, for networks that are trained on masks.

A polygon is a list of x, y pairs in pixels; run lengths are COCO's, a string ("counts" compressed)
or a list. Detectron2's mapper takes polygons with INPUT.MASK_FORMAT "polygon", both with "bitmask".

pycocotools, which draws them, walks along each side of a polygon pixel by pixel, and takes run
lengths as they come: those that would make it wait without end, or fail, are refused.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .coco_files import Part
from .findings import STOPS, Findings

FORMATS = ("polygon", "bitmask")
FEWEST = 6  # numbers of a polygon: three corners
MOST_PIXELS = 2**32 - 1  # of an image with run lengths: pycocotools counts in uint32
_NUMBERS = (int, float)


def _is_polygon(value: Any) -> bool:
    return (
        type(value) is list
        and len(value) >= FEWEST
        and len(value) % 2 == 0
        and all(type(v) in _NUMBERS and -math.inf < v < math.inf for v in value)
    )


def _is_near(polygon: list, size: tuple[int, int]) -> bool:
    """Whether no corner is farther from an image of (height, width) than its own size."""
    corners = zip(polygon[::2], polygon[1::2], strict=True)
    height, width = size
    return all(-width <= x <= 2 * width and -height <= y <= 2 * height for x, y in corners)


def _unpacked(counts: str) -> np.ndarray | None:
    """Compressed run lengths as int64 (N,); None for a text that is none.

    The code is that of pycocotools' ``rleFrString``: groups of five bits, the lowest first, each in
    a letter from "0" on with 32 for "more follow"; the sixth of a last group's bits is the sign.
    From the fourth on a number is the difference from the last but one.
    """
    if not counts.isascii():
        return None
    letters = np.frombuffer(counts.encode(), np.uint8).astype(np.int64) - ord("0")
    ends = np.flatnonzero((letters & 32) == 0)
    if letters.min() < 0 or letters.max() > 63 or not len(ends) or ends[-1] + 1 != len(letters):
        return None
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:  # 35 bits: more than any image has pixels
        return None
    place = np.arange(len(letters)) - np.repeat(starts, lengths)
    values = np.add.reduceat((letters & 31) << 5 * place, starts)
    values -= ((letters[ends] & 16) > 0) * (1 << 5 * lengths)
    values[1::2] = values[1::2].cumsum()
    values[2::2] = values[2::2].cumsum()
    return values


def _run_lengths_fault(value: dict, size: tuple[int, int]) -> str:
    """What is wrong with run lengths of an image of (height, width); "" for nothing."""
    counts, pixels = value.get("counts"), size[0] * size[1]
    if value.get("size") != list(size):
        return f"has run lengths for the size {value.get('size')!r:.40}, its image has {list(size)}"
    if isinstance(counts, str) and counts:
        runs = _unpacked(counts)
        fits = runs is not None and bool((runs >= 0).all()) and int(runs.sum()) == pixels
    else:
        whole = isinstance(counts, list) and all(type(c) is int and c >= 0 for c in counts)
        fits = whole and sum(counts) == pixels
    if not fits or pixels > MOST_PIXELS:
        return "has run lengths that do not add up to its image"
    return ""


LACKING = "has no segmentation, and MODEL.MASK_ON is True"
NOT_FOR_POLYGONS = "has run lengths, and INPUT.MASK_FORMAT is polygon"
OF_BOXES = "or set MODEL.MASK_ON False to train on boxes alone"
KINDS = {  # a fault -> its kind and what to do about it; _OTHERS for all that are not here
    LACKING: ("object without segmentation", f"draw its outline, {OF_BOXES}"),
    NOT_FOR_POLYGONS: ("run lengths", f"set INPUT.MASK_FORMAT bitmask, {OF_BOXES}"),
}
_OTHERS = ("segmentation that is no mask", f"mend it, {OF_BOXES}")


def fault_of(entry: dict, size: tuple[int, int], mask_format: str) -> str:
    """What is wrong with an annotation's segmentation, as the rest of a sentence; "" for nothing.

    Args:
        size: (height, width) of its image.
        mask_format: INPUT.MASK_FORMAT; crowds, which no network is trained on, may have either.
    """
    value = entry.get("segmentation")
    if value is None or value == []:
        return LACKING
    if isinstance(value, dict):
        if mask_format == "polygon" and not entry["iscrowd"]:
            return NOT_FOR_POLYGONS
        return _run_lengths_fault(value, size)
    if not (isinstance(value, list) and all(map(_is_polygon, value))):
        return f"has a segmentation that is no list of polygons ({value!r:.40})"
    if not all(_is_near(polygon, size) for polygon in value):
        return "has a polygon that reaches farther from its image than the image is large"
    return _elsewhere(value, entry["bbox"])


def _elsewhere(polygons: list[list], box: list) -> str:
    """What is wrong with polygons that do not meet their object's box; "" for nothing."""
    corners = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in polygons])
    low, high = corners.min(axis=0), corners.max(axis=0)
    x, y, width, height = box
    apart = (low > (x + width, y + height)) | (high < (x, y))
    if not apart.any():
        return ""
    where = f"from ({low[0]:g}, {low[1]:g}) to ({high[0]:g}, {high[1]:g})"
    return f"has polygons {where}, all outside its bbox {box}"


def check_masks(
    findings: Findings,
    annotations: Part,
    images: Part,
    name: Callable[[int], str],
    mask_format: str,
) -> None:
    """Record and take out annotations whose segmentation no mask can be made of.

    Args:
        name: how a message calls annotation number n.
        mask_format: INPUT.MASK_FORMAT, one of `FORMATS`.
    """
    sizes = {image["id"]: (image["height"], image["width"]) for image in images.entries}
    faults = [
        fault_of(entry, sizes[entry["image_id"]], mask_format) for entry in annotations.entries
    ]
    kinds = [KINDS.get(fault, _OTHERS) if fault else None for fault in faults]
    for kind, mend in (*KINDS.values(), _OTHERS):
        found = [number for number, its in enumerate(kinds) if its == (kind, mend)]
        findings.add(kind, STOPS, found, lambda n: (name(n), faults[n]), mend)
    annotations.take_out(np.array([bool(fault) for fault in faults], dtype=bool))
