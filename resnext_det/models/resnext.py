"""The one trunk: ResNeXt for classification and for detection, in Detectron2's names.

Built from Detectron2's own ``BasicStem``, ``BottleneckBlock`` and ``ResNet`` (which give
freezing, ``output_shape()`` and the classification head), so that state dicts, FPN and
RoI heads of Detectron2 fit. Blocks are form (c) of Fig. 3: a grouped 3x3 convolution.
"""

import math

import torch
from detectron2.modeling.backbone.resnet import BasicStem, BottleneckBlock, ResNet
from torch import nn

from ..errors import InputError
from .architecture import Architecture
from .precision import autocast, in_layout


class ResNeXt(ResNet):
    """A Detectron2 ``ResNet`` that knows its architecture, arithmetic and memory layout.

    Inputs: images (N, 3, H, W), float32, normalised. Outputs: {name: (N, C, H/s, W/s)} in
    float32 for ``res2``..``res5`` (s = 4, 8, 16, 32), and {"linear": (N, num_classes)}.
    """

    def __init__(
        self,
        architecture: Architecture,
        stem: nn.Module,
        stages: list,
        *,
        num_classes: int | None,
        out_features: list[str] | None,
        freeze_at: int,
        precision: str,
        channels_last: bool,
    ):
        # ResNet cuts the stages behind the last feature, which would take the head's input away.
        super().__init__(
            stem,
            stages,
            num_classes=num_classes,
            out_features=None if num_classes else out_features,
            freeze_at=freeze_at,
        )
        if num_classes and out_features:
            self._out_features = list(out_features)
        if num_classes:
            self._out_feature_channels["linear"] = num_classes
            self._out_feature_strides["linear"] = None
        self.architecture = architecture
        self.precision, self.channels_last = precision, channels_last
        if num_classes:
            _init_linear(self.linear)
        if channels_last:
            self.to(memory_format=torch.channels_last)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        with autocast(self.precision, x.device.type):
            outputs = super().forward(in_layout(x, self.channels_last))
        return {name: feature.float() for name, feature in outputs.items()}


def _check_choices(precision: str, out_features: list[str] | None, has_head: bool) -> None:
    if precision not in ("fp32", "bf16"):
        raise InputError("MODEL", f"PRECISION is {precision!r}", "choose one of fp32, bf16")
    names = ("stem", "res2", "res3", "res4", "res5") + ("linear",) * has_head
    if out_features is not None and not (out_features and set(out_features) <= set(names)):
        raise InputError(
            "MODEL.RESNETS",
            f"OUT_FEATURES is {out_features!r}",
            f"name one or more of {', '.join(names)}",
        )


def _init_linear(linear: nn.Linear) -> None:
    """fb.resnet.torch: weight U(-1/sqrt(fan_in), 1/sqrt(fan_in)) as Torch7's default, bias 0."""
    bound = 1 / math.sqrt(linear.in_features)
    nn.init.uniform_(linear.weight, -bound, bound)
    nn.init.zeros_(linear.bias)


def build_stage(architecture: Architecture, stage: int, norm: str) -> list[BottleneckBlock]:
    """The blocks of ``res<stage>`` (2..5): 1x1 reduce, grouped 3x3, 1x1 restore; each with BN.

    A projection shortcut (type B) stands where channels change: in each stage's first block.
    """
    blocks = architecture.blocks_per_stage[stage - 2]
    in_channels = architecture.stem_channels if stage == 2 else architecture.out_channels(stage - 1)
    return ResNet.make_stage(
        BottleneckBlock,
        blocks,
        stride_per_block=[1 if stage == 2 else 2] + [1] * (blocks - 1),
        in_channels=in_channels,
        out_channels=architecture.out_channels(stage),
        bottleneck_channels=architecture.bottleneck_channels(stage),
        num_groups=architecture.cardinality,
        norm=norm,
        stride_in_1x1=architecture.stride_in_1x1,
    )


def build_resnext(
    depth: int = 50,
    cardinality: int = 32,
    bottleneck_width: int = 4,
    *,
    width_multiplier: float = 1.0,
    stride_in_1x1: bool = False,
    norm: str = "BN",
    num_classes: int | None = None,
    out_features: list[str] | None = None,
    freeze_at: int = 0,
    precision: str = "fp32",
    channels_last: bool = False,
    in_channels: int = 3,
) -> ResNeXt:
    """Build a ResNeXt, or a ResNet by ``cardinality=1, bottleneck_width=64`` (paper, Table 1).

    Args:
        depth, cardinality, bottleneck_width, width_multiplier, stride_in_1x1: see `Architecture`.
        norm: "BN", "SyncBN", "FrozenBN", "GN" as Detectron2's ``get_norm`` takes them.
        num_classes: number of classes of the ``linear`` head, or None for no head.
        out_features: names among "stem", "res2".."res5", "linear"; None gives the last layer.
            Without a head, stages behind the last feature are not built.
        freeze_at: number of stages frozen from the front: 1 the stem, 2 also res2, ...
        precision: "fp32" or "bf16" (autocast; parameters stay float32).
        channels_last: keep images, weights and features in channels_last memory.

    Raises:
        InputError: unknown depth, feature or precision, or channels that are no whole numbers.
    """
    _check_choices(precision, out_features, has_head=bool(num_classes))
    architecture = Architecture(
        depth, cardinality, bottleneck_width, width_multiplier, stride_in_1x1
    )
    stem = BasicStem(in_channels, architecture.stem_channels, norm)
    return ResNeXt(
        architecture,
        stem,
        [build_stage(architecture, stage, norm) for stage in range(2, 6)],
        num_classes=num_classes,
        out_features=out_features,
        freeze_at=freeze_at,
        precision=precision,
        channels_last=channels_last,
    )
