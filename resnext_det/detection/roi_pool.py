"""RoIPool in any type and channels_last: torchvision's values and gradients, sooner.

torchvision's operator visits every cell of every bin for each channel, on one thread, and writes
fp32 in the other memory layout. On a CPU with a compiler `native` does it channels side by side on
all threads. Elsewhere, without gradients, the maximum over a bin is that of four overlapping
windows whose sides are powers of two, and the maxima over all such windows are made once for the
image; a bin then costs four reads of contiguous channels. A maximum is one of its inputs, so that
no rounding is involved: values are equal, bit for bit.
"""

import torch
from torch.autograd.function import once_differentiable

from ..native import kernels_serve, roi_pool_backward, roi_pool_forward

CHUNK = 3000  # bins at a time, so that what is gathered stays in the cache
MOST_CELLS = 2**16 - 1  # that `native` tells apart


def roi_pool(feature: torch.Tensor, rois: torch.Tensor, size: int, scale: float) -> torch.Tensor:
    """Largest value in each of ``size`` x ``size`` bins of every RoI (Girshick 2015, Sec. 2.1).

    Args:
        feature: (N, C, H, W), best in channels_last; finite. Gradients reach it where `is_native`.
        rois: (R, 5) float32: image number, x1, y1, x2, y2 in pixels of the image.
        size: bins along a side.
        scale: of the feature, cells a pixel.

    Returns:
        (R, C, size, size) in ``feature``'s type, channels_last; 0 in bins that hold no cell. The
        rules of rounding are those of torchvision's ``roi_pool``.
    """
    height, width = feature.shape[2:]
    rows = _bins(rois[:, 2], rois[:, 4], size, scale, height)
    cols = _bins(rois[:, 1], rois[:, 3], size, scale, width)
    cells = feature.permute(0, 2, 3, 1).contiguous()
    pool = _Pool.apply if is_native(feature) else _by_windows
    return pool(cells, rois[:, 0], rows, cols).permute(0, 3, 1, 2)


def is_native(feature: torch.Tensor) -> bool:
    """Whether `roi_pool` computes on ``feature`` in C, which has gradients."""
    return kernels_serve(feature) and feature.shape[2] * feature.shape[3] < MOST_CELLS


Sides = tuple[torch.Tensor, torch.Tensor]  # first cell and the one behind the last: (R, P), int64


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, cells, image, rows, cols):
        image, *sides = (side.int() for side in (image, *rows, *cols))
        keep = ctx.needs_input_grad[0]
        pooled, which = roi_pool_forward(cells, image, sides[:2], sides[2:], keep)
        if keep:
            ctx.save_for_backward(which, image)
        ctx.shape, ctx.dtype = cells.shape, cells.dtype
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        which, image = ctx.saved_tensors
        grad = roi_pool_backward(grad.contiguous(), which, image, ctx.shape)
        return grad.to(ctx.dtype), None, None, None


def _by_windows(cells: torch.Tensor, image: torch.Tensor, rows: Sides, cols: Sides) -> torch.Tensor:
    """(R, P, P, C) of cells (N, H, W, C), without gradients."""
    (tops, bottoms), (lefts, rights) = rows, cols
    _, height, width, channels = cells.shape
    table, bases, levels = _windows(cells, bottoms - tops, rights - lefts)
    image = image.long()[:, None]

    def rows_of(top: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
        place = ((image * height + top)[:, :, None] * width) + left[:, None, :]
        return (bases + place).reshape(-1)

    high, wide = (1 << level for level in levels)
    # An empty bin may lie behind the last cell; what it reads is not used.
    above = tops.clamp(max=height - 1), (bottoms - high).clamp(min=0)
    beside = lefts.clamp(max=width - 1), (rights - wide).clamp(min=0)
    corners = [rows_of(top, left) for top in above for left in beside]
    pooled = _largest(table, corners)
    empty = ((bottoms <= tops)[:, :, None] | (rights <= lefts)[:, None, :]).reshape(-1)
    if empty.any():
        pooled[empty] = 0
    return pooled.reshape(*tops.shape, lefts.shape[1], channels)


def _bins(first: torch.Tensor, last: torch.Tensor, size: int, scale: float, cells: int) -> Sides:
    """Of each bin along a side."""
    # Halves go away from zero, as C's round; in float64, where adding 0.5 rounds nothing away.
    start, end = (((side * scale).double() + 0.5).floor().long() for side in (first, last))
    length = (end - start + 1).clamp(min=1).float() / size
    numbers = torch.arange(size + 1, device=first.device, dtype=torch.float32)
    edges = length[:, None] * numbers
    low = edges[:, :-1].floor().long() + start[:, None]
    high = edges[:, 1:].ceil().long() + start[:, None]
    return low.clamp(0, cells), high.clamp(0, cells)


def _windows(
    cells: torch.Tensor, heights: torch.Tensor, widths: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """The maxima over all windows of 2^i x 2^j cells that bins need.

    Returns:
        The maxima (windows, C); where the table of each bin's (i, j) begins in it, (R, P, P); and
        the levels i, j of every bin, (R, P) each.
    """
    levels = tuple(_level(lengths) for lengths in (heights, widths))
    highest = [int(level.max()) if level.numel() else 0 for level in levels]
    tables, tall = [], cells
    for i in range(highest[0] + 1):
        tall = tall if i == 0 else _doubled(tall, 2 ** (i - 1), dim=1)
        both = tall
        for j in range(highest[1] + 1):
            both = both if j == 0 else _doubled(both, 2 ** (j - 1), dim=2)
            tables.append(both.reshape(-1, cells.shape[3]))
    number = levels[0][:, :, None] * (highest[1] + 1) + levels[1][:, None, :]
    return torch.cat(tables), number * len(tables[0]), levels


def _level(lengths: torch.Tensor) -> torch.Tensor:
    """floor(log2) of lengths of 1 or more, 0 for 0."""
    return torch.frexp(lengths.clamp(min=1).double()).exponent.long() - 1


def _doubled(maxima: torch.Tensor, step: int, dim: int) -> torch.Tensor:
    """Maxima over windows twice as long along ``dim``; those that reach out stay as they are."""
    length = maxima.shape[dim]
    if step >= length:
        return maxima
    doubled = maxima.clone()
    inside = doubled.narrow(dim, 0, length - step)
    torch.maximum(inside, maxima.narrow(dim, step, length - step), out=inside)
    return doubled


def _largest(table: torch.Tensor, corners: list[torch.Tensor]) -> torch.Tensor:
    """Row by row the maximum of the four rows of ``table``."""
    pooled = table.new_empty(len(corners[0]), table.shape[1])
    for first in range(0, len(pooled), CHUNK):
        own = slice(first, first + CHUNK)
        part = pooled[own]
        torch.index_select(table, 0, corners[0][own], out=part)
        for corner in corners[1:]:
            torch.maximum(part, table.index_select(0, corner[own]), out=part)
    return pooled
