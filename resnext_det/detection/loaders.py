"""Batches for the two training steps and for evaluation, on Detectron2's mapper."""

import copy
import logging
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import (
    DatasetCatalog,
    DatasetFromList,
    DatasetMapper,
    MapDataset,
)
from detectron2.data import transforms as T
from detectron2.data.build import filter_images_with_only_crowd_annotations
from detectron2.data.detection_utils import (
    SizeMismatchError,
    check_image_size,
    transform_proposals,
)
from detectron2.data.samplers import InferenceSampler
from detectron2.data.transforms import AugInput
from detectron2.structures import BoxMode

from ..data.coco_images import set_pixel_limit
from ..data.images import read_array
from ..data.proposals import ProposalFile
from ..data.reduced import detector_side, is_reduced
from ..data.resize import leaving_a_pixel
from ..engine.batch import images_per_process
from ..engine.sampler import ResumableBatches, training_loader
from ..engine.workers import WatchedLoader
from ..errors import InputError

logger = logging.getLogger(__name__)


class NamingMapper(DatasetMapper):
    """Detectron2's mapper on the reader of this toolkit; an image that cannot be used is named.

    Reading is by the rules of docs/images.md (`data.images.read_array`), in the channel order of
    INPUT.FORMAT. What follows is Detectron2's: augmentations, boxes, masks, keypoints and stored
    proposals, in the order of its ``DatasetMapper.__call__``. Semantic segmentation is not read.

    Args:
        max_image_pixels: images of more are refused (DATASETS.MAX_IMAGE_PIXELS).
        short_side: of larger JPEGs so much at least is decoded (`data.reduced`); 0: all.
        others: those of Detectron2's mapper; a config gives them all.
    """

    @configurable
    def __init__(
        self, is_train: bool, *, max_image_pixels: int, short_side: int = 0, **others: Any
    ):
        super().__init__(is_train, **others)
        self.max_image_pixels, self.short_side = max_image_pixels, short_side

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """The arguments that a config stands for."""
        others = super().from_config(cfg, is_train)
        others["augmentations"] = leaving_a_pixel(others["augmentations"])
        return {
            **others,
            "max_image_pixels": cfg.DATASETS.MAX_IMAGE_PIXELS,
            "short_side": detector_side(cfg) if is_train else 0,
        }

    def __call__(self, record: dict) -> dict:
        """A record with "image", uint8 (3, H, W), and, for training, "instances".

        Raises:
            InputError: the file is no whole image of the size in the record, or its annotations
                cannot be used.
        """
        return self.mapped(record)[0]

    def mapped(self, record: dict) -> tuple[dict, T.TransformList]:
        """As a call, and what leads from the record's boxes to those of the image."""
        record = copy.deepcopy(record)
        seen = AugInput(self._read(record))
        before = _reduction(record, seen.image)
        transforms = before + self.augmentations(seen)
        size = seen.image.shape[:2]
        record["image"] = torch.as_tensor(np.ascontiguousarray(seen.image.transpose(2, 0, 1)))
        if self.proposal_topk is not None:
            transform_proposals(record, size, transforms, proposal_topk=self.proposal_topk)
        if not self.is_train:
            record.pop("annotations", None)
        elif "annotations" in record:
            self._add_instances(record, transforms, size)
        return record, transforms

    def _read(self, record: dict) -> np.ndarray:
        # Pillow's limit is one of the process, and a data worker may have been started afresh.
        set_pixel_limit(self.max_image_pixels)
        whole = record.get("height"), record.get("width")
        short_side = 0 if None in whole else self.short_side  # they say where the boxes are
        image = read_array(record["file_name"], self.image_format, short_side=short_side)
        if short_side and is_reduced(image.shape[:2], whole):
            return image
        try:
            check_image_size(record, image)  # and adds it where the record has none
        except SizeMismatchError as error:
            raise _wrong_size(record, image) from error
        return image

    def _add_instances(self, record: dict, transforms: Any, size: tuple[int, int]) -> None:
        for entry in record["annotations"]:
            # Detectron2 scales whole numbers in place, and so cuts what follows their points.
            entry["bbox"] = [float(number) for number in entry["bbox"]]
        try:
            self._transform_annotations(record, transforms, size)
        except ValueError as error:
            raise InputError(
                record["file_name"],
                f"its annotations cannot be used ({' '.join(str(error).split())})",
                "correct them in the annotation file (tools/check_data.py lists what is wrong)",
            ) from error


def _reduction(record: dict, image: np.ndarray) -> T.TransformList:
    """From the boxes of a record to those of its image as it was read."""
    whole = record["height"], record["width"]
    same = image.shape[:2] == whole
    return T.TransformList([] if same else [T.ResizeTransform(*whole, *image.shape[:2])])


