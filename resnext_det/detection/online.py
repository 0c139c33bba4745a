"""Proposals that the trained RPN makes while Fast R-CNN is trained (PROPOSALS.ONLINE)."""

from collections.abc import Iterator

import torch
from detectron2.config import CfgNode
from detectron2.data.detection_utils import transform_proposals
from detectron2.structures import BoxMode
from torch import nn

from ..data.proposals import by_score
from .loaders import NamingMapper, batches_of, load_records
from .proposals import boxes_and_logits


class TwiceMapper:
    """An image as Fast R-CNN trains on it, and beside it as the RPN sees it in test mode."""

    def __init__(self, cfg: CfgNode, rpn_cfg: CfgNode):
        self.train = NamingMapper(cfg, is_train=True)
        self.test = NamingMapper(rpn_cfg, is_train=False)

    def __call__(self, record: dict) -> dict:
        x, transforms = self.train.mapped(record)
        return {**x, "transforms": transforms, "as_tested": self.test(record)}


class OnlineLoader:
    """Training batches whose proposals the RPN makes when they are asked for.

    Stored proposals are made of the unflipped image at test scale, one image at a time, and then
    resized and flipped with it; so are these. Equal to stored ones, bit for bit, where those
    were made with TEST.IMS_PER_BATCH 1 on the same kind of device.

    Args:
        cfg: Fast R-CNN's config.
        rpn, rpn_cfg: a trained RPN in evaluation mode and its `proposal_cfg`.
        start: the iteration to begin at.
    """

    def __init__(self, cfg: CfgNode, start: int, *, rpn: nn.Module, rpn_cfg: CfgNode):
        self.loader = batches_of(cfg, load_records(cfg), TwiceMapper(cfg, rpn_cfg), start)
        self.rpn, self.topk = rpn, cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN

    def __iter__(self) -> Iterator[list[dict]]:
        batches = iter(self.loader)  # now: it draws a random number (engine.trainer.before_train)
        return ([self._with_proposals(x) for x in batch] for batch in batches)

    @torch.no_grad()
    def _with_proposals(self, x: dict) -> dict:
        (output,) = self.rpn([x.pop("as_tested")])
        boxes, logits = by_score(*boxes_and_logits(output))
        x.update(
            proposal_boxes=boxes,
            proposal_objectness_logits=logits,
            proposal_bbox_mode=BoxMode.XYXY_ABS,
        )
        size = tuple(x["image"].shape[1:])
        transform_proposals(x, size, x.pop("transforms"), proposal_topk=self.topk)
        return x
