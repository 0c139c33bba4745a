"""ResNeXt in Detectron2's backbone registry: config keys become arguments, nothing else."""

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool

from ..config import trunk_arguments
from ..models import ResNeXt, build_resnext
from ..models.precision import resolve_precision


def precision_of(cfg: CfgNode) -> str:
    """MODEL.PRECISION with "auto" resolved for MODEL.DEVICE: "fp32" or "bf16"."""
    device = torch.device(cfg.MODEL.DEVICE).type
    return resolve_precision(cfg.MODEL.get("PRECISION", "fp32"), device)


@BACKBONE_REGISTRY.register()
def build_resnext_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNeXt:
    """The trunk of a C4 detector: MODEL.RESNETS.OUT_FEATURES, usually ["res4"]."""
    return build_resnext(
        **trunk_arguments(cfg),
        out_features=list(cfg.MODEL.RESNETS.OUT_FEATURES),
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        precision=precision_of(cfg),
        in_channels=input_shape.channels,
    )


@BACKBONE_REGISTRY.register()
def build_resnext_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Feature pyramid on the trunk; keys as Detectron2's ``build_resnet_fpn_backbone``."""
    return FPN(
        bottom_up=build_resnext_backbone(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
