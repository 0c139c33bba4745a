"""Ground truth and detections as packed columns: what is scored, and what processes gather.

A detection is 48 bytes, where a dict of Python numbers takes over 400. Ids are gone here: images
and classes are numbered from 0 in the order of their ids, annotations are rows. So whatever ids a
file has (0, above 2^53), a back end sees small numbers, and ties are broken as pycocotools does:
by image id, then by the order of the rows.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
from detectron2.structures import BoxMode, Instances

from ..errors import InputError


@dataclass(frozen=True)
class Truth:
    """The objects of a data set: I images, K classes, M objects in the order of the file.

    Args:
        file: for messages.
        image_ids: of the file, ascending.
        class_ids: of the file, ascending; a class's number is its place here.
        class_names: in the same order.
        sizes: int64 (I, 2), height and width in pixels; zeros unless masks are kept.
        images: int32 (M,), 0..I-1.
        classes: int32 (M,), 0..K-1.
        boxes: float64 (M, 4), x, y, width, height in pixels.
        areas: float64 (M,), pixels; they decide what is small, medium and large.
        crowd: bool (M,).
        masks: M polygons or run lengths as in the file; None: boxes only.
    """

    file: str
    image_ids: list[int]
    class_ids: list[int]
    class_names: list[str]
    sizes: np.ndarray
    images: np.ndarray
    classes: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    masks: list | None = None

    def of_classes(self, chosen: np.ndarray) -> "Truth":
        """Only the objects of ascending class numbers, which are counted anew from 0."""
        kept = np.flatnonzero(np.isin(self.classes, chosen))
        return replace(
            self,
            class_ids=[self.class_ids[k] for k in chosen],
            class_names=[self.class_names[k] for k in chosen],
            images=self.images[kept],
            classes=np.searchsorted(chosen, self.classes[kept]).astype(np.int32),
            boxes=self.boxes[kept],
            areas=self.areas[kept],
            crowd=self.crowd[kept],
            masks=None if self.masks is None else [self.masks[i] for i in kept],
        )


@dataclass(frozen=True)
class Detections:
    """N detections, those of one image in the order in which the network gave them.

    Args:
        images: int32 (N,), places in `Truth.image_ids`.
        classes: int32 (N,), 0..K-1.
        boxes: float64 (N, 4), x, y, width, height in pixels of the original image.
        scores: float64 (N,), finite.
        masks: N compressed run lengths; None: boxes only.
    """

    images: np.ndarray
    classes: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    masks: list | None = None

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays, without masks."""
        arrays = (getattr(self, field.name) for field in fields(self) if field.name != "masks")
        return sum(array.nbytes for array in arrays)

    def of_classes(self, chosen: np.ndarray) -> "Detections":
        """Only those of ascending class numbers, which are counted anew from 0."""
        kept = np.flatnonzero(np.isin(self.classes, chosen))
        return Detections(
            images=self.images[kept],
            classes=np.searchsorted(chosen, self.classes[kept]).astype(np.int32),
            boxes=self.boxes[kept],
            scores=self.scores[kept],
            masks=None if self.masks is None else [self.masks[i] for i in kept],
        )


def truth_of(content: dict[str, Any], file: str | Path, *, masks: bool = False) -> Truth:
    """The columns of checked COCO content (`data.coco.read_coco`).

    Args:
        masks: keep the segmentations.

    Raises:
        InputError: masks are asked for, and an object has none.
    """
    annotations = content["annotations"]
    images = sorted(content["images"], key=lambda image: image["id"])
    categories = sorted(content["categories"], key=lambda category: category["id"])
    if masks:
        _check_masks(annotations, file)
    return Truth(
        file=str(file),
        image_ids=[image["id"] for image in images],
        class_ids=[category["id"] for category in categories],
        class_names=[str(category["name"]) for category in categories],
        sizes=np.array([[i["height"], i["width"]] if masks else [0, 0] for i in images]),
        images=_places([entry["image_id"] for entry in annotations], images),
        classes=_places([entry["category_id"] for entry in annotations], categories),
        boxes=np.array([e["bbox"] for e in annotations], dtype=np.float64).reshape(-1, 4),
        areas=np.array([entry["area"] for entry in annotations], dtype=np.float64),
        crowd=np.array([bool(entry["iscrowd"]) for entry in annotations], dtype=bool),
        masks=[entry["segmentation"] for entry in annotations] if masks else None,
    )


def _places(ids: Iterable[int], entries: Sequence[dict]) -> np.ndarray:
    place = {entry["id"]: number for number, entry in enumerate(entries)}
    return np.array([place[id_] for id_ in ids], dtype=np.int32)


def _check_masks(annotations: list[dict], file: str | Path) -> None:
    lacking = [entry["id"] for entry in annotations if not entry.get("segmentation")]
    if lacking:
        raise InputError(
            file,
            f"annotation {lacking[0]} has no segmentation (so have {len(lacking) - 1} more), and "
            "masks are scored",
            "give every object a segmentation, or score boxes only",
        )


def pack_instances(
    instances: Instances, image: int, *, num_classes: int, masks: bool = False
) -> Detections:
    """A network's output for one image.

    Args:
        instances: pred_boxes XYXY in pixels of the original image, scores, pred_classes; with
            ``masks`` also pred_masks, bool (N, height, width).
        image: its place in `Truth.image_ids`.

    Raises:
        InputError: a class that the data set does not have, or a number that is not finite.
    """
    found = instances.to("cpu")
    # Sides are computed in the network's own type, as Detectron2 does, and then widened.
    boxes = BoxMode.convert(found.pred_boxes.tensor.detach(), BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
    packed = Detections(
        images=np.full(len(found), image, dtype=np.int32),
        classes=found.pred_classes.numpy().astype(np.int32),
        boxes=boxes.double().numpy().reshape(-1, 4),
        scores=found.scores.detach().double().numpy(),
        masks=_run_lengths(found.pred_masks.numpy()) if masks else None,
    )
    check_values(packed, "detections", num_classes)
    return packed


def _run_lengths(masks: np.ndarray) -> list[dict]:
    """Compressed run lengths of bool (N, height, width); one at a time, for the memory's sake."""
    return [pycocotools.mask.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in masks]


def check_values(found: Detections, source: str | Path, num_classes: int) -> None:
    """Raises InputError for a class number out of range, or a box or score that is not finite."""
    wrong = np.flatnonzero((found.classes < 0) | (found.classes >= num_classes))
    if len(wrong):
        raise InputError(
            source,
            f"hold class number {found.classes[wrong[0]]}, and the data set has {num_classes} "
            f"classes, 0 to {num_classes - 1}",
            "score a network that was trained on the same classes",
        )
    finite = np.isfinite(found.scores) & np.isfinite(found.boxes).all(axis=1)
    if not finite.all():
        row = int(np.flatnonzero(~finite)[0])
        raise InputError(
            source,
            f"hold a number that is not finite: score {found.scores[row]}, box "
            f"{found.boxes[row].tolist()}",
            "look for where the training diverged, and take an earlier checkpoint",
        )


def join(parts: Sequence[Detections], *, masks: bool = False) -> Detections:
    """One after the other; without parts, no detections."""
    empty = Detections(
        images=np.zeros(0, np.int32),
        classes=np.zeros(0, np.int32),
        boxes=np.zeros((0, 4)),
        scores=np.zeros(0),
    )
    columns = {
        field.name: np.concatenate([getattr(part, field.name) for part in (empty, *parts)])
        for field in fields(Detections)
        if field.name != "masks"
    }
    kept = [mask for part in parts for mask in part.masks] if masks else None
    return Detections(**columns, masks=kept)
