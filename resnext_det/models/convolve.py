"""A convolution with its norm, the shortcut that is added, and the ReLU: by the shortest way.

Every layer of the trunk and of res5 on RoIs goes through `convolve`. What it computes is always
``relu(norm(conv(x)) + add)``; how, follows from whether the norm is fixed, whether gradients are
wanted, and from the machine.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d
from torch import nn

from ..errors import InputError
from ..native import is_recorded
from .folding import FoldedWeights, folded, fused, has_fused_convolution, is_fixed, needs_gradient
from .measured import regrouping_of
from .regroup import Regrouping, grouped_conv2d, is_product
from .training_norm import is_fusible, norm_add_relu

FUSED_TYPES = (torch.float32, torch.bfloat16)
REGROUP = ("auto", "off")


@dataclass(frozen=True)
class Compute:
    """How layers compute what they compute; never what.

    Args:
        fuse: fold fixed norms into the weights, and use fused operators where there are any:
            equal to rounding.
        regrouping: how a grouped convolution is computed; None: as it stands.
        recompute: blocks compute their inner features again in the backward pass.
    """

    fuse: bool = False
    regrouping: Regrouping | None = None
    recompute: bool = False


PLAIN = Compute()


def set_compute(model: nn.Module, fuse: bool, regroup: str, recompute: bool = False) -> None:
    """Choose for all blocks and stems in ``model``, which hold it as ``compute``.

    Args:
        fuse: MODEL.FUSE.
        regroup: MODEL.REGROUP, "auto" (measured, `models.measured`) or "off".
        recompute: MODEL.RECOMPUTE.

    Raises:
        InputError: another ``regroup``.
    """
    if regroup not in REGROUP:
        raise InputError("MODEL", f"REGROUP is {regroup!r}", f"choose one of {', '.join(REGROUP)}")
    compute = Compute(fuse, regrouping_of(regroup), recompute)
    for module in model.modules():
        if isinstance(getattr(module, "compute", None), Compute):
            module.compute = compute


def convolve(
    conv: Conv2d,
    x: torch.Tensor,
    *,
    relu: bool,
    add: torch.Tensor | None = None,
    compute: Compute = PLAIN,
) -> torch.Tensor:
    """``relu(norm(conv(x)) + add)``, (N, C_out, H_out, W_out).

    Args:
        conv: Detectron2's convolution with its norm, without an activation of its own.
        relu: False leaves the ReLU out.
        add: what is added before it, in the result's shape; not changed.
    """
    if compute.fuse and not is_recorded() and x.numel() and is_fixed(conv.norm):
        if not needs_gradient(conv, x, add):
            return _inference(conv, x, add, relu)
        if conv.norm is None or not any(p.requires_grad for p in conv.norm.parameters()):
            weight, bias = folded(conv)
            return _after(_convolution(conv, x, weight, bias, compute.regrouping), add, relu)
    out = _convolution(conv, x, conv.weight, conv.bias, compute.regrouping)
    return normalise(conv.norm, out, relu=relu, add=add, compute=compute)


def normalise(
    norm: nn.Module | None,
    x: torch.Tensor,
    *,
    relu: bool,
    add: torch.Tensor | None = None,
    compute: Compute = PLAIN,
) -> torch.Tensor:
    """``relu(norm(x) + add)``, (N, C, H, W); without a norm ``x`` itself may be changed."""
    if compute.fuse and is_fusible(norm, x):
        return norm_add_relu(norm, x, add, relu)
    return _after(x if norm is None else norm(x), add, relu)


def _convolution(
    conv: Conv2d,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    regrouping: Regrouping | None,
) -> torch.Tensor:
    place = (conv.stride, conv.padding, conv.dilation, conv.groups)
    if regrouping is None or is_recorded() or x.numel() == 0:
        return F.conv2d(x, weight, bias, *place)
    if conv.groups == 1 and not (is_product(weight, 1) and _is_last(x)):
        return F.conv2d(x, weight, bias, *place)
    return grouped_conv2d(x, weight, bias, *place, regrouping)


def _is_last(x: torch.Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


def _after(out: torch.Tensor, add: torch.Tensor | None, relu: bool) -> torch.Tensor:
    if add is not None:
        out += add
    return F.relu_(out) if relu else out


def _inference(conv: Conv2d, x: torch.Tensor, add: torch.Tensor | None, relu: bool) -> torch.Tensor:
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        x = x.to(torch.get_autocast_dtype(kind))
    weights = conv.__dict__.setdefault("_folded", FoldedWeights())
    if kind == "cpu" and x.dtype in FUSED_TYPES and has_fused_convolution(x.dtype):
        weight, bias = weights.of(conv, x, pack=True)
        return fused(conv, x, weight, bias, add=None if add is None else add.to(x.dtype), relu=relu)
    weight, bias = weights.of(conv, x, pack=False)
    place = (conv.stride, conv.padding, conv.dilation, conv.groups)
    return _after(F.conv2d(x, weight, bias, *place), add, relu)
