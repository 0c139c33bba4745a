"""Faster R-CNN as two networks that share nothing (paper, Appendix B)."""

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_model
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
        rpn_cfg = stage_cfg(cfg, "rpn")
        rpn_cfg.defrost()
        # NMS keeps boxes in the order of their scores, so the first 300 of 1000 are the 300.
        topk = max(cfg.TEST.PROPOSALS_TOPK, cfg.MODEL.RPN.POST_NMS_TOPK_TEST)
        rpn_cfg.MODEL.RPN.POST_NMS_TOPK_TEST = topk
        return {
            "rpn": build_model(rpn_cfg),
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
        proposals = self._propose(images)
        first = [p[: self.detection_topk] for p in proposals]
        features = self.fast_rcnn.backbone(images.tensor)
        detections, _ = self.fast_rcnn.roi_heads(images, features, first, None)
        return [
            self._output(x, size, found, best)
            for x, size, found, best in zip(
                batched_inputs, images.image_sizes, detections, proposals, strict=True
            )
        ]

    def _propose(self, images: ImageList) -> list[Instances]:
        features = self.rpn.backbone(images.tensor)
        return self.rpn.proposal_generator(images, features, None)[0]

    def _output(self, x: dict, size: tuple[int, int], found: Instances, best: Instances) -> dict:
        height, width = x.get("height", size[0]), x.get("width", size[1])
        output = {"instances": detector_postprocess(found, height, width)}
        if self.proposals_topk:
            output["proposals"] = detector_postprocess(best[: self.proposals_topk], height, width)
        return output
