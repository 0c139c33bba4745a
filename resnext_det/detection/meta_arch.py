"""Faster R-CNN as two networks that share nothing (paper, Appendix B), or share their trunk."""

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, build_model
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import ImageList, Instances
from torch import nn

from ..config import stage_cfg


@META_ARCH_REGISTRY.register()
class NonSharedRCNN(nn.Module):
    """``rpn`` (a Detectron2 ``ProposalNetwork``) and ``fast_rcnn`` (a ``GeneralizedRCNN``).

    Each has its own trunk; no parameter is in both. In inference the images are normalised
    and batched once, both trunks run on that batch, and boxes stay in the resized frame
    until the end.

    Args:
        rpn, fast_rcnn: the two networks; their pixel statistics must be equal.
        proposals_topk: proposals an image that are returned for measuring average recall;
            0 returns none.
        detection_topk: proposals an image that reach Fast R-CNN (300 in the paper's system).
    """

    @configurable
    def __init__(
        self, *, rpn: nn.Module, fast_rcnn: nn.Module, proposals_topk: int, detection_topk: int
    ):
        super().__init__()
        self.rpn, self.fast_rcnn = rpn, fast_rcnn
        self.proposals_topk, self.detection_topk = proposals_topk, detection_topk

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {
            "rpn": build_model(keep_for_recall(stage_cfg(cfg, "rpn"))),
            "fast_rcnn": build_model(stage_cfg(cfg, "fast_rcnn")),
            "proposals_topk": cfg.TEST.PROPOSALS_TOPK,
            "detection_topk": cfg.MODEL.RPN.POST_NMS_TOPK_TEST,
        }

    @property
    def device(self) -> torch.device:
        return self.rpn.device

    def forward(self, batched_inputs: list[dict]) -> list[dict] | dict[str, torch.Tensor]:
        """Detectron2's inputs and outputs.

        In training the inputs carry "instances" and "proposals" and the losses of both
        networks are returned. In inference each output holds "instances" (``pred_boxes``,
        ``scores``, ``pred_classes``) and "proposals" (``proposal_boxes``,
        ``objectness_logits``), boxes XYXY in pixels of the (height, width) of the input.
        """
        if self.training:
            return {**self.rpn(batched_inputs), **self.fast_rcnn(batched_inputs)}
        return self.inference(batched_inputs)

    @torch.no_grad()
    def inference(self, batched_inputs: list[dict]) -> list[dict]:
        images = self.fast_rcnn.preprocess_image(batched_inputs)
        proposals = self.propose(images)
        first = [p[: self.detection_topk] for p in proposals]
        features = self.fast_rcnn.backbone(images.tensor)
        detections, _ = self.fast_rcnn.roi_heads(images, features, first, None)
        return [
            _in_original_pixels(x, size, found, best, self.proposals_topk)
            for x, size, found, best in zip(
                batched_inputs, images.image_sizes, detections, proposals, strict=True
            )
        ]

    def propose(self, images: ImageList) -> list[Instances]:
        """The RPN's boxes in pixels of the batch, best first."""
        features = self.rpn.backbone(images.tensor)
        return self.rpn.proposal_generator(images, features, None)[0]


@META_ARCH_REGISTRY.register()
class SharedRCNN(GeneralizedRCNN):
    """The baseline with shared features: RPN and Fast R-CNN heads on one trunk, trained as one.

    Ren et al. 2017's approximate joint training. Trunk, heads and keys are those of
    `NonSharedRCNN`, whose outputs its own equal in form.
    """

    @configurable
    def __init__(self, *, proposals_topk: int, detection_topk: int, **parts):
        super().__init__(**parts)
        self.proposals_topk, self.detection_topk = proposals_topk, detection_topk

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {
            **super().from_config(keep_for_recall(stage_cfg(cfg, "joint"))),
            "proposals_topk": cfg.TEST.PROPOSALS_TOPK,
            "detection_topk": cfg.MODEL.RPN.POST_NMS_TOPK_TEST,
        }

    @torch.no_grad()
    def inference(self, batched_inputs: list[dict], *_unused) -> list[dict]:
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        proposals = self.proposal_generator(images, features, None)[0]
        first = [p[: self.detection_topk] for p in proposals]
        detections, _ = self.roi_heads(images, features, first, None)
        return [
            _in_original_pixels(x, size, found, best, self.proposals_topk)
            for x, size, found, best in zip(
                batched_inputs, images.image_sizes, detections, proposals, strict=True
            )
        ]


def keep_for_recall(cfg: CfgNode) -> CfgNode:
    """``cfg`` with as many proposals of the RPN as detection or the recall's figures need.

    NMS keeps boxes in the order of their scores, so the first 300 of 1000 are the 300.
    """
    cfg = cfg.clone()
    cfg.defrost()
    topk = max(cfg.TEST.PROPOSALS_TOPK, cfg.MODEL.RPN.POST_NMS_TOPK_TEST)
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = topk
    cfg.freeze()
    return cfg


def _in_original_pixels(
    x: dict, size: tuple[int, int], found: Instances, proposals: Instances, topk: int
) -> dict:
    height, width = x.get("height", size[0]), x.get("width", size[1])
    output = {"instances": detector_postprocess(found, height, width)}
    if topk:
        output["proposals"] = detector_postprocess(proposals[:topk], height, width)
    return output
