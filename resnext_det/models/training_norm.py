"""Batch norm in training, the addition and the ReLU behind it, as one: on a CPU, channels_last.

PyTorch takes a pass over memory for the mean, one for the variance, one for each of norm, addition
and ReLU, and as many backward. `native` takes two and two; sums are in float32 and float64, so that
the result is no less exact. Values, gradients and running statistics are those of PyTorch's
operators to rounding, and in bf16 with one rounding in place of three.
"""

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from ..native import Norm, kernels_serve, norm_backward, norm_forward


class _NormAddReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, add, weight, bias, norm, relu):
        y, kept = norm_forward(x, add, norm, relu)
        # Without an addition the sign of the result is computed again, and nobody need keep it.
        ctx.save_for_backward(x, None if add is None else y, weight, bias, kept)
        ctx.eps, ctx.relu = norm.eps, relu
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, y, weight, bias, kept = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        norm = Norm(weight, bias, ctx.eps)
        of_x, of_add, of_weight, of_bias = norm_backward(grad, x, y, norm, kept, ctx.relu)
        return of_x, of_add, of_weight, of_bias, None, None


def is_fusible(norm: nn.Module | None, x: torch.Tensor) -> bool:
    """Whether `norm_add_relu` takes this norm, as it is now, and these features."""
    return (
        type(norm) is nn.BatchNorm2d
        and (norm.training or norm.running_mean is None)
        and norm.affine
        and not _is_watched(norm)
        and x.dim() == 4
        and x.shape[1] == norm.num_features  # PyTorch names what is wrong
        and x.numel() > x.shape[1]  # as that one value has no variance
        and x.is_contiguous(memory_format=torch.channels_last)
        and kernels_serve(x)
        and all(map(_is_plain, (norm.weight, norm.bias, norm.running_mean, norm.running_var)))
    )


def _is_watched(norm: nn.Module) -> bool:
    """Whether someone waits for the norm itself to be called."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(norm, name) for name in hooks)


def _is_plain(values: torch.Tensor | None) -> bool:
    return values is None or (
        values.dtype == torch.float32 and values.device.type == "cpu" and values.is_contiguous()
    )


def norm_add_relu(
    norm: nn.BatchNorm2d, x: torch.Tensor, add: torch.Tensor | None, relu: bool
) -> torch.Tensor:
    """``relu(norm(x) + add)``, (N, C, H, W) in ``x``'s type; running statistics move as in PyTorch.

    Args:
        norm, x: `is_fusible`.
        add: in ``x``'s shape, or None; not changed.
        relu: False leaves the ReLU out.
    """
    if add is not None:
        add = add.to(x.dtype).contiguous(memory_format=torch.channels_last)
    own = Norm(norm.weight.detach(), norm.bias.detach(), norm.eps, *_running(norm))
    with torch.autocast("cpu", enabled=False):
        out = _NormAddReLU.apply(x, add, norm.weight, norm.bias, own, relu)
    for moved in own.running or ():  # written behind PyTorch's back; folded weights ask for it
        torch.autograd.graph.increment_version(moved)
    return out


def _running(norm: nn.BatchNorm2d) -> tuple[float, tuple[torch.Tensor, torch.Tensor] | None]:
    """Momentum and statistics to move, the batch counted: as ``nn.BatchNorm2d.forward``."""
    moves = norm.training and norm.track_running_stats and norm.running_mean is not None
    return count_batch(norm), (norm.running_mean, norm.running_var) if moves else None


def count_batch(norm: nn.BatchNorm2d) -> float:
    """Count one batch, once for all that is done with it; gives the weight of its statistics.

    As ``nn.BatchNorm2d.forward``: with momentum None the running statistics are the plain
    average of all batches so far.
    """
    if norm.training and norm.track_running_stats and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:
            return 1.0 / float(norm.num_batches_tracked)
    return norm.momentum or 0.0
