"""Objects at the network's scale, and how well the RPN's anchors cover them.

The IoU of an object is that with the best of all anchors of the image (Detectron2's
`DefaultAnchorGenerator`): for one shape that is the anchor whose centre is nearest, since overlap
only falls with distance. The RPN trains on anchors of IoU 0.7 and more, and for an object that
has none on its best one (Faster R-CNN, Sec. 3.1.2; MODEL.RPN.IOU_THRESHOLDS).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import build_backbone
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator

from ..data.coco_table import BoxTable
from ..errors import InputError

IOUS = (0.5, 0.7)


@dataclass(frozen=True)
class Anchors:
    """MODEL.ANCHOR_GENERATOR, a list a feature map; sizes in pixels of the network's input.

    Args:
        sizes: square roots of the areas.
        ratios: height / width.
        strides: pixels between the centres.
        offset: of the first centre, in strides.
    """

    sizes: tuple[tuple[float, ...], ...]
    ratios: tuple[tuple[float, ...], ...]
    strides: tuple[int, ...]
    offset: float

    def shapes(self) -> list[np.ndarray]:
        """For each feature map (width, height) of its anchors, float64 (A, 2)."""
        generator = DefaultAnchorGenerator(
            sizes=self.sizes, aspect_ratios=self.ratios, strides=self.strides, offset=self.offset
        )
        corners = [cell.double().numpy() for cell in generator.cell_anchors]
        return [cell[:, 2:] - cell[:, :2] for cell in corners]


def _spread(values: Sequence, count: int) -> tuple[tuple[float, ...], ...]:
    """One list for all feature maps, or a list each (`_broadcast_params` of Detectron2)."""
    lists = [values] if not isinstance(values[0], Sequence) else list(values)
    lists = lists * count if len(lists) == 1 else lists
    return tuple(tuple(float(value) for value in part) for part in lists)


def anchors_of(cfg: CfgNode) -> Anchors:
    """The anchors that a config's RPN has.

    Raises:
        InputError: the anchors are no upright ones, or not a list a feature map.
    """
    own = cfg.MODEL.ANCHOR_GENERATOR
    if own.NAME != "DefaultAnchorGenerator":
        raise InputError(
            "config",
            f"MODEL.ANCHOR_GENERATOR.NAME is {own.NAME}",
            "set DefaultAnchorGenerator: only upright boxes are compared",
        )
    with torch.device("meta"):  # shapes alone, no weights
        shapes = build_backbone(cfg).output_shape()
    strides = tuple(shapes[name].stride for name in cfg.MODEL.RPN.IN_FEATURES)
    sizes, ratios = _spread(own.SIZES, len(strides)), _spread(own.ASPECT_RATIOS, len(strides))
    if not len(sizes) == len(ratios) == len(strides):
        raise InputError(
            "config",
            f"MODEL.ANCHOR_GENERATOR has {len(sizes)} lists of sizes and {len(ratios)} of ratios "
            f"for {len(strides)} feature maps",
            "give one list in all, or one a feature map",
        )
    return Anchors(sizes=sizes, ratios=ratios, strides=strides, offset=own.OFFSET)


# ---- the network's scale ----


@dataclass(frozen=True)
class Objects:
    """The N objects (no crowds) of a data set at the network's scale, pixels.

    Args:
        boxes: float64 (N, 4), XYXY, clipped to the image.
        sizes: float64 (N, 2), (width, height) of the image of each.
        category: int64 (N,), 0..K-1.
        number: int64 (N,), the row of the `BoxTable`.
    """

    boxes: np.ndarray
    sizes: np.ndarray
    category: np.ndarray
    number: np.ndarray

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def shapes(self) -> np.ndarray:
        """(width, height), float64 (N, 2)."""
        return self.boxes[:, 2:] - self.boxes[:, :2]

    def some(self, rows: np.ndarray) -> "Objects":
        """The objects of the given rows."""
        return Objects(*(column[rows] for column in vars(self).values()))


def network_sizes(sizes: np.ndarray, cfg: CfgNode) -> np.ndarray:
    """(width, height) after INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST, float64 (M, 2)."""
    short, longest = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    if short == 0 or not len(sizes):  # Detectron2's "as they are"
        return sizes
    kinds, which = np.unique(sizes, axis=0, return_inverse=True)
    resized = [
        ResizeShortestEdge.get_output_shape(int(h), int(w), short, longest)[::-1] for w, h in kinds
    ]
    return np.array(resized, dtype=np.float64)[which.reshape(-1)]


def objects_of(table: BoxTable, cfg: CfgNode) -> Objects:
    """The objects as the network sees them."""
    (rows,) = np.nonzero(~table.is_crowd)
    sizes = network_sizes(table.sizes, cfg)[table.image[rows]]
    scale = np.tile(sizes / table.sizes[table.image[rows]], 2)
    boxes = table.boxes[rows]
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1) * scale
    return Objects(
        boxes=np.clip(corners, 0, np.tile(sizes, 2)),
        sizes=sizes,
        category=table.category[rows],
        number=rows,
    )


# ---- against the anchors ----


def best_iou(objects: Objects, anchors: Anchors) -> np.ndarray:
    """For each object its IoU with the best anchor of the image, float64 (N,), 0..1."""
    best = np.zeros(len(objects))
    sides = np.ascontiguousarray(objects.shapes.T)
    for shapes, stride in zip(anchors.shapes(), anchors.strides, strict=True):
        away = np.ascontiguousarray(_distance(objects, stride, anchors.offset).T)
        for shape in shapes:
            np.maximum(best, _iou(sides, shape, away), out=best)
    return best


def _distance(objects: Objects, stride: int, offset: float) -> np.ndarray:
    """From the object's centre to the nearest centre of anchors, float64 (N, 2)."""
    centres = (objects.boxes[:, :2] + objects.boxes[:, 2:]) / 2
    last = np.ceil(objects.sizes / stride) - 1  # the feature map has ceil(size / stride) cells
    cells = np.clip(np.round(centres / stride - offset), 0, last)
    return np.abs(centres - (cells + offset) * stride)


def _iou(sides: np.ndarray, anchor: np.ndarray, away: np.ndarray) -> np.ndarray:
    """IoU of boxes (2, N) with one anchor (2,), whose centre is ``away`` (2, N)."""
    both = anchor[:, None]
    across, down = np.minimum(np.minimum(sides, both), (sides + both) / 2 - away)
    common = np.maximum(across, 0) * np.maximum(down, 0)
    return common / (sides[0] * sides[1] + anchor[0] * anchor[1] - common)


def recall(ious: np.ndarray) -> dict[str, float]:
    """Share of objects with an anchor of IoU 0.5 and 0.7, percent; NaN without objects."""
    return {
        f"{iou:g}": float(100 * (ious >= iou).mean()) if len(ious) else float("nan") for iou in IOUS
    }


def as_overrides(anchors: Anchors) -> str:
    """KEY VALUE pairs for a command line."""
    sizes = [[int(size) if size == int(size) else size for size in part] for part in anchors.sizes]
    ratios = [list(part) for part in anchors.ratios]
    ratios = ratios[:1] if len(set(anchors.ratios)) == 1 else ratios
    group = "MODEL.ANCHOR_GENERATOR"
    return f'{group}.SIZES "{sizes}" {group}.ASPECT_RATIOS "{ratios}"'