def _wrong_size(record: dict, image: np.ndarray) -> InputError:
    found, stated = image.shape[1::-1], (record["width"], record["height"])
    swapped = ", swapped, as by an EXIF orientation tag," if found == stated[::-1] else ""
    return InputError(
        record["file_name"],
        f"has (width, height) {found}, but its entry{swapped} says {stated}",
        "replace the file, or correct its entry (tools/check_data.py lists all of them)",
    )


class ProposalMapper:
    """Adds an image's stored proposals, then lets Detectron2's mapper resize and flip them."""

    def __init__(self, cfg: CfgNode, proposals: ProposalFile | None):
        self.mapper = NamingMapper(cfg, is_train=True)
        self.proposals = proposals

    def __call__(self, record: dict) -> dict:
        record = dict(record)
        if self.proposals is not None:
            boxes, logits = self.proposals[record["image_id"]]
            record.update(
                proposal_boxes=boxes,
                proposal_objectness_logits=logits,
                proposal_bbox_mode=BoxMode.XYXY_ABS,
            )
        return self.mapper(record)


def load_records(cfg: CfgNode) -> list[dict]:
    """All images of DATASETS.TRAIN; without objects only if the config keeps them.

    Raises:
        InputError: nothing is left to train on; see also ``data.coco.load_coco``.
    """
    records = [record for name in cfg.DATASETS.TRAIN for record in DatasetCatalog.get(name)]
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        before = len(records)
        records = filter_images_with_only_crowd_annotations(records)
        logger.info(
            "%d of %d training images have objects; the others are left out "
            "(DATALOADER.FILTER_EMPTY_ANNOTATIONS)",
            len(records),
            before,
        )
    if not records:
        raise InputError(
            "DATASETS.TRAIN",
            f"{list(cfg.DATASETS.TRAIN)} hold no image with an object that is not a crowd",
            "check iscrowd in the annotation file",
        )
    return records


def log_epochs(cfg: CfgNode, images: int) -> None:
    """How often a training sees each image."""
    epochs = cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH / images
    logger.info("%d training images, %.1f epochs", images, epochs)


def build_train_loader(
    cfg: CfgNode, start: int, proposals: ProposalFile | None = None
) -> WatchedLoader:
    """Batches of Detectron2's input dicts from iteration ``start`` on.

    Args:
        cfg: a stage's config (``SOLVER.IMS_PER_BATCH`` is over all processes).
        proposals: for Fast R-CNN; every training image must be in it.
    """
    records = load_records(cfg)
    if proposals is not None:
        proposals.check_covers([record["image_id"] for record in records])
    return batches_of(cfg, records, ProposalMapper(cfg, proposals), start)


def batches_of(
    cfg: CfgNode, records: list[dict], mapper: Callable[[dict], dict], start: int
) -> WatchedLoader:
    """Mapped records in training's order, from iteration ``start`` on; as `build_train_loader`."""
    log_epochs(cfg, len(records))
    wide = [int(record["width"] > record["height"]) for record in records]
    batches = ResumableBatches(
        len(records),
        images_per_process(cfg),
        cfg.SEED,
        start=start,
        groups=wide if cfg.DATALOADER.ASPECT_RATIO_GROUPING else None,
    )
    data = MapDataset(DatasetFromList(records, copy=False), mapper)
    return training_loader(
        data.__getitem__, batches, num_workers=cfg.DATALOADER.NUM_WORKERS, collate=list
    )


def build_test_loader(cfg: CfgNode, name: str) -> WatchedLoader:
    """Every image of a data set once over all processes, resized by INPUT.*_SIZE_TEST.

    A batch holds images of one size, TEST.IMS_PER_BATCH at most: none is padded to another's, for
    the trunk would turn the padding into features that reach into the image, and an image's boxes
    would depend on its neighbours.
    """
    records = DatasetCatalog.get(name)
    mine = InferenceSampler(len(records))  # this process's share
    return WatchedLoader(
        MapDataset(DatasetFromList(records, copy=False), NamingMapper(cfg, is_train=False)),
        batch_sampler=of_one_size(records, mine, cfg.TEST.IMS_PER_BATCH),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=list,
    )


def of_one_size(records: list[dict], numbers: Iterable[int], most: int) -> list[list[int]]:
    """Numbers of records in batches of ``most`` at most, with one (height, width) in each."""
    batches: list[list[int]] = []
    open_batch: dict[tuple, list[int]] = {}
    for number in numbers:
        size = records[number].get("height"), records[number].get("width")
        batch = open_batch.get(size)
        if batch is None or len(batch) == most or None in size:
            batches.append(batch := [])
        batch.append(number)
        open_batch[size] = batch
    return batches
