"""The RPN as the non-shared system uses it (paper, Appendix B; Ren et al., Sec. 3)."""

import torch
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY, RPN
from detectron2.modeling.proposal_generator.rpn import RPN_HEAD_REGISTRY, StandardRPNHead

from ..models.precision import autocast
from .backbone import precision_of


@RPN_HEAD_REGISTRY.register()
class ResNeXtRPNHead(StandardRPNHead):
    """Detectron2's head with its convolutions in MODEL.PRECISION; outputs are float32."""

    def __init__(self, cfg, input_shape):
        super().__init__(cfg, input_shape)
        self.precision = precision_of(cfg)

    def forward(self, features: list[torch.Tensor]):
        with autocast(self.precision, features[0].device.type):
            logits, deltas = super().forward(features)
        return [x.float() for x in logits], [x.float() for x in deltas]


@PROPOSAL_GENERATOR_REGISTRY.register()
class NonSharedRPN(RPN):
    """An RPN trained alone: no proposals are decoded in training, for nothing would use them."""

    def predict_proposals(self, anchors, pred_objectness_logits, pred_anchor_deltas, image_sizes):
        if self.training:
            return []
        return super().predict_proposals(
            anchors, pred_objectness_logits, pred_anchor_deltas, image_sizes
        )
