"""The Fast R-CNN head of a C4 network: res5 of the trunk's own family on every RoI."""

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.poolers import ROIPooler, convert_boxes_to_pooler_format
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.modeling.roi_heads.roi_heads import Res5ROIHeads, ROIHeads
from detectron2.structures import Boxes
from torchvision.ops import RoIPool

from ..config import architecture_arguments, trunk_arguments
from ..models import Architecture, build_stage, set_compute
from ..models.precision import DTYPES, autocast, in_layout
from .backbone import precision_of
from .roi_pool import roi_pool


@ROI_HEADS_REGISTRY.register()
class ResNeXtRes5ROIHeads(Res5ROIHeads):
    """RoI pooling on res4, res5 of the same architecture, average pool, two sibling layers.

    Detectron2's own head always builds three full-width blocks; this one builds res5 from
    ``models``, so that trunk and head agree for every depth and width. Pooling and the
    sibling layers run in float32, res5 in MODEL.PRECISION (He et al. 2016, Appendix A).
    """

    def __init__(self, cfg, input_shape):
        super().__init__(cfg, input_shape)
        self.precision = precision_of(cfg)
        trunk = trunk_arguments(cfg)
        self.channels_last = trunk["channels_last"]
        if self.channels_last:
            self.res5.to(memory_format=torch.channels_last)
        set_compute(self.res5, trunk["fuse"], trunk["regroup"])

    @classmethod
    def from_config(cls, cfg, input_shape):
        name = cfg.MODEL.ROI_HEADS.IN_FEATURES[0]
        architecture = Architecture(**architecture_arguments(cfg))
        trunk = trunk_arguments(cfg)
        channels = architecture.out_channels(5)
        return {
            **ROIHeads.from_config(cfg),
            "in_features": [name],
            "pooler": ROIPooler(
                output_size=cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION,
                scales=(1.0 / input_shape[name].stride,),
                sampling_ratio=cfg.MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO,
                pooler_type=cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE,
            ),
            "res5": build_stage(architecture, 5, trunk["norm"], trunk["form"]),
            "box_predictor": FastRCNNOutputLayers(
                cfg, ShapeSpec(channels=channels, height=1, width=1)
            ),
        }

    def _pool(self, features: list[torch.Tensor], boxes: list[Boxes]) -> torch.Tensor:
        """(R, C, P, P): float32, or without gradients in res5's own type, which loses nothing."""
        (level,) = self.pooler.level_poolers
        (feature,) = features
        rounds = isinstance(level, RoIPool)
        if not rounds or (torch.is_grad_enabled() and feature.requires_grad):
            return self.pooler(features, boxes)
        rois = convert_boxes_to_pooler_format(boxes)
        feature = feature.to(DTYPES[self.precision])  # the largest of rounded values is the same
        return roi_pool(feature, rois, level.output_size[0], level.spatial_scale)

    def _shared_roi_transform(self, features, boxes) -> torch.Tensor:
        pooled = self._pool(features, boxes)
        with autocast(self.precision, pooled.device.type):
            return self.res5(in_layout(pooled, self.channels_last)).float()
