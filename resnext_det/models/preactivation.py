"""The pre-activation block of ResNet-200 (He et al., ECCV 2016; paper, Table 4).

The layers are those of fb.resnet.torch, models/preresnet.lua; with C > 1 the 3x3 is grouped.
"""

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.layers import CNNBlockBase, Conv2d, get_norm
from torch import nn

from ..errors import InputError
from .architecture import PREACTIVATION_DEPTHS
from .blocks import Norm, check_form
from .convolve import PLAIN, Compute, normalise
from .recompute import recomputed

# Where a block's first norm and ReLU stand: nowhere, before the split, inside the path.
ACTIVATIONS = ("none", "both", "path")


class NormReLU(CNNBlockBase):
    """Norm and ReLU behind the last block, which itself ends in an addition.

    The last child of res5, so that the feature is activated wherever res5 is used, as the
    head of a detector too (``bn1`` and ``relu1`` of ijkguo/mx-rcnn, symbol_resnet.py).
    (N, channels, H, W) to the same shape.
    """

    compute = PLAIN

    def __init__(self, channels: int, *, norm: Norm = "BN"):
        super().__init__(channels, channels, stride=1)
        self.norm = get_norm(norm, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _activate(self.norm, x, self.compute)


class PreactivationBlock(CNNBlockBase):
    """Norm, ReLU, convolution, three times; nothing behind the addition.

    Inputs (N, in_channels, H, W), outputs (N, out_channels, ceil(H / stride), ceil(W / stride)),
    not activated: negative values occur. The projection (1x1, where channels change) has no
    norm. Parts: conv1, conv2, conv3, norm1, norm2, norm3, shortcut.

    Args:
        bottleneck_channels: channels of the 3x3, C * d.
        stride: of the 3x3 and of the projection.
        num_groups: C, the groups of the 3x3.
        norm: as Detectron2's ``get_norm`` takes it.
        activation: "none": the input is activated already (first block of res2, behind the
            stem's ReLU), there is no norm1; "both": norm1 and ReLU feed path and projection
            (first block of res3..res5); "path": they stand inside the path (all others).
        form: "c", the only one there is: forms a and b (Fig. 3) are of the paper's own block.

    Raises:
        InputError: another form, or an unknown ``activation``.
    """

    compute = PLAIN

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck_channels: int,
        stride: int = 1,
        num_groups: int = 1,
        norm: Norm = "BN",
        activation: str = "path",
        form: str = "c",
    ):
        super().__init__(in_channels, out_channels, stride)
        check_preactivation_form(form)
        if activation not in ACTIVATIONS:
            raise InputError(
                "PreactivationBlock",
                f"activation is {activation!r}",
                f"choose one of {', '.join(ACTIVATIONS)}",
            )
        self.activation = activation
        inner = bottleneck_channels
        self.norm1 = None if activation == "none" else get_norm(norm, in_channels)
        self.conv1 = _convolution(in_channels, inner, 1)
        self.norm2 = get_norm(norm, inner)
        self.conv2 = _convolution(inner, inner, 3, stride=stride, groups=num_groups)
        self.norm3 = get_norm(norm, inner)
        self.conv3 = _convolution(inner, out_channels, 1)
        self.shortcut = None
        if in_channels != out_channels:
            self.shortcut = _convolution(in_channels, out_channels, 1, stride=stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.compute.recompute and torch.is_grad_enabled():
            return recomputed(self._forward, x, self)
        return self._forward(x)

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        out = x if self.activation == "none" else _activate(self.norm1, x, self.compute)
        if self.activation == "both":
            x = out
        out = _activate(self.norm2, self.conv1(out), self.compute)
        out = _activate(self.norm3, self.conv2(out), self.compute)
        out = self.conv3(out)
        out += x if self.shortcut is None else self.shortcut(x)
        return out


def check_preactivation_form(form: str) -> None:
    """Raises InputError where ``form`` is not "c"."""
    check_form(form)
    if form != "c":
        raise InputError(
            "MODEL.RESNETS",
            f"FORM is {form!r}, and the pre-activation blocks of DEPTH "
            f"{', '.join(map(str, PREACTIVATION_DEPTHS))} have no such form",
            'set FORM "c": forms (a) and (b) are of the paper\'s own block (Fig. 3)',
        )


def _convolution(in_channels: int, out_channels: int, size: int, **others: int) -> Conv2d:
    convolution = Conv2d(in_channels, out_channels, size, padding=size // 2, bias=False, **others)
    weight_init.c2_msra_fill(convolution)
    return convolution


def _activate(norm: nn.Module | None, x: torch.Tensor, compute: Compute) -> torch.Tensor:
    # In place behind a norm only: without one it would overwrite what the shortcut reads.
    return F.relu(x) if norm is None else normalise(norm, x, relu=True, compute=compute)
