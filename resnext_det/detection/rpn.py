"""The RPN as the non-shared system uses it (paper, Appendix B; Ren et al., Sec. 3)."""

import torch
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY, RPN
from detectron2.modeling.proposal_generator.rpn import RPN_HEAD_REGISTRY, StandardRPNHead
from detectron2.structures import Boxes, Instances

from ..models.precision import autocast
from .backbone import keep_layout, precision_of
from .matching import match_anchors
from .proposal_nms import best_proposals


@RPN_HEAD_REGISTRY.register()
class ResNeXtRPNHead(StandardRPNHead):
    """Detectron2's head with its convolutions in MODEL.PRECISION; outputs are float32."""

    def __init__(self, cfg, input_shape):
        super().__init__(cfg, input_shape)
        self.precision = precision_of(cfg)
        keep_layout(self, cfg)

    def forward(self, features: list[torch.Tensor]):
        with autocast(self.precision, features[0].device.type):
            logits, deltas = super().forward(features)
        return [x.float() for x in logits], [x.float() for x in deltas]


@PROPOSAL_GENERATOR_REGISTRY.register()
class BoundedRPN(RPN):
    """Detectron2's RPN in bounded memory and less time.

    Memory in training does not grow with the objects of an image (`matching`), and on a CPU the NMS
    of one feature's boxes ends with the last proposal that is wanted (`proposal_nms`). Labels and
    proposals are Detectron2's, the order of equal scores apart.
    """

    @torch.no_grad()
    def label_and_sample_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """As Detectron2's: labels (R,) in {-1, 0, 1} and matched boxes (R, 4) of each image."""
        every, labels, matched = Boxes.cat(anchors), [], []
        for objects in gt_instances:
            numbers, found = match_anchors(objects.gt_boxes, every, self.anchor_matcher)
            if self.anchor_boundary_thresh >= 0:
                is_inside = every.inside_box(objects.image_size, self.anchor_boundary_thresh)
                found[~is_inside] = -1
            labels.append(self._subsample_labels(found))
            boxes = objects.gt_boxes.tensor
            matched.append(boxes[numbers] if len(boxes) else torch.zeros_like(every.tensor))
        return labels, matched

    @torch.no_grad()
    def predict_proposals(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[torch.Tensor],
        pred_anchor_deltas: list[torch.Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> list[Instances]:
        """As Detectron2's: the proposals of each image, best first."""
        logits, *others = pred_objectness_logits
        if not others and logits.device.type == "cpu" and not torch.jit.is_tracing():
            (boxes,) = self._decode_proposals(anchors, pred_anchor_deltas)
            if boxes.isfinite().all() and logits.isfinite().all():
                return self._best_of_one_feature(boxes, logits, image_sizes)
        return super().predict_proposals(
            anchors, pred_objectness_logits, pred_anchor_deltas, image_sizes
        )

    def _best_of_one_feature(self, boxes, logits, image_sizes) -> list[Instances]:
        reaching, most = (n[self.training] for n in (self.pre_nms_topk, self.post_nms_topk))
        scores, places = logits.topk(min(logits.shape[1], reaching), dim=1)
        return [
            best_proposals(every[own], score, size, self.nms_thresh, most, self.min_box_size)
            for every, own, score, size in zip(boxes, places, scores, image_sizes, strict=True)
        ]


@PROPOSAL_GENERATOR_REGISTRY.register()
class NonSharedRPN(BoundedRPN):
    """An RPN trained alone: no proposals are decoded in training, for nothing would use them."""

    def predict_proposals(self, anchors, pred_objectness_logits, pred_anchor_deltas, image_sizes):
        if self.training:
            return []
        return super().predict_proposals(
            anchors, pred_objectness_logits, pred_anchor_deltas, image_sizes
        )
