"""Boxes, masks and names on a picture; a class has one colour wherever it is drawn.

Detectron2's `Visualizer` draws. Its own colours are random, one an object, and its texts stand at
the corners of their boxes, whatever lies there.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import cv2
import numpy as np
from detectron2.structures import BoxMode, Instances
from detectron2.utils.visualizer import Visualizer
from matplotlib import colormaps
from matplotlib.colors import to_rgb
from matplotlib.patheffects import withStroke

from .. import plots

Color = str | tuple[float, float, float]  # a name of matplotlib's, or RGB, 0..1

# Of the first classes; told apart on photographs as on paper.
FIRST = (
    "#ff8c1a", "#2f8fff", "#3fc44f", "#e64bd7", "#e6c300", "#14c4d4", "#ff5a5a", "#9b7bff"
)  # fmt: skip
COLORS = 128  # then they come again

LEAST_WIDTH = 480  # pixels; on smaller pictures the names would hide the objects
FONT, LINE, EDGE = 9.0, 1.8, 1.6  # points: names, lines of boxes, the dark edge around a line
USUAL = 480.0  # pixels: the mean side for which these are; on larger pictures they grow
NAME = 28  # characters of a name and its score
LIGHT = 0.6  # white in the colour of a name, 0..1
LABELLED = 3  # of the proposals, the best


@dataclass(frozen=True)
class Mark:
    """A box in a picture.

    Args:
        box: x0, y0, x1, y1 in pixels of the image.
        color: of the line; the text is lighter.
        text: beside the box; "" is none.
        line: as matplotlib names them: "-", "--".
        width: of the line, in those of a usual one.
    """

    box: Sequence[float]
    color: Color
    text: str = ""
    line: str = "-"
    width: float = 1.0


def class_color(number: int) -> tuple[float, float, float]:
    """RGB, 0..1, of class ``number`` (0..K-1); it depends on nothing else."""
    return _palette()[number % COLORS]


@cache
def _palette() -> tuple[tuple[float, float, float], ...]:
    """After `FIRST` always the colour that is farthest from those before, by CIELAB's distance."""
    steps = np.linspace(0, 1, 12)
    rgb = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3)
    rgb = np.concatenate([[to_rgb(name) for name in FIRST], rgb]).astype(np.float32)
    lab = cv2.cvtColor(rgb[None], cv2.COLOR_RGB2LAB)[0]
    lightness, chroma = lab[:, 0], np.hypot(lab[:, 1], lab[:, 2])
    # Neither what is lost on a dark or a bright ground, nor the grey of other marks.
    allowed = (lightness > 45) & (lightness < 88) & (chroma > 30)
    chosen = list(range(len(FIRST)))
    away = np.linalg.norm(lab[:, None] - lab[None, chosen], axis=2).min(axis=1)
    away[~allowed] = -1
    while len(chosen) < COLORS:
        chosen.append(int(away.argmax()))
        away = np.minimum(away, np.linalg.norm(lab - lab[chosen[-1]], axis=1))
    return tuple(tuple(float(value) for value in rgb[place]) for place in chosen)


# ---- what is drawn ----


def draw_truth(
    image: np.ndarray, record: dict[str, Any], names: Sequence[str], side: int | None = None
) -> np.ndarray:
    """The image with a record's objects in the colours of their classes; crowds are dashed.

    Args:
        image: uint8 RGB (H, W, 3).
        record: the image's, in Detectron2's form.
        side: as of `draw_marks`.
    """
    entries = record.get("annotations", ())
    masks = [
        (entry["segmentation"], class_color(entry["category_id"]))
        for entry in entries
        if entry.get("segmentation")
    ]
    marks = [truth_mark(entry, names) for entry in entries]
    return draw_marks(image, marks, masks=masks, side=side)


def truth_mark(entry: dict[str, Any], names: Sequence[str]) -> Mark:
    """An annotation in Detectron2's form: its class's colour and name; a crowd is dashed."""
    number, crowd = entry["category_id"], bool(entry.get("iscrowd"))
    box = BoxMode.convert(entry["bbox"], entry["bbox_mode"], BoxMode.XYXY_ABS)
    text = names[number] + (" (crowd)" if crowd else "")
    return Mark(box, class_color(number), text, line="--" if crowd else "-")


def draw_detections(
    image: np.ndarray, found: Instances, names: Sequence[str], side: int | None = None
) -> np.ndarray:
    """The image with detections, and their masks, in the colours of their classes.

    Args:
        image: uint8 RGB (H, W, 3).
        found: a detector's instances, best first, in pixels of the image.
        side: as of `draw_marks`.
    """
    found = found.to("cpu")
    numbers = found.pred_classes.tolist()
    boxes, scores = found.pred_boxes.tensor.tolist(), found.scores.tolist()
    marks = [
        Mark(box, class_color(number), f"{names[number]} {score:.0%}")
        for box, number, score in zip(boxes, numbers, scores, strict=True)
    ]
    masks = found.pred_masks.numpy() if found.has("pred_masks") else []
    return draw_marks(
        image, marks, masks=list(zip(masks, map(class_color, numbers), strict=False)), side=side
    )


