"""A convolution computed otherwise than it is stored: the same function, other kernels.

C groups of d channels are C / m groups of m * d channels whose weights are zero off the diagonal
blocks. Kernels are written for many channels a group, so the larger, half empty ones may be
faster; forward, gradient of the input and gradient of the weight each have a best m of their own
(`measured` finds them). Stored weights, their gradients and state dicts are those of C groups.

A 1x1 convolution is a product of matrices, pixels by channels (with a stride, of those pixels that
it reads), and may be computed as one; its weight's gradient then is a product too, which oneDNN
does sooner than its convolution's.

On a GPU with Triton, a grouped 3x3 convolution may also be computed by kernels of our own
(`triton_conv`). One that fails, in whatever way, is left out, and the library goes on.
"""

import functools
import importlib
import importlib.util
import logging
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from ..errors import one_line

logger = logging.getLogger(__name__)

PRODUCT = 0  # in place of a number of groups: a product of matrices


class Merge(NamedTuple):
    """How many groups are computed as one, in each of a layer's three convolutions.

    Each divides the number of groups; 1 leaves the groups as they are. `PRODUCT`, for a 1x1
    convolution without groups, is a product of matrices. -n, for a grouped 3x3 on a
    GPU, is our own kernel with blocks of n channels (see `tiles`).
    """

    forward: int = 1
    grad_input: int = 1
    grad_weight: int = 1


# From input, weight, stride and number of groups to the merge to use.
Regrouping = Callable[[torch.Tensor, torch.Tensor, tuple[int, int], int], Merge]


