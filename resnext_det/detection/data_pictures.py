"""A sheet of a data set's pictures with their boxes and names, for a look before training."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.utils.visualizer import Visualizer
from matplotlib import colormaps
from PIL import Image

from .. import plots
from ..data import coco, coco_boxes
from ..data.coco_sets import CheckedSet
from ..data.images import read_rgb
from ..errors import InputError
from . import anchor_report

SPREAD = 12  # pictures evenly spread over the set
COLUMNS = 4
WIDTH, HEIGHT = 480, 400  # pixels of a field
CONTEXT = 3.0  # least sides of a crop, in the shorter side of its box
STRIP = 44  # pixels for the caption
LEAST_CROP = 48  # pixels of the original picture


@dataclass(frozen=True)
class _View:
    """What is drawn in one field of the sheet.

    Args:
        record: Detectron2's dict of the image.
        caption: above the picture.
        crop: (x0, y0, x1, y1) in pixels of the picture; None: all of it.
    """

    record: dict[str, Any]
    caption: str
    crop: tuple[int, int, int, int] | None = None


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
    drawn, failed = [], []
    for view in views:
        try:
            drawn.append(_draw(view, checked.table.class_names))
        except InputError as error:  # a file that only decoding shows to be damaged
            failed.append(error)
    if drawn:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        plots.sheet(drawn, path, columns=COLUMNS)
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
    return _View(records[int(table.image_ids[image])], caption, crop)


def _draw(view: _View, class_names: list[str]) -> np.ndarray:
    """uint8 RGB (HEIGHT + STRIP, WIDTH, 3): the picture in the middle, a caption above it."""
    picture = read_rgb(view.record["file_name"])
    left, top, right, bottom = view.crop or (0, 0, *picture.size)
    scale = min(WIDTH / (right - left), HEIGHT / (bottom - top))
    size = tuple(max(1, round(scale * side)) for side in (right - left, bottom - top))
    place = ((WIDTH - size[0]) // 2, STRIP)
    picture = picture.crop((left, top, right, bottom)).resize(size, Image.Resampling.BICUBIC)
    canvas = Image.new("RGB", (WIDTH, HEIGHT + STRIP), "white")
    canvas.paste(picture, place)
    drawing = Visualizer(np.asarray(canvas))
    entries = view.record["annotations"]
    boxes = coco_boxes.boxes_of(entries)
    boxes[:, 2:] += boxes[:, :2]
    boxes = np.clip(boxes, (left, top) * 2, (right, bottom) * 2)
    (seen,) = np.nonzero((boxes[:, 2:] > boxes[:, :2]).all(axis=1))
    drawing.overlay_instances(
        boxes=(boxes[seen] - np.tile((left, top), 2)) * scale + np.tile(place, 2),
        labels=[_label(entries[n], class_names) for n in seen],
        assigned_colors=[_colour(entries[n]["category_id"]) for n in seen],
        alpha=0.9,
    )
    drawing.draw_text(view.caption, (WIDTH / 2, 2), font_size=11, color="white")
    return drawing.output.get_image()


def _label(entry: dict[str, Any], class_names: list[str]) -> str:
    return class_names[entry["category_id"]] + (" (crowd)" if entry["iscrowd"] else "")


def _colour(category: int) -> tuple[float, float, float]:
    colours = [colour for colour in colormaps["tab10"].colors if len(set(colour)) > 1]  # no grey
    return colours[category % len(colours)]