def draw_proposals(
    image: np.ndarray, found: Instances | None, most: int, side: int | None = None
) -> np.ndarray:
    """The image with the ``most`` best of an RPN's boxes, from yellow (the best) to violet.

    Args:
        image: uint8 RGB (H, W, 3).
        found: ``proposal_boxes`` and ``objectness_logits``, best first, in pixels of the image;
            None draws nothing.
        side: as of `draw_marks`.
    """
    if found is None:
        return draw_marks(image, [], side=side)
    best = found[:most].to("cpu")
    scores = best.objectness_logits.sigmoid().tolist()
    # By rank: the best scores of an image are nearly equal.
    ramp = colormaps["plasma"](np.linspace(0.95, 0.3, most))[:, :3]
    marks = [
        Mark(
            box,
            tuple(ramp[rank]),
            f"{scores[rank]:.0%}" if rank < LABELLED else "",
            width=1.2 - 0.6 * rank / most,
        )
        for rank, box in enumerate(best.proposal_boxes.tensor.tolist())
    ]
    return draw_marks(image, marks, side=side)


# ---- how it is drawn ----


def draw_marks(
    image: np.ndarray,
    marks: Sequence[Mark],
    *,
    masks: Sequence[tuple[Any, Color]] = (),
    side: int | None = None,
) -> np.ndarray:
    """uint8 RGB: the image with boxes and as many of their texts as have room.

    Args:
        image: uint8 RGB (H, W, 3).
        marks: the most important first. Small boxes are drawn over large ones; a text that would
            cover one of an earlier mark is left out.
        masks: any form that ``Visualizer.overlay_instances`` takes, and a colour each.
        side: pixels of the drawing's longer side; None: the image's own size, or `LEAST_WIDTH`.
    """
    height, width = image.shape[:2]
    scale = max(1.0, LEAST_WIDTH / width)
    if side:  # of a very narrow picture a pixel has to be left
        scale = max(side / max(height, width), 1 / min(height, width))
    unit = max(1.0, scale * np.sqrt(height * width) / USUAL)
    drawing = Visualizer(image, scale=scale)
    axis = drawing.output.ax
    if scale != 1:  # the visualizer's own choice, the nearest pixel, drops thin things
        axis.images[0].set_interpolation("hanning")
    if masks:
        forms, colors = zip(*masks, strict=True)
        drawing.overlay_instances(masks=list(forms), assigned_colors=list(colors), alpha=0.35)
    for mark in sorted(marks, key=_area, reverse=True):
        drawing.draw_box(mark.box, alpha=1, edge_color=mark.color, line_style=mark.line)
        line = LINE * unit * mark.width
        edge = withStroke(linewidth=line + EDGE * unit, foreground="black", alpha=0.6)
        axis.patches[-1].set(linewidth=line, path_effects=[edge])
    _write(drawing, marks, FONT * unit)
    return drawing.output.get_image()


def _area(mark: Mark) -> float:
    x0, y0, x1, y1 = mark.box
    return (x1 - x0) * (y1 - y0)


def _write(drawing: Visualizer, marks: Iterable[Mark], font: float) -> None:
    """The texts of ``marks``, each where it covers none before it; ``font`` in points."""
    axis, scale = drawing.output.ax, drawing.output.scale
    renderer = drawing.output.canvas.get_renderer()
    frame = np.array([drawing.output.width, drawing.output.height]) * scale
    taken = np.zeros((0, 4))
    for mark in marks:
        if not mark.text:
            continue
        drawing.draw_text(
            plots.label(mark.text, NAME),
            (0, 0),
            font_size=font / scale,
            color=tuple(LIGHT + (1 - LIGHT) * np.array(to_rgb(mark.color))),
            horizontal_alignment="left",
        )
        text = axis.texts[-1]
        extent = text.get_window_extent(renderer)
        size = np.array([extent.width + 4, extent.height + 3])  # with its dark ground
        for place in _places(np.array(mark.box) * scale, size, frame):
            own = np.concatenate([place, place + size])
            if not _overlap(own, taken).any():
                text.set_position((place + (2, 1.5)) / scale)
                taken = np.concatenate([taken, own[None]])
                break
        else:
            text.remove()


def _places(box: np.ndarray, size: np.ndarray, frame: np.ndarray) -> list[np.ndarray]:
    """Upper left corners (x, y) of a text of ``size`` near ``box``, inside the frame; pixels."""
    x0, y0, x1, y1 = box
    width, height = size
    places = [(x, y) for x in (x0, x1 - width) for y in (y0 - height, y0, y1, y1 - height)]
    return [np.clip(place, 0, np.maximum(frame - size, 0)) for place in places]


def _overlap(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Whether ``box`` (4,) meets each of ``others`` (N, 4); bool (N,)."""
    return ((box[:2] < others[:, 2:]) & (others[:, :2] < box[2:])).all(axis=1)
