"""Batches for the two training steps and for evaluation, on Detectron2's mapper."""

import logging

import torch
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetCatalog,
    DatasetFromList,
    DatasetMapper,
    MapDataset,
    build_detection_test_loader,
)
from detectron2.data.build import filter_images_with_only_crowd_annotations
from detectron2.structures import BoxMode

from ..data.proposals import ProposalFile
from ..engine.batch import images_per_process
from ..engine.sampler import ResumableBatches, training_loader
from ..errors import InputError

logger = logging.getLogger(__name__)


class NamingMapper(DatasetMapper):
    """Detectron2's mapper; an image that cannot be used is named."""

    def __call__(self, record: dict) -> dict:
        try:
            return super().__call__(record)
        except (OSError, SyntaxError, ValueError) as error:
            raise InputError(
                record["file_name"],
                f"cannot be read as an image of the annotation file ({error})",
                "replace the file, or correct its entry",
            ) from error


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


def build_train_loader(
    cfg: CfgNode, start: int, proposals: ProposalFile | None = None
) -> torch.utils.data.DataLoader:
    """Batches of Detectron2's input dicts from iteration ``start`` on.

    Args:
        cfg: a stage's config (``SOLVER.IMS_PER_BATCH`` is over all processes).
        proposals: for Fast R-CNN; every training image must be in it.
    """
    records = load_records(cfg)
    if proposals is not None:
        proposals.check_covers([record["image_id"] for record in records])
    wide = [int(record["width"] > record["height"]) for record in records]
    batches = ResumableBatches(
        len(records),
        images_per_process(cfg),
        cfg.SEED,
        start=start,
        groups=wide if cfg.DATALOADER.ASPECT_RATIO_GROUPING else None,
    )
    data = MapDataset(DatasetFromList(records, copy=False), ProposalMapper(cfg, proposals))
    return training_loader(
        data.__getitem__, batches, num_workers=cfg.DATALOADER.NUM_WORKERS, collate=list
    )


def build_test_loader(cfg: CfgNode, name: str) -> torch.utils.data.DataLoader:
    """Every image of a data set once over all processes, resized by INPUT.*_SIZE_TEST."""
    return build_detection_test_loader(
        DatasetCatalog.get(name),
        mapper=NamingMapper(cfg, is_train=False),
        batch_size=cfg.TEST.IMS_PER_BATCH,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )
