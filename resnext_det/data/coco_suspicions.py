"""What no single entry of a COCO file shows, but the whole set does."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from .coco_table import BoxTable
from .findings import DROPPED, NOTICED, STOPS, Findings

# Boxes written as corners: nearly all must be such, and many must be impossible as
# [x, y, width, height]. Of true ones hardly any image's are all in its first quarter.
CORNERS_SHARE = 0.99
OVERRUN_SHARE = 0.10
OVERRUN = 0.05  # of the image's side: more than rounding
NORMALISED_SHARE = 0.99
FEW_BOXES = 20  # with fewer it may be chance, which is only told


def check_whole(
    findings: Findings,
    table: BoxTable,
    *,
    most_detections: int,
    drops_empty_images: bool,
    unmended: Iterable[Any] = (),
) -> None:
    """Record what is odd about the set.

    Args:
        most_detections: TEST.DETECTIONS_PER_IMAGE.
        drops_empty_images: DATALOADER.FILTER_EMPTY_ANNOTATIONS.
        unmended: annotations as they stand in the file, where some are at fault and missing in
            ``table``: what they name is not said to be without objects.
    """
    _check_corners(findings, table)
    _check_normalised(findings, table)
    _check_crowds(findings, table)
    _check_duplicates(findings, table)
    _check_specks(findings, table)
    _check_crammed(findings, table, most_detections)
    unmended = [entry for entry in unmended if isinstance(entry, dict)]
    images = {e["image_id"] for e in unmended if type(e.get("image_id")) is int}
    _check_empty_images(findings, table, drops_empty_images, images)
    _check_classes(findings, table, complete=not unmended)


def _check_corners(findings: Findings, table: BoxTable) -> None:
    if not len(table):
        return
    first, second = table.boxes[:, :2], table.boxes[:, 2:]
    sizes = table.sizes[table.image]
    as_corners = ((second > first) & (second <= sizes + 1)).all(axis=1)
    overrun = (first + second > sizes * (1 + OVERRUN)).any(axis=1)
    both = as_corners & overrun
    share = both.sum() / max(overrun.sum(), 1)
    if overrun.mean() < OVERRUN_SHARE or share < CORNERS_SHARE:
        return
    sure = as_corners.mean() >= CORNERS_SHARE and len(table) >= FEW_BOXES

    def say(number: int) -> tuple[str, str]:
        x0, y0, x1, y1 = table.boxes[number]
        width, height = sizes[number]
        return table.name(number), (
            f"has the bbox [{x0:g}, {y0:g}, {x1:g}, {y1:g}] in an image of {width:g} x {height:g}: "
            f"{100 * overrun.mean():.0f} % of the {len(table)} boxes reach over the border as [x, "
            f"y, width, height], and {100 * as_corners.mean():.0f} % fit as corners [x0, y0, x1, "
            "y1]"
        )

    findings.add(
        "boxes written as corners",
        STOPS if sure else NOTICED,
        np.flatnonzero(both),
        say,
        "write them as [x, y, width, height]: the third number less the first, the fourth less "
        "the second",
    )


def _check_normalised(findings: Findings, table: BoxTable) -> None:
    """Boxes in parts of the image, as YOLO's, where pixels are meant: none reaches beyond 1."""
    inside = (table.boxes[:, :2] + table.boxes[:, 2:] <= 1).all(axis=1)
    if not len(table) or inside.mean() < NORMALISED_SHARE:
        return

    def say(number: int) -> tuple[str, str]:
        width, height = table.sizes[table.image[number]]
        return table.name(number), (
            f"has the bbox {table.boxes[number].tolist()} in an image of {width:g} x {height:g}, "
            f"and {100 * inside.mean():.0f} % of the {len(table)} boxes lie within one pixel"
        )

    findings.add(
        "boxes in parts of the image",
        STOPS if len(table) >= FEW_BOXES else NOTICED,
        np.flatnonzero(inside),
        say,
        "write pixels: x and width times the image's width, y and height times its height (YOLO's "
        "x and y are the box's centre)",
    )


def _check_crowds(findings: Findings, table: BoxTable) -> None:
    if len(table) and table.is_crowd.all():
        findings.add(
            "every annotation is a crowd",
            STOPS,
            np.arange(len(table)),
            lambda n: (table.name(n), f"has iscrowd 1, as all {len(table)} of the file"),
            'write "iscrowd": 0 for single objects (some exporters write 1 with every RLE mask)',
        )


def _check_duplicates(findings: Findings, table: BoxTable) -> None:
    keys = (*table.boxes.T, table.category, table.image)
    order = np.lexsort(keys)
    same = np.ones(max(len(table) - 1, 0), dtype=bool)
    for key in keys:
        same &= key[order][1:] == key[order][:-1]
    again = np.sort(order[1:][same])
    findings.add(
        "same box and category twice in an image",
        NOTICED,
        again,
        lambda n: (table.name(n), f"has the bbox {table.boxes[n].tolist()}, as another of its own"),
        "remove one: a detector finds the object once and misses the other",
    )


def _check_specks(findings: Findings, table: BoxTable) -> None:
    findings.add(
        "box of one pixel or less in width or height",
        NOTICED,
        np.flatnonzero((table.boxes[:, 2:] <= 1).any(axis=1)),
        lambda n: (table.name(n), f"has the bbox {table.boxes[n].tolist()}"),
        "look at it: mostly a slip of the mouse; it counts as an object",
    )


def _check_crammed(findings: Findings, table: BoxTable, most: int) -> None:
    objects = table.objects_per_image()
    crammed = np.flatnonzero(objects > most)
    findings.add(
        "more objects in an image than are scored",
        NOTICED,
        crammed[np.argsort(-objects[crammed], kind="stable")],
        lambda n: (f"image {table.image_ids[n]}", f"has {objects[n]} objects"),
        f"set TEST.DETECTIONS_PER_IMAGE, now {most}, to {int(objects.max(initial=0))} or more, or "
        "those above it count as missed",
    )


def _check_empty_images(findings: Findings, table: BoxTable, drops: bool, named: set[int]) -> None:
    crowds = np.bincount(table.image[table.is_crowd], minlength=len(table.sizes))
    # Not np.isin: an id that is named may be larger than any integer of numpy's.
    of_others = np.array([id_ in named for id_ in table.image_ids.tolist()], dtype=bool)
    key = "DATALOADER.FILTER_EMPTY_ANNOTATIONS"
    findings.add(
        "image without objects",
        DROPPED if drops else NOTICED,
        np.flatnonzero((table.objects_per_image() == 0) & ~of_others),
        lambda n: (
            f"image {table.image_ids[n]}",
            f"has {crowds[n]} crowds and no object" if crowds[n] else "has no annotation",
        ),
        f"training leaves it out; {key} False keeps it as background"
        if drops
        else f"training keeps it as background; {key} True leaves it out",
    )


def _check_classes(findings: Findings, table: BoxTable, complete: bool) -> None:
    objects = np.bincount(table.category[~table.is_crowd], minlength=len(table.class_names))
    unused = np.flatnonzero(objects == 0) if len(table) and complete else []
    findings.add(
        "category without objects",
        NOTICED,
        unused,
        lambda n: (f'category "{table.class_names[n]}"', "is declared and has no object here"),
        "remove it, unless another of the sets has objects of it",
    )
    seen: dict[str, int] = {}
    again = [n for n, name in enumerate(table.class_names) if seen.setdefault(name, n) != n]
    findings.add(
        "category name used twice",
        NOTICED,
        again,
        lambda n: (f'category "{table.class_names[n]}"', "has another id with the same name"),
        "join the two, or tell them apart by their names",
    )
