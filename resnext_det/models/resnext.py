"""The one trunk: every member of the family, for classification and for detection.

Built from Detectron2's own ``BasicStem``, ``BottleneckBlock`` and ``ResNet`` (which give
freezing, ``output_shape()`` and the classification head), so that state dicts, FPN and
RoI heads of Detectron2 fit.
"""

import math
from typing import Any

import torch
from detectron2.layers import CNNBlockBase
from detectron2.modeling.backbone.resnet import ResNet
from torch import nn

from ..errors import InputError
from .architecture import Architecture
from .blocks import Bottleneck, Norm
from .checks import check_features, check_layers, check_numbers, check_precision
from .convolve import set_compute
from .preactivation import NormReLU, PreactivationBlock
from .precision import at_least_float32, autocast, in_layout
from .stems import build_stem


class ResNeXt(ResNet):
    """A Detectron2 ``ResNet`` that knows its architecture, arithmetic and memory layout.

    Inputs: images (N, 3, H, W), normalised, float32 (float64 where the parameters are).
    Outputs: {name: (N, C, ceil(H / s), ceil(W / s))} for ``stem`` and ``res2``..``res5``, with
    s = 4, 4, 8, 16, 32 (CIFAR: ``stem`` and ``res2``..``res4``, 1, 1, 2, 4), and
    {"linear": (N, num_classes)}; float32 also in bf16 arithmetic, float64 stays float64.
    Sides smaller than s give a map of one cell. At depth 200 only the last stage's feature
    ends in a ReLU: the others are sums, which the next stage's first block activates. A C4
    detector's RPN and RoI pooling take res4's sums as they are, as in ijkguo/mx-rcnn
    (rcnn/symbol/symbol_resnet.py); so do the 1x1 convolutions of a feature pyramid.

    Raises (``forward``):
        InputError: images of another shape or number of channels, or with a side of 0 pixels.
    """

    def __init__(
        self,
        architecture: Architecture,
        stem: nn.Module,
        stages: list[list[CNNBlockBase]],
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
        if not torch.jit.is_tracing():  # where sizes are no plain numbers
            _check_images(x, self.stem.in_channels)
        with autocast(self.precision, x.device.type):
            outputs = super().forward(in_layout(x, self.channels_last))
        return {name: at_least_float32(feature) for name, feature in outputs.items()}


def _check_images(x: torch.Tensor, channels: int) -> None:
    if x.dim() != 4 or x.shape[1] != channels or x.shape[2] == 0 or x.shape[3] == 0:
        raise InputError(
            "images",
            f"their shape is {tuple(x.shape)}",
            f"give (N, {channels}, height, width), sides of 1 pixel or more",
        )


def _init_linear(linear: nn.Linear) -> None:
    """fb.resnet.torch: weight U(-1/sqrt(fan_in), 1/sqrt(fan_in)) as Torch7's default, bias 0."""
    bound = 1 / math.sqrt(linear.in_features)
    nn.init.uniform_(linear.weight, -bound, bound)
    nn.init.zeros_(linear.bias)


def build_stage(
    architecture: Architecture, stage: int, norm: Norm, form: str = "c", stride: int | None = None
) -> list[CNNBlockBase]:
    """The blocks of ``res<stage>`` (2..5): 1x1 reduce, grouped 3x3, 1x1 restore; each with norm.

    A projection shortcut (type B) stands where channels change: in each stage's first block.
    The first block of res3..res5 has stride 2. At depth 200 the blocks are
    `PreactivationBlock` and a `NormReLU` follows the last stage's.

    Args:
        stride: of the first block; None: the trunk's, 2 but for res2.

    Raises:
        InputError: no such stage, form or norm.
    """
    check_layers(architecture, norm, form)
    return _blocks(architecture, stage, norm, form, stride)


def _blocks(
    architecture: Architecture, stage: int, norm: Norm, form: str, stride: int | None = None
) -> list[CNNBlockBase]:
    """`build_stage` without its checks, which one network needs once."""
    out_channels = architecture.out_channels(stage)
    blocks = architecture.blocks_per_stage[stage - 2]
    if stride is None:
        stride = 1 if stage == 2 else 2
    layers = {
        "stride_per_block": [stride] + [1] * (blocks - 1),
        "in_channels": (
            architecture.stem_channels if stage == 2 else architecture.out_channels(stage - 1)
        ),
        "out_channels": out_channels,
        "bottleneck_channels": architecture.bottleneck_channels(stage),
        "num_groups": architecture.cardinality,
        "norm": norm,
        "form": form,
    }
    if architecture.is_preactivation:
        first = "none" if stage == 2 else "both"
        layers["activation_per_block"] = [first] + ["path"] * (blocks - 1)
        last = [NormReLU(out_channels, norm=norm)] * (stage == architecture.stages[-1])
        return ResNet.make_stage(PreactivationBlock, blocks, **layers) + last
    return ResNet.make_stage(
        Bottleneck,
        blocks,
        **layers,
        stride_in_1x1=architecture.stride_in_1x1,
        has_shortcut=architecture.shortcut,
    )


def _architecture(depth: int | str, **others: Any) -> Architecture:
    """The member of a name alone, or of numbers, where None stands for the default."""
    given = {field: value for field, value in others.items() if value is not None}
    if not isinstance(depth, str):
        return Architecture(depth, **given)
    if given:
        raise InputError(
            "build_resnext",
            f'the name "{depth:.40}" and {", ".join(f"{k}={v!r}" for k, v in given.items())}',
            "give the name alone, which says all of it, or numbers alone",
        )
    return Architecture.from_name(depth)


def build_resnext(
    depth: int | str = 50,
    cardinality: int | None = None,
    bottleneck_width: int | None = None,
    *,
    width_multiplier: float | None = None,
    stride_in_1x1: bool | None = None,
    shortcut: bool | None = None,
    form: str = "c",
    norm: Norm = "BN",
    num_classes: int | None = None,
    out_features: list[str] | None = None,
    freeze_at: int = 0,
    precision: str = "fp32",
    channels_last: bool = False,
    fuse: bool = False,
    regroup: str = "off",
    recompute: bool = False,
    in_channels: int = 3,
) -> ResNeXt:
    """Build a ResNeXt, or a ResNet by ``cardinality=1, bottleneck_width=64`` (paper, Table 1).

    Numbers or a name: ``build_resnext(50, 32, 4)`` is ``build_resnext("X50_32x4d")``.

    The defaults here are the paper's network, ResNeXt-50 (32x4d), computed as PyTorch does. A
    config has others: in ``resnext_det.get_cfg()`` NUM_GROUPS 1 and WIDTH_PER_GROUP 64 stay
    Detectron2's (ResNet-50), and CHANNELS_LAST, FUSE and REGROUP are set for speed.

    Args:
        depth, cardinality, bottleneck_width, width_multiplier, stride_in_1x1, shortcut: see
            `Architecture`, whose defaults None stands for. Or, in place of ``depth`` and alone,
            a name that `Architecture.from_name` reads: "X101_64x4d", "X29_8x64d_w0.5".
        form: "a", "b" or "c" of Fig. 3, the same function of the same parameters; "c", the
            grouped convolution, is much the fastest. Forms a and b do not exist at depth 200.
        norm: "BN", "SyncBN", "FrozenBN", "GN", "LN" or "" as Detectron2's ``get_norm`` takes
            them; with forms "a" and "b" only "BN", "FrozenBN" and "".
        num_classes: number of classes of the ``linear`` head, or None for no head.
        out_features: names among "stem", "res2".."res5" (CIFAR: "res4"), "linear"; None gives
            the last layer. Without a head, stages behind the last feature are not built.
        freeze_at: number of stages frozen from the front, 0..5 (CIFAR 0..4): 1 the stem, 2 also
            res2, ...
        precision: "fp32", "bf16" or "fp16" (autocast; parameters stay float32).
        channels_last: keep images, weights and features in channels_last memory.
        fuse, regroup: see `set_compute`; faster, and equal to rounding.
        recompute: blocks keep their input only and compute the rest again in the backward pass:
            less memory, a third more time, the same numbers.
        in_channels: channels of the images, 1 or more.

    Raises:
        InputError: an unknown depth, name, form, norm, feature or precision, a name with numbers
            beside it, less than one class or channel, ``freeze_at`` out of range, or channels
            that are no whole numbers.
    """
    architecture = _architecture(
        depth,
        cardinality=cardinality,
        bottleneck_width=bottleneck_width,
        width_multiplier=width_multiplier,
        stride_in_1x1=stride_in_1x1,
        shortcut=shortcut,
    )
    check_precision(precision)
    check_numbers(architecture, num_classes, freeze_at, in_channels)
    check_features(architecture, out_features, has_head=num_classes is not None)
    check_layers(architecture, norm, form)
    model = ResNeXt(
        architecture,
        build_stem(architecture, norm, in_channels),
        [_blocks(architecture, stage, norm, form) for stage in architecture.stages],
        num_classes=num_classes,
        out_features=out_features,
        freeze_at=freeze_at,
        precision=precision,
        channels_last=channels_last,
    )
    set_compute(model, fuse, regroup, recompute)
    return model
