"""The Fast R-CNN head of a C4 network: res5 of the trunk's own family on every RoI."""

import itertools

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.poolers import ROIPooler, convert_boxes_to_pooler_format
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.modeling.roi_heads.roi_heads import Res5ROIHeads, ROIHeads
from detectron2.structures import Boxes
from torchvision.ops import RoIPool

from ..config import trunk_arguments
from ..errors import InputError
from ..models import Architecture, build_stage, set_compute
from ..models.precision import DTYPES, autocast, in_layout
from .backbone import keep_layout, precision_of, require_res5
from .roi_align import use_native
from .roi_pool import is_native, roi_pool

# Of an evaluation on a CPU: as many as keep its convolutions busy, and few enough that their
# features are taken from memory that the process holds already (C libraries give larger blocks
# back to the system, which then has to clear them again).
ROIS_AT_ONCE = 64


def _res5_stride(cfg: CfgNode) -> int:
    """MODEL.ROI_BOX_HEAD.RES5_STRIDE; 2 in a plain Detectron2 config. Raises InputError."""
    stride = cfg.MODEL.ROI_BOX_HEAD.get("RES5_STRIDE", 2)
    if stride not in (1, 2):
        raise InputError(
            "MODEL.ROI_BOX_HEAD", f"RES5_STRIDE is {stride!r}", "set it to 2, or 1 with 7x7 RoIs"
        )
    return stride


def _feature(
    cfg: CfgNode, input_shape: dict[str, ShapeSpec], architecture: Architecture
) -> tuple[str, ShapeSpec]:
    """The one feature that res5 goes on from. Raises InputError where it is not res4's."""
    names, wanted = list(cfg.MODEL.ROI_HEADS.IN_FEATURES), architecture.out_channels(4)
    given = [name for name in names if name in input_shape]
    if len(names) != 1 or not given or input_shape[given[0]].channels != wanted:
        channels = {name: shape.channels for name, shape in input_shape.items()}
        raise InputError(
            "MODEL.ROI_HEADS",
            f"IN_FEATURES is {names}, and res5 reads one feature of {wanted} channels; the "
            f"backbone gives {channels}",
            'set it to ["res4"], with MODEL.RESNETS.OUT_FEATURES ["res4"]; a feature pyramid has '
            'ROI_HEADS.NAME "ResNeXtROIHeads"',
        )
    return names[0], input_shape[names[0]]


def _check_tasks(cfg: CfgNode) -> None:
    for key in ("MASK_ON", "KEYPOINT_ON"):
        if cfg.MODEL[key]:
            raise InputError(
                "MODEL",
                f"{key} is True, and ResNeXtRes5ROIHeads finds boxes only",
                f"set {key} False, or take a feature pyramid with ResNeXtROIHeads, as "
                "configs/beyond/mask_rcnn_X101_32x4d_FPN.yaml does",
            )


@ROI_HEADS_REGISTRY.register()
class ResNeXtRes5ROIHeads(Res5ROIHeads):
    """RoI pooling on res4, res5 of the same architecture, average pool, two sibling layers.

    Detectron2's own head always builds three full-width blocks; this one builds res5 from
    ``models``, so that trunk and head agree for every depth and width. Pooling and the
    sibling layers run in float32, res5 in MODEL.PRECISION (He et al. 2016, Appendix A). At
    depth 200 the pooled values are sums, and res5's first block activates them.

    Raises:
        InputError: a depth without res5, another feature than res4, masks or key points.
    """

    def __init__(self, cfg: CfgNode, input_shape: dict[str, ShapeSpec]):
        super().__init__(cfg, input_shape)
        self.precision = precision_of(cfg)
        trunk = trunk_arguments(cfg)
        self.channels_last = keep_layout(self.res5, cfg)
        use_native(self.pooler)
        set_compute(self.res5, trunk["fuse"], trunk["regroup"], trunk["recompute"])

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        _check_tasks(cfg)
        architecture = require_res5(cfg)
        name, shape = _feature(cfg, input_shape, architecture)
        trunk = trunk_arguments(cfg)
        channels = architecture.out_channels(5)
        return {
            **ROIHeads.from_config(cfg),
            "in_features": [name],
            "pooler": ROIPooler(
                output_size=cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION,
                scales=(1.0 / shape.stride,),
                sampling_ratio=cfg.MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO,
                pooler_type=cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE,
            ),
            "res5": build_stage(
                architecture, 5, trunk["norm"], trunk["form"], stride=_res5_stride(cfg)
            ),
            "box_predictor": FastRCNNOutputLayers(
                cfg, ShapeSpec(channels=channels, height=1, width=1)
            ),
        }

    def _pool(self, features: list[torch.Tensor], boxes: list[Boxes]) -> torch.Tensor:
        """(R, C, P, P): float32, or by our own RoIPool in res5's type, which loses nothing."""
        (level,) = self.pooler.level_poolers
        (feature,) = features
        if isinstance(level, RoIPool):
            own = feature.to(DTYPES[self.precision])  # the largest of rounded values is the same
            learns = torch.is_grad_enabled() and feature.requires_grad
            if is_native(own) or not learns:
                rois = convert_boxes_to_pooler_format(boxes)
                return roi_pool(own, rois, level.output_size[0], level.spatial_scale)
        return self.pooler(features, boxes)

    def _shared_roi_transform(
        self, features: list[torch.Tensor], boxes: list[Boxes]
    ) -> torch.Tensor:
        """(R, C, 1, 1), float32: res5 averaged over its cells, which Detectron2 does behind it."""
        # In training batch norms would take each part for a batch.
        if self.training or torch.is_grad_enabled() or features[0].device.type != "cpu":
            return self._average(features, boxes)
        parts = _in_parts(boxes, ROIS_AT_ONCE) or [boxes]
        return torch.cat([self._average(features, part) for part in parts])

    def _average(self, features: list[torch.Tensor], boxes: list[Boxes]) -> torch.Tensor:
        pooled = self._pool(features, boxes)
        with autocast(self.precision, pooled.device.type):
            maps = self.res5(in_layout(pooled, self.channels_last))
        # Not mean(): its gradient divides at every cell what is divided here once a RoI.
        wide = torch.promote_types(maps.dtype, torch.float32)
        return maps.sum(dim=(2, 3), keepdim=True, dtype=wide) / (maps.shape[2] * maps.shape[3])


def _in_parts(boxes: list[Boxes], most: int) -> list[list[Boxes]]:
    """The same boxes in the same order, ``most`` at a time over all images."""
    ends = list(itertools.accumulate(map(len, boxes)))
    starts = [end - len(own) for end, own in zip(ends, boxes, strict=True)]
    return [
        [
            own[max(0, first - start) : max(0, first + most - start)]
            for own, start in zip(boxes, starts, strict=True)
        ]
        for first in range(0, ends[-1], most)
    ]
