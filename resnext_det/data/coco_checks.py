"""The entries of a COCO file checked, list by list; ids are in coco_ids.py, boxes in coco_boxes.py.

Entries at fault are recorded and taken out of the lists, so that everything else is checked too
and what is left can be counted and drawn. A reader that must not go on calls
`findings.raise_first`.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode

from . import coco_boxes, coco_ids, coco_masks
from .coco_files import PARTS, Part
from .findings import DROPPED, MENDED, STOPS, Finding, Findings

LARGEST_SIDE = 10**9

Sizes = list[tuple[int, int] | None]


@dataclass(frozen=True)
class Rules:
    """What the user has chosen for faulty entries (config keys DATASETS.*).

    Args:
        drop_empty_boxes: leave out boxes without area inside their image, instead of refusing.
        renumber_annotations: where annotation ids are missing, repeated or no whole numbers,
            count them 1..N instead of refusing. Results never hold annotation ids.
        drop_bad_images: leave out images that are missing or cannot be read.
        masks: INPUT.MASK_FORMAT where MODEL.MASK_ON is set: every object needs a segmentation;
            "": segmentations are neither looked at nor kept.
    """

    drop_empty_boxes: bool = False
    renumber_annotations: bool = False
    drop_bad_images: bool = False
    masks: str = ""

    @property
    def overrides(self) -> list[str]:
        """The ``KEY VALUE`` words that choose these rules, for a command line."""
        chosen = [key for key, field in _SWITCHES.items() if getattr(self, field)]
        words = [word for key in chosen for word in (key, "True")]
        return words + (["INPUT.MASK_FORMAT", self.masks] if self.masks else [])


_SWITCHES = {
    "DATASETS.DROP_EMPTY_BOXES": "drop_empty_boxes",
    "DATASETS.RENUMBER_ANNOTATIONS": "renumber_annotations",
    "DATASETS.DROP_BAD_IMAGES": "drop_bad_images",
    "MODEL.MASK_ON": "masks",
}
STRICT = Rules()


def rules_of(cfg: CfgNode) -> Rules:
    """The rules that the config chooses."""
    return Rules(
        drop_empty_boxes=cfg.DATASETS.DROP_EMPTY_BOXES,
        renumber_annotations=cfg.DATASETS.RENUMBER_ANNOTATIONS,
        drop_bad_images=cfg.DATASETS.DROP_BAD_IMAGES,
        masks=cfg.INPUT.MASK_FORMAT if cfg.MODEL.MASK_ON else "",
    )


def check_entries(
    json_file: str | Path,
    content: dict[str, Any],
    rules: Rules,
    read_sizes: Callable[[list[str]], Sizes] | None = None,
) -> list[Finding]:
    """Check every entry of ``content``, which is changed: mended, and without entries at fault.

    Args:
        content: what `coco_files.parse` gives.
        read_sizes: file names to the (width, height) of the pictures, for entries that state
            none; None for a picture that cannot be read. Without it such entries are at fault.
    """
    findings = Findings(json_file)
    images, annotations, categories = (Part(name, content[name]) for name in PARTS)
    known = {
        "image_id": coco_ids.stated_ids(images),
        "category_id": coco_ids.stated_ids(categories),
    }
    _check_images(findings, images, rules, read_sizes)
    _check_categories(findings, categories)
    renumber = rules.renumber_annotations
    coco_ids.check_fields(findings, annotations, without_id=renumber)
    renumbered = coco_ids.check_annotation_ids(findings, annotations, renumber)
    name = _namer(annotations, renumbered)
    for field, ids in known.items():
        coco_ids.check_reference(findings, annotations, field, ids, name)
    coco_ids.leave_orphans(annotations, images, categories)
    coco_boxes.check_boxes(findings, annotations, images, name, rules.drop_empty_boxes)
    coco_boxes.fill_in(findings, annotations, name)
    if rules.masks:
        coco_masks.check_masks(findings, annotations, images, name, rules.masks)
    coco_ids.free_id_zero(findings, annotations, renumbered)
    for part in (images, annotations, categories):
        content[part.name] = part.entries
    return findings.all


def _namer(annotations: Part, renumbered: bool) -> Callable[[int], str]:
    """How an annotation is called: by its id in the file, or by its place if it has none."""

    def name(number: int) -> str:
        entry = annotations.entries[number]
        own = annotations.where(number) if renumbered else f"annotation {entry['id']}"
        return f"{own} (image {entry['image_id']!r:.40})"

    return name


# ---- images and categories ----


def _check_categories(findings: Findings, categories: Part) -> None:
    if not len(categories):
        findings.add(
            "no category", STOPS, [0], lambda _: ("categories", "is an empty list"), "declare them"
        )
    coco_ids.check_fields(findings, categories)
    coco_ids.check_ids(findings, categories, lambda entry: f'"{entry["name"]}"')


def _check_images(
    findings: Findings,
    images: Part,
    rules: Rules,
    read_sizes: Callable[[list[str]], Sizes] | None,
) -> None:
    if not len(images):
        findings.add("no image", STOPS, [0], lambda _: ("images", "is an empty list"), "list them")
    coco_ids.check_fields(findings, images)
    coco_ids.check_ids(findings, images, lambda entry: f'"{entry["file_name"]}"')
    names = images.values("file_name")
    wrong = np.array([not _is_name(name) for name in names], dtype=bool)
    findings.add(
        "file_name that names no file",
        STOPS,
        np.flatnonzero(wrong),
        lambda n: (images.where(n), f"has the file_name {names[n]!r:.40}"),
        "write the name of the picture, relative to the image folder",
    )
    images.take_out(wrong)
    _check_sizes(findings, images, rules, read_sizes)


def _is_name(value: Any) -> bool:
    if not isinstance(value, str) or value == "" or any(c in value for c in "\0\n\r"):
        return False
    try:
        os.fsencode(value)
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can write
        return False
    return True


def _side(value: Any) -> int | None:
    """Height or width as stated, pixels; None for what cannot be one."""
    whole = type(value) is int or (type(value) is float and value.is_integer())
    return int(value) if whole and 0 < value <= LARGEST_SIDE else None


def _check_sizes(
    findings: Findings,
    images: Part,
    rules: Rules,
    read_sizes: Callable[[list[str]], Sizes] | None,
) -> None:
    lacking = np.zeros(len(images), dtype=bool)
    for number, entry in enumerate(images.entries):
        height, width = _side(entry.get("height")), _side(entry.get("width"))
        if height is None or width is None:
            lacking[number] = True
        else:
            entry["height"], entry["width"] = height, width

    def say(number: int) -> tuple[str, str]:
        entry = images.entries[number]
        for field in ("height", "width"):
            if field not in entry:
                return images.where(number), f"has no {field}"
            if _side(entry[field]) is None:
                return images.where(number), f"has the {field} {entry[field]!r:.40}"
        raise AssertionError(number)

    numbers = np.flatnonzero(lacking)
    if read_sizes is None:
        findings.add("missing height or width", STOPS, numbers, say, "add it")
        images.take_out(lacking)
    elif len(numbers):
        _read_missing_sizes(findings, images, rules, numbers, read_sizes, say)


def _read_missing_sizes(
    findings: Findings, images: Part, rules: Rules, numbers: np.ndarray, read_sizes, say
) -> None:
    sizes = read_sizes([images.entries[number]["file_name"] for number in numbers.tolist()])
    found = np.array([size is not None for size in sizes], dtype=bool)
    mended, unread = numbers[found], numbers[~found]
    findings.add(
        "missing height or width",
        MENDED,
        mended,
        say,
        "nothing to do: read from the pictures, turned as their EXIF tags say",
    )
    findings.add(
        "missing height or width of a picture that cannot be read",
        DROPPED if rules.drop_bad_images else STOPS,
        unread,
        lambda n: (
            images.where(n),
            f'{say(n)[1]}, and "{images.entries[n]["file_name"]}" cannot be read for it',
        ),
        "left out with its annotations (DATASETS.DROP_BAD_IMAGES)"
        if rules.drop_bad_images
        else "add it, or check the image folder",
    )
    for number, size in zip(mended.tolist(), [s for s in sizes if s is not None], strict=True):
        images.entries[number]["width"], images.entries[number]["height"] = size
    at_fault = np.zeros(len(images), dtype=bool)
    at_fault[unread] = True
    images.take_out(at_fault)
