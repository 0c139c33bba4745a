"""The heads behind a feature pyramid: Detectron2's, their layers in MODEL.PRECISION.

Names in state dicts, and what is computed, stay; pooling in front of them, and the predictions,
boxes and losses behind them are in float32.
"""

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads.box_head import ROI_BOX_HEAD_REGISTRY, FastRCNNConvFCHead
from detectron2.modeling.roi_heads.mask_head import (
    ROI_MASK_HEAD_REGISTRY,
    MaskRCNNConvUpsampleHead,
)
from detectron2.modeling.roi_heads.roi_heads import ROI_HEADS_REGISTRY, StandardROIHeads

from ..models.precision import at_least_float32, autocast, in_layout
from .backbone import keep_layout, precision_of
from .roi_align import use_native


@ROI_BOX_HEAD_REGISTRY.register()
class ResNeXtConvFCHead(FastRCNNConvFCHead):
    """(R, C, P, P) to (R, FC_DIM) float32."""

    def __init__(self, cfg: CfgNode, input_shape: ShapeSpec):
        super().__init__(cfg, input_shape)
        self.precision = precision_of(cfg)
        keep_layout(self, cfg)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with autocast(self.precision, x.device.type):
            return at_least_float32(super().forward(x))


@ROI_MASK_HEAD_REGISTRY.register()
class ResNeXtMaskHead(MaskRCNNConvUpsampleHead):
    """(R, C, P, P) to masks (R, K, 2 P, 2 P), float32 logits."""

    def __init__(self, cfg: CfgNode, input_shape: ShapeSpec):
        super().__init__(cfg, input_shape)
        self.precision = precision_of(cfg)
        self.channels_last = keep_layout(self, cfg)

    def layers(self, x: torch.Tensor) -> torch.Tensor:
        with autocast(self.precision, x.device.type):
            return at_least_float32(super().layers(in_layout(x, self.channels_last)))


@ROI_HEADS_REGISTRY.register()
class ResNeXtROIHeads(StandardROIHeads):
    """Detectron2's heads, RoIAlign computed by `roi_align` where that can."""

    def __init__(self, cfg: CfgNode, input_shape: dict[str, ShapeSpec]):
        super().__init__(cfg, input_shape)
        for name in ("box_pooler", "mask_pooler", "keypoint_pooler"):
            if getattr(self, name, None) is not None:
                use_native(getattr(self, name))
