"""A sheet of a data set's pictures with their boxes and names, for a look before training."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.structures import BoxMode

from ..data import coco
from ..data.coco_sets import CheckedSet
from ..data.images import read_rgb
from ..errors import InputError
from . import anchor_report
from .drawing import Mark, class_color, draw_marks, truth_mark
from .sheets import write_sheet

SPREAD = 12  # pictures evenly spread over the set
COLUMNS = 4
WIDTH, HEIGHT = 480, 400  # pixels of a field, at most
CONTEXT = 3.0  # least sides of a crop, in the shorter side of its box
LEAST_CROP = 48  # pixels of the original picture
OTHERS = "white"  # boxes in a close-up that it is not about


@dataclass(frozen=True)
class _View:
    """What is drawn in one field of the sheet.

    Args:
        record: Detectron2's dict of the image.
        caption: above the picture.
        crop: (x0, y0, x1, y1) in pixels of the picture; None: all of it.
        entry: the annotation that a close-up is about, as in ``record``; None: all of them.
    """

    record: dict[str, Any]
    caption: str
    crop: tuple[int, int, int, int] | None = None
    entry: dict[str, Any] | None = None


def draw_sheet(checked: CheckedSet, cfg: CfgNode, path: str | Path) -> list[InputError]:
    """Write a PNG: twelve pictures of the set, then its most extreme boxes from near by.

    Args:
        path: its folder is made; nothing is written where no picture can be drawn.

    Returns:
        What was wrong with pictures that could not be drawn.
    """
    ids = coco.contiguous_ids(checked.content)
    records = coco.records_of(checked.content, checked.paths, ids)
    count = min(SPREAD, len(records))
    chosen = np.linspace(0, len(records) - 1, count).round().astype(int)
    views = [_View(records[n], Path(records[n]["file_name"]).name) for n in chosen]
    views += _extremes(checked, cfg, {record["image_id"]: record for record in records})
    names = checked.table.class_names
    drawn, shown, failed = [], [], []
    for view in views:
        try:
            drawn.append(_draw(view, names))
            shown.append(view)
        except InputError as error:  # a file that only decoding shows to be damaged
            failed.append(error)
    if drawn:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        classes = sorted({e["category_id"] for view in shown for e in view.record["annotations"]})
        write_sheet(
            drawn,
            path,
            columns=COLUMNS,
            titles=[view.caption for view in shown],
            legend=[(names[number], class_color(number)) for number in classes],
        )
    return failed


def _extremes(checked: CheckedSet, cfg: CfgNode, records: dict[int, dict]) -> list[_View]:
    """The smallest, largest, lowest and narrowest object, the one that reaches farthest over the
    border, and the one that the anchors cover worst; each object once.
    """
    table = checked.table
    objects = anchor_report.objects_of(table, cfg)
    at_hand = np.array([table.image_ids[i] in records for i in table.image[objects.number]], bool)
    objects = objects.some(np.flatnonzero(at_hand))
    if not len(objects):
        return []
    width, height = np.maximum(objects.shapes, 1e-6).T
    ious = anchor_report.best_iou(objects, anchor_report.anchors_of(cfg))
    over = _over_border(table.boxes[objects.number], table.sizes[table.image[objects.number]])
    picks = {
        "smallest": (width * height).argmin(),
        "largest": (width * height).argmax(),
        "lowest for its width": (height / width).argmin(),
        "narrowest for its height": (height / width).argmax(),
        "farthest over the border": over.argmax() if over.max() > 0 else None,
        "worst IoU with an anchor": ious.argmin(),
    }
    said: dict[int, list[str]] = {}
    for what, row in picks.items():
        if row is not None:
            said.setdefault(int(row), []).append(what)
    return [
        _close_up(checked, records, int(objects.number[row]), ", ".join(words))
        for row, words in said.items()
    ]


def _over_border(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Pixels that boxes (N, 4), XYWH, reach over the border of their images; float64 (N,)."""
    return np.maximum(-boxes[:, :2], boxes[:, :2] + boxes[:, 2:] - sizes).max(axis=1)


def _close_up(checked: CheckedSet, records: dict[int, dict], number: int, words: str) -> _View:
    table = checked.table
    x, y, width, height = table.boxes[number]
    image = table.image[number]
    side = max(LEAST_CROP, CONTEXT * min(width, height), 1.4 * max(width, height))
    half = np.array([WIDTH / HEIGHT, 1]) * side / 2
    centre = np.array([x + width / 2, y + height / 2])
    low = np.clip(centre - half, 0, table.sizes[image] - 1)
    high = np.clip(centre + half, low + 1, table.sizes[image])
    crop = tuple(int(v) for v in (*np.floor(low), *np.ceil(high)))
    caption = f"{words}: {width:.4g} x {height:.4g} px\n{table.name(number)}"
    entry = {"bbox": table.boxes[number].tolist(), "bbox_mode": BoxMode.XYWH_ABS}
    entry["category_id"] = int(table.category[number])
    return _View(records[int(table.image_ids[image])], caption, crop, entry)


def _draw(view: _View, class_names: list[str]) -> np.ndarray:
    """uint8 RGB, at most HEIGHT x WIDTH: the picture, or the part of it that is looked at."""
    picture = read_rgb(view.record["file_name"])
    left, top, right, bottom = view.crop or (0, 0, *picture.size)
    part = np.asarray(picture.crop((left, top, right, bottom)))
    marks = []
    for mark in _marks_of(view, class_names):
        box = np.clip(mark.box, (left, top) * 2, (right, bottom) * 2) - (left, top) * 2
        if (box[2:] > box[:2]).all():
            marks.append(replace(mark, box=box))
    width, height = right - left, bottom - top
    scale = min(WIDTH / width, HEIGHT / height)
    return draw_marks(part, marks, side=max(1, int(scale * max(width, height) + 0.001)))


def _marks_of(view: _View, class_names: list[str]) -> list[Mark]:
    """Boxes in pixels of the picture; beside a close-up's own object the others have no names."""
    every = [(entry, truth_mark(entry, class_names)) for entry in view.record["annotations"]]
    if view.entry is None:
        return [mark for _, mark in every]
    own = list(view.entry["bbox"])
    others = [
        replace(mark, color=OTHERS, text="", width=0.6)
        for entry, mark in every
        if list(entry["bbox"]) != own
    ]
    return [replace(truth_mark(view.entry, class_names), width=1.5), *others]
