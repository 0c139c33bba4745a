"""The segmentations of a COCO file checked, for networks that are trained on masks.

A polygon is a list of x, y pairs in pixels; run lengths are COCO's, a string ("counts" compressed)
or a list. Detectron2's mapper takes polygons with INPUT.MASK_FORMAT "polygon", both with "bitmask".
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .coco_boxes import LARGEST
from .coco_files import Part
from .findings import STOPS, Findings

FORMATS = ("polygon", "bitmask")
FEWEST = 6  # numbers of a polygon: three corners
_NUMBERS = (int, float)


def _is_polygon(value: Any) -> bool:
    return (
        type(value) is list
        and len(value) >= FEWEST
        and len(value) % 2 == 0
        and all(type(v) in _NUMBERS and math.isfinite(v) and abs(v) < LARGEST for v in value)
    )


def _run_lengths_fault(value: dict, size: tuple[int, int]) -> str:
    """What is wrong with run lengths of an image of (height, width); "" for nothing."""
    counts = value.get("counts")
    if value.get("size") != list(size):
        return f"has run lengths for the size {value.get('size')!r:.40}, its image has {list(size)}"
    if isinstance(counts, str) and counts:
        return ""
    whole = isinstance(counts, list) and all(type(c) is int and c >= 0 for c in counts)
    if not whole or sum(counts) != size[0] * size[1]:
        return "has run lengths that do not add up to its image"
    return ""


def fault_of(entry: dict, size: tuple[int, int], mask_format: str) -> str:
    """What is wrong with an annotation's segmentation, as the rest of a sentence; "" for nothing.

    Args:
        size: (height, width) of its image.
        mask_format: INPUT.MASK_FORMAT; crowds, which no network is trained on, may have either.
    """
    value = entry.get("segmentation")
    if value is None or value == []:
        return "has no segmentation, and MODEL.MASK_ON is True"
    if isinstance(value, dict):
        if mask_format == "polygon" and not entry["iscrowd"]:
            return "has run lengths, and INPUT.MASK_FORMAT is polygon"
        return _run_lengths_fault(value, size)
    if not (isinstance(value, list) and all(map(_is_polygon, value))):
        return f"has a segmentation that is no list of polygons ({value!r:.40})"
    return ""


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
    wrong = np.array([bool(fault) for fault in faults], dtype=bool)
    findings.add(
        "segmentation that is no mask",
        STOPS,
        np.flatnonzero(wrong),
        lambda n: (name(n), faults[n]),
        "mend the segmentation, set MODEL.MASK_ON False, or, for run lengths, "
        "INPUT.MASK_FORMAT bitmask",
    )
    annotations.take_out(wrong)