def block_diagonal(weight: torch.Tensor, groups: int, merge: int) -> torch.Tensor:
    """The weight of the same convolution in ``groups / merge`` groups.

    Args:
        weight: (C_out, C_in / groups, k, k).
        merge: a divisor of ``groups``.

    Returns:
        (C_out, merge * C_in / groups, k, k), zero off the blocks.
    """
    if merge == 1:
        return weight
    outs, ins, height, width = weight.shape
    per_group = outs // groups
    blocks = weight.reshape(groups // merge, merge, per_group, ins, height, width)
    merged = weight.new_zeros(groups // merge, merge, per_group, merge, ins, height, width)
    for number in range(merge):
        merged[:, number, :, number] = blocks[:, number]
    merged = merged.reshape(outs, merge * ins, height, width)
    if weight.is_contiguous(memory_format=torch.channels_last):
        return merged.contiguous(memory_format=torch.channels_last)
    return merged


def diagonal_blocks(merged: torch.Tensor, groups: int, merge: int) -> torch.Tensor:
    """The inverse of `block_diagonal`; what stands off the blocks is left out."""
    if merge == 1:
        return merged
    outs, ins, height, width = merged.shape
    shape = (groups // merge, merge, outs // groups, merge, ins // merge, height, width)
    blocks = merged.reshape(shape)
    kept = [blocks[:, number, :, number] for number in range(merge)]
    return torch.stack(kept, dim=1).reshape(outs, ins // merge, height, width)


class _Regrouped(torch.autograd.Function):
    """``F.conv2d`` whose three convolutions are merged each in its own way."""

    @staticmethod
    def forward(ctx, x, weight, bias, stride, padding, dilation, groups, merge):
        ctx.save_for_backward(x, weight)
        ctx.place = (stride, padding, dilation, groups)
        ctx.merge, ctx.has_bias = merge, bias is not None
        return forward_part(x, weight, bias, ctx.place, merge.forward)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_x = grad_weight = None
        if needs_x:
            merge = ctx.merge.grad_input
            grad_x = backward_part("grad_input", grad, x, weight, ctx.place, merge)
        if needs_weight:
            merge = ctx.merge.grad_weight
            merged = backward_part("grad_weight", grad, x, weight, ctx.place, merge)
            grad_weight = diagonal_blocks(merged, ctx.place[3], max(merge, 1))
        grad_bias = grad.sum((0, 2, 3)) if ctx.has_bias and needs_bias else None
        return grad_x, grad_weight, grad_bias, None, None, None, None, None


def is_product(weight: torch.Tensor, groups: int) -> bool:
    """Whether a convolution without padding is a product of matrices."""
    return tuple(weight.shape[2:]) == (1, 1) and groups == 1


def _read_by(x: torch.Tensor, stride: tuple[int, int]) -> torch.Tensor:
    """The pixels that a 1x1 convolution of this stride reads, a view."""
    return x[:, :, :: stride[0], :: stride[1]]


def as_matrix(x: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) as pixels by channels, (N * H * W, C); a view in channels_last memory."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _as_images(matrix: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    n, _, height, width = like.shape
    return matrix.reshape(n, height, width, -1).permute(0, 3, 1, 2)


def _product(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: tuple[int, int]
) -> torch.Tensor:
    x = _read_by(x, stride)
    # Written into a tensor of its own: autograd allows no change in place of a view, and the
    # shortcut is added in place.
    shape = (len(x), len(weight), *x.shape[2:])
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    filters = weight.reshape(len(weight), -1).t()
    torch.mm(as_matrix(x), filters, out=as_matrix(out))
    return out if bias is None else out.add_(bias.reshape(1, -1, 1, 1))


def _product_backward(grad, x, weight, which: str, stride: tuple[int, int]) -> torch.Tensor:
    if which == "grad_weight":
        return (as_matrix(grad).t() @ as_matrix(_read_by(x, stride))).reshape(weight.shape)
    read = _as_images(as_matrix(grad) @ weight.reshape(len(weight), -1), grad)
    if tuple(stride) == (1, 1):
        return read
    grad_input = torch.zeros_like(x)
    _read_by(grad_input, stride).copy_(read)
    return grad_input


@functools.cache
def own_kernels() -> ModuleType | None:
    """`triton_conv`; None where Triton is not installed, or does not load."""
    if importlib.util.find_spec("triton") is None:
        return None
    try:
        return importlib.import_module(".triton_conv", __package__)
    except Exception as error:  # such as a Triton of another torch's
        logger.warning("no kernels of our own, Triton does not load: %s", one_line(error))
        return None


def tiles(x: torch.Tensor, weight: torch.Tensor, stride: tuple[int, int], groups: int) -> list[int]:
    """The merges that stand for our own kernels, for this layer: [-16, -32], or [] off a GPU.

    Args:
        x, weight: as for `regrouped_conv2d`, in the type that is computed in.
    """
    kernels = own_kernels() if x.device.type == "cuda" else None
    return [] if kernels is None else [-n for n in kernels.blocks(x, weight, stride, groups)]


_dropped: set[tuple[str, int]] = set()  # parts and kernels that have failed in this process


def drop(part: str, merge: int, why: object) -> None:
    """Leave one of `tiles` out from now on; the first one is told, for the others fail alike."""
    logger.log(
        logging.DEBUG if _dropped else logging.WARNING,
        "our own kernel is left out where it fails, the library's is used: %s, %d channels: %s",
        part,
        -merge,
        one_line(why),
    )
    _dropped.add((part, merge))


def is_dropped(part: str, merge: int) -> bool:
    return (part, merge) in _dropped


def _tiled(part: str, merge: int, *arguments) -> torch.Tensor | None:
    """A part by our own kernel; None where it fails, or has failed before."""
    if not is_dropped(part, merge):
        try:
            return getattr(own_kernels(), part)(*arguments, -merge)
        except Exception as error:  # compilers and drivers have many kinds of them
            drop(part, merge, error)
    return None


Place = tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]


def forward_part(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, place: Place, merge: int
) -> torch.Tensor:
    """The convolution itself with ``merge`` groups as one.

    Args:
        place: stride, padding, dilation and the number of groups that ``weight`` is stored in.
    """
    if merge == PRODUCT:
        return _product(x, weight, bias, place[0])
    if merge < 0:
        out = _tiled("forward", merge, x, weight, bias, place)
        if out is not None:
            return out
        merge = 1
    *where, groups = place
    return F.conv2d(x, block_diagonal(weight, groups, merge), bias, *where, groups // merge)


def backward_part(
    part: str, grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, place: Place, merge: int
) -> torch.Tensor:
    """One of the two gradients with ``merge`` groups as one; the weight's has the merged shape.

    Args:
        part: "grad_input" or "grad_weight".
        grad: of the result.
        place: as for `forward_part`.
    """
    if merge == PRODUCT:
        return _product_backward(grad, x, weight, part, place[0])
    if merge < 0:
        out = _tiled(part, merge, grad, x, weight, place)
        if out is not None:
            return out
        merge = 1
    *where, groups = place
    wanted = [part == "grad_input", part == "grad_weight", False]
    merged = block_diagonal(weight, groups, merge)
    grads = torch.ops.aten.convolution_backward(
        grad, x, merged, None, *where, False, (0, 0), groups // merge, wanted
    )
    return grads[wanted.index(True)]


def regrouped_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    merge: Merge,
) -> torch.Tensor:
    """``F.conv2d`` with the groups merged; equal to rounding, exactly in exact arithmetic.

    Args:
        x: (N, C_in, H, W). weight: (C_out, C_in / groups, k, k). bias: (C_out,) or None.
        merge: divisors of ``groups``.
    """
    kind = x.device.type
    if torch.is_autocast_enabled(kind):  # as autocast does for F.conv2d
        dtype = torch.get_autocast_dtype(kind)
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    with torch.autocast(kind, enabled=False):
        return _Regrouped.apply(x, weight, bias, stride, padding, dilation, groups, merge)


def grouped_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    regrouping: Regrouping,
) -> torch.Tensor:
    """``F.conv2d``, regrouped where ``regrouping`` finds that it pays."""
    merge = regrouping(x, weight, stride, groups)
    if merge == Merge():
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    return regrouped_conv2d(x, weight, bias, stride, padding, dilation, groups, merge)
