"""Convolution and norm as one convolution, where the norm's statistics do not change.

With fixed statistics a norm is a scale and a shift for each channel, so
``norm(conv(x)) = conv'(x) + shift`` with every filter of ``conv'`` multiplied by its scale. The
pass over memory that the norm takes is gone, forward and backward; the function is the same to
rounding. On a CPU without gradients, oneDNN also adds the shortcut and applies the ReLU while
the results of the convolution are still in its registers.
"""

import functools
import logging

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import nn

logger = logging.getLogger(__name__)


def is_fixed(norm: nn.Module | None) -> bool:
    """Whether a norm is a fixed scale and shift now: frozen, or batch norm in evaluation."""
    if norm is None or type(norm) is FrozenBatchNorm2d:
        return True
    return (
        type(norm) is nn.BatchNorm2d
        and not norm.training
        and norm.running_mean is not None
        and norm.affine
    )


def folded(conv: Conv2d) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight and bias of ``conv`` with its norm in them; gradients reach ``conv.weight``.

    Args:
        conv: its norm is fixed (`is_fixed`).
    """
    norm = conv.norm
    if norm is None:
        return conv.weight, conv.bias
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    shift = norm.bias - norm.running_mean * scale
    if conv.bias is not None:
        shift = shift + conv.bias * scale
    return conv.weight * scale.reshape(-1, 1, 1, 1), shift


def needs_gradient(conv: Conv2d, *others: torch.Tensor | None) -> bool:
    """Whether autograd has anything to do for this convolution."""
    if not torch.is_grad_enabled():
        return False
    tensors = [conv.weight, conv.bias, *others, *(conv.norm.parameters() if conv.norm else ())]
    return any(tensor is not None and tensor.requires_grad for tensor in tensors)


class FoldedWeights:
    """The folded weights of one convolution in one type, made again when their sources change.

    A change through ``.data`` or NumPy leaves no trace in the sources: `ForgetsFolded` starts anew
    whenever a network is put into training or evaluation. Copies and pickles hold none: oneDNN's
    packed weights cannot be copied.
    """

    def __init__(self):
        self.key: tuple = ()
        self.weight: torch.Tensor | None = None
        self.bias: torch.Tensor | None = None

    def __reduce__(self) -> tuple:
        return FoldedWeights, ()

    def of(
        self, conv: Conv2d, x: torch.Tensor, pack: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(weight, bias) for inputs like ``x``; ``pack``: in oneDNN's own layout."""
        norm = conv.norm
        fields = ("weight", "bias", "running_mean", "running_var") if norm is not None else ()
        sources = [conv.weight, conv.bias, *(getattr(norm, field) for field in fields)]
        key = (x.dtype, x.device, pack, *map(_state, sources))
        if key != self.key:
            with torch.no_grad():
                weight, bias = folded(conv)
                weight = weight.detach().to(x.dtype).contiguous(memory_format=_layout(x))
                if pack:
                    weight = torch.ops.mkldnn._reorder_convolution_weight(
                        weight, conv.padding, conv.stride, conv.dilation, conv.groups, x.shape
                    )
                self.weight, self.bias = weight, None if bias is None else bias.to(x.dtype)
            self.key = key
        return self.weight, self.bias


class ForgetsFolded:
    """In front of a module's own class: ``train()`` and ``eval()`` drop folded weights in it."""

    def train(self, mode: bool = True) -> nn.Module:
        for module in self.modules():
            module.__dict__.pop("_folded", None)
        return super().train(mode)


def _state(tensor: torch.Tensor | None) -> tuple | None:
    # An inference tensor has no version; nothing can change it where it is read.
    if tensor is None:
        return None
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version


def _layout(x: torch.Tensor) -> torch.memory_format:
    last = x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


@functools.cache
def has_fused_convolution(dtype: torch.dtype) -> bool:
    """Whether this torch has oneDNN's convolution with sum and ReLU, and computes it right.

    The operators are those that torch's own compiler emits; they are tried once a type.
    """
    try:
        return _try_fused(dtype)
    except (RuntimeError, AttributeError, TypeError, NotImplementedError) as error:
        logger.info("no fused convolutions in %s: %s", dtype, str(error).splitlines()[0])
        return False


def _try_fused(dtype: torch.dtype) -> bool:
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return False
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    errors = [_error_of_fused(dtype, groups) for groups in (1, 4)]
    if max(errors) < tolerance:
        return True
    logger.info("no fused convolutions in %s: they are wrong by %.2g here", dtype, max(errors))
    return False


@torch.no_grad()
def _error_of_fused(dtype: torch.dtype, groups: int) -> float:
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):  # a run's own numbers, in the middle of a step even
        conv = Conv2d(16, 32, kernel_size=3, padding=1, groups=groups)
    for tensor in (conv.weight, conv.bias):
        tensor.copy_(torch.randn(tensor.shape, generator=generator) / 12)
    x = torch.randn(2, 16, 9, 7, generator=generator)
    other = torch.randn(2, 32, 9, 7, generator=generator)
    with torch.autocast("cpu", enabled=False):
        expected = F.relu(conv(x) + other)
        inputs = [t.to(dtype).contiguous(memory_format=torch.channels_last) for t in (x, other)]
        weight, bias = FoldedWeights().of(conv, inputs[0], pack=True)
        found = fused(conv, inputs[0], weight, bias, add=inputs[1], relu=True)
    return float((found.float() - expected).abs().max())


def fused(
    conv: Conv2d,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    add: torch.Tensor | None,
    relu: bool,
) -> torch.Tensor:
    """``relu(conv(x) + add)`` in one pass, without gradients, on a CPU.

    Args:
        weight, bias: of `FoldedWeights`, for ``x``'s type.
        add: in the result's shape and type, or None.
    """
    place = (conv.padding, conv.stride, conv.dilation, conv.groups)
    after = "relu" if relu else "none"
    if add is None:
        return torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *place, after, [], "")
    if conv.groups > 1:  # oneDNN adds to no grouped convolution; no block of ours needs it
        out = torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *place, "none", [], "")
        out += add
        return F.relu_(out) if relu else out
    return torch.ops.mkldnn._convolution_pointwise.binary(
        x, add, weight, bias, *place, "add", 1.0, after if relu else None, [], ""
    )
