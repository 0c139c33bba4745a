"""The library's functions on tensors. Shapes and types are the callers' duty, see `trust`."""

from typing import NamedTuple

import torch

from .build import library

FLOATS = {"dtype": torch.float32, "device": "cpu"}  # whatever a process has for its defaults


class Norm(NamedTuple):
    """One batch norm in training, float32 (C,) each.

    Args:
        running: mean and variance, which a forward pass moves by ``momentum``; or None.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    eps: float
    momentum: float = 0.0
    running: tuple[torch.Tensor, torch.Tensor] | None = None


def _at(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _shape(x: torch.Tensor) -> tuple:
    """Rows, channels and whether they are halves, of (N, C, H, W) in channels_last."""
    channels = x.shape[1]
    return x.numel() // channels, channels, x.dtype == torch.bfloat16


def _scratch(x: torch.Tensor) -> torch.Tensor:
    channels = x.shape[1]
    return torch.empty(library().norm_scratch(x.numel() // channels, channels), **FLOATS)


def norm_forward(
    x: torch.Tensor, add: torch.Tensor | None, norm: Norm, relu: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """``relu(norm(x) + add)`` with the batch's statistics.

    Args:
        x, add: (N, C, H, W) in bf16 or float32 and channels_last, of one type; more than one pixel.

    Returns:
        The result, and the batch's mean and 1 / deviation, float32 (2, C).
    """
    y, kept = torch.empty_like(x), torch.empty(2, x.shape[1], **FLOATS)
    mean, var = norm.running or (None, None)
    scratch = _scratch(x)
    library().norm_forward(
        *(_at(x), _at(add), _at(y), *_shape(x), add is not None, relu),
        *(_at(norm.weight), _at(norm.bias), norm.eps, norm.momentum),
        *(_at(mean), _at(var), _at(kept[0]), _at(kept[1]), _at(scratch)),
        torch.get_num_threads(),
    )
    return y, kept


def norm_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor | None,
    norm: Norm,
    kept: torch.Tensor,
    relu: bool,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """Gradients of ``x``, what was added (None without), weight and bias.

    Args:
        grad: as ``x``.
        y: `norm_forward`'s result where something was added; None otherwise.
        kept: of `norm_forward`.
    """
    of_x, of_add = torch.empty_like(x), None if y is None else torch.empty_like(x)
    of_weight, of_bias = torch.empty(2, x.shape[1], **FLOATS).unbind()
    scratch = _scratch(x)
    library().norm_backward(
        *(_at(x), _at(y), _at(grad), _at(of_x), _at(of_add), *_shape(x)),
        *(y is not None, relu, _at(norm.weight), _at(norm.bias)),
        *(_at(kept[0]), _at(kept[1]), _at(of_weight), _at(of_bias), _at(scratch)),
        torch.get_num_threads(),
    )
    return of_x, of_add, of_weight, of_bias


def roi_pool_forward(
    cells: torch.Tensor,
    image: torch.Tensor,
    rows: tuple[torch.Tensor, torch.Tensor],
    cols: tuple[torch.Tensor, torch.Tensor],
    keep: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The largest value in each bin, 0 in one without cells.

    Args:
        cells: (N, H, W, C) in bf16 or float32, contiguous; H * W below 65,535.
        image: (R,) int32.
        rows, cols: first cell and the one behind the last of each bin, (R, P) int32.
        keep: whether a gradient will be wanted.

    Returns:
        (R, P, P, C) as ``cells``, and for the gradient as much in uint16.
    """
    _, height, width, channels = cells.shape
    rois, size = rows[0].shape
    out = cells.new_empty(rois, size, size, channels)
    which = torch.empty(out.shape, dtype=torch.uint16, device="cpu") if keep else None
    sides = [side.contiguous() for side in (*rows, *cols)]
    library().roi_pool_forward(
        *(_at(cells), height, width, channels),
        *(cells.dtype == torch.bfloat16, _at(image), *map(_at, sides)),
        *(rois, size, _at(out), _at(which), torch.get_num_threads()),
    )
    return out, which


def roi_pool_backward(
    grad: torch.Tensor, which: torch.Tensor, image: torch.Tensor, shape: torch.Size
) -> torch.Tensor:
    """The gradient of `roi_pool_forward`'s cells, float32 in their ``shape``.

    Args:
        grad: (R, P, P, C) in bf16 or float32, contiguous.
        which: of `roi_pool_forward`.
    """
    rois, rows, cols, channels = grad.shape
    total = torch.zeros(shape, **FLOATS)
    library().roi_pool_backward(
        *(_at(grad), _at(which), grad.dtype == torch.bfloat16, _at(image)),
        *(shape[1] * shape[2], channels, rois, rows * cols),
        *(_at(total), torch.get_num_threads()),
    )
    return total


def roi_align_forward(
    cells: torch.Tensor,
    rois: torch.Tensor,
    size: int,
    scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> torch.Tensor:
    """The mean of samples in each of ``size`` x ``size`` bins, as ``torchvision.ops.roi_align``.

    Args:
        cells: (N, H, W, C) in bf16 or float32, contiguous; H, W at least 1.
        rois: (R, 5) float32, contiguous: image number in 0..N-1, x1, y1, x2, y2 in pixels.
        scale: cells a pixel.
        sampling_ratio: samples along a side of a bin; 0 takes one for each cell of its length.
        aligned: whether coordinates count from a pixel's corner, and its centre is at 0.5.

    Returns:
        (R, P, P, C) as ``cells``, summed in float32.
    """
    out = cells.new_empty(len(rois), size, size, cells.shape[3])
    library().roi_align_forward(
        *(_at(cells), *cells.shape[1:], cells.dtype == torch.bfloat16),
        *(_at(rois), len(rois), size, scale, sampling_ratio),
        *(aligned, _at(out), torch.get_num_threads()),
    )
    return out


def roi_align_backward(
    grad: torch.Tensor,
    rois: torch.Tensor,
    shape: torch.Size,
    scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> torch.Tensor:
    """The gradient of `roi_align_forward`'s cells, float32 in their ``shape``.

    Args:
        grad: (R, P, P, C) in bf16 or float32, contiguous.
        rois, scale, sampling_ratio, aligned: of `roi_align_forward`.
    """
    total = torch.zeros(shape, **FLOATS)
    library().roi_align_backward(
        *(_at(grad), *shape[1:], grad.dtype == torch.bfloat16),
        *(_at(rois), len(rois), grad.shape[1], scale),
        *(sampling_ratio, aligned, _at(total), torch.get_num_threads()),
    )
    return total
