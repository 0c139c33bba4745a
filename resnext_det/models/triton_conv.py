"""Grouped 3x3 convolutions on a GPU as one kernel of our own, written in Triton.

A program takes a tile of pixels and a block of channels that holds whole groups. Tap by tap it
multiplies the pixels by the block's weights, laid out block-diagonally: the zeros between the
groups arise in the load, no larger weight is stored. So groups of 4 channels reach the matrix
units, which want 16, and the input is read once a block, not once a group. The gradient of the
input is the same product, read from the result; that of the weight sums over shares of the pixels,
and keeps the diagonal blocks. All sums are in float32 and in one order: the same input gives the
same bits.

`regroup` loads this file, where Triton is installed and the tensors are on a GPU. Measured against
the library's kernels like every other way (`measured`), it is used where it wins.
"""

import itertools
from typing import NamedTuple

import torch
import triton
import triton.language as tl

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
PIXELS = {16: 128, 32: 64, 64: 64}  # of a program, by its channels: more do not fit its registers
WARPS = {16: 4, 32: 4, 64: 8}
PIXELS_AT_ONCE = 64  # that a program of the weight's gradient reads before the next ones
PROGRAMS = 1024  # of the weight's gradient, about: several for each processor of a large GPU
MOST = 2**30  # elements of a map when measured; places are counted in 32 bits
SIZES = ["rows_in", "cols_in", "rows_out", "cols_out", "rows", "cols", "pixels", "share"]

Place = tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]


class _Move(NamedTuple):
    """Result's (row, tap) to the source's row: (row * step + shift + tap * reach) / up, if whole.

    Of columns the same. ``up`` > 1, the gradient of a convolution's input with that stride, has
    rows that only some taps reach: they fall into ``up`` phases, each with taps of its own.
    """

    step: int
    shift: int
    reach: int
    up: int = 1


@triton.jit
def _read(
    source, image, row, col, rows, cols, is_pixel, channel, is_channel, CHANNELS: tl.constexpr
):
    """(pixels, channels) out of channels_last memory; zero beside the image."""
    inside = is_pixel & (row >= 0) & (row < rows) & (col >= 0) & (col < cols)
    pixel = ((image * rows + row) * cols + col) * CHANNELS
    mask = inside[:, None] & is_channel[None, :]
    return tl.load(source + pixel[:, None] + channel[None, :], mask=mask, other=0.0)


@triton.jit(do_not_specialize=[name for name in SIZES if name != "share"])
def _convolve_block(
    source, weights, bias, target,
    rows_in, cols_in, rows_out, cols_out, rows, cols, pixels,
    stride_group, stride_out, stride_in, stride_row, stride_col,
    GROUPS: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr,
    STEP: tl.constexpr, SHIFT: tl.constexpr, REACH: tl.constexpr, UP: tl.constexpr,
    ROW: tl.constexpr, COL: tl.constexpr,
    PRECISION: tl.constexpr, PACKED: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A tile of the result's pixels (of phase ROW, COL), PACKED groups of its channels."""
    pixel = tl.program_id(0) * TILE + tl.arange(0, TILE)
    col = pixel % cols
    row = pixel // cols % rows
    image = pixel // (cols * rows)
    first = tl.program_id(1) * PACKED
    lane = tl.arange(0, BLOCK)
    is_in = (lane < PACKED * IN) & (first * IN + lane < GROUPS * IN)
    is_out = (lane < PACKED * OUT) & (first * OUT + lane < GROUPS * OUT)
    own = (lane // IN)[:, None] == (lane // OUT)[None, :]
    is_weight = own & is_in[:, None] & is_out[None, :]
    weight = (first + lane // IN) * stride_group + lane % IN * stride_in
    filters = weights + weight[:, None] + (lane % OUT * stride_out)[None, :]
    total = tl.full((TILE, BLOCK), 0.0, tl.float32)
    for tap in tl.static_range(9):
        if (ROW * STEP + SHIFT + (tap // 3) * REACH) % UP == 0:
            if (COL * STEP + SHIFT + (tap % 3) * REACH) % UP == 0:
                values = _read(
                    source, image,
                    row * STEP + (ROW * STEP + SHIFT + (tap // 3) * REACH) // UP,
                    col * STEP + (COL * STEP + SHIFT + (tap % 3) * REACH) // UP,
                    rows_in, cols_in, pixel < pixels, first * IN + lane, is_in, GROUPS * IN,
                )  # fmt: skip
                at_tap = filters + (tap // 3) * stride_row + (tap % 3) * stride_col
                block = tl.load(at_tap, mask=is_weight, other=0.0)
                total = tl.dot(values, block, total, input_precision=PRECISION)
    if bias is not None:
        total += tl.load(bias + first * OUT + lane, mask=is_out, other=0.0)[None, :].to(tl.float32)
    place = (image * rows_out + row * UP + ROW) * cols_out + col * UP + COL
    output = target + place[:, None] * (GROUPS * OUT) + (first * OUT + lane)[None, :]
    mask = (pixel < pixels)[:, None] & is_out[None, :]
    tl.store(output, total.to(target.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=SIZES[:2] + SIZES[4:])
def _correlate_block(
    source, slopes, target,
    rows_in, cols_in, rows, cols, pixels, share,
    GROUPS: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr,
    STEP: tl.constexpr, SHIFT: tl.constexpr, REACH: tl.constexpr,
    PRECISION: tl.constexpr, PACKED: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One tap's weights of PACKED groups, summed over ``share`` of the result's pixels."""
    first = tl.program_id(1) * PACKED
    tap = tl.program_id(2)
    lane = tl.arange(0, BLOCK)
    is_in = (lane < PACKED * IN) & (first * IN + lane < GROUPS * IN)
    is_out = (lane < PACKED * OUT) & (first * OUT + lane < GROUPS * OUT)
    total = tl.full((BLOCK, BLOCK), 0.0, tl.float32)
    for start in range(0, share, TILE):
        pixel = tl.program_id(0) * share + start + tl.arange(0, TILE)
        col = pixel % cols
        row = pixel // cols % rows
        image = pixel // (cols * rows)
        values = _read(
            source, image, row * STEP + SHIFT + tap // 3 * REACH,
            col * STEP + SHIFT + tap % 3 * REACH,
            rows_in, cols_in, pixel < pixels, first * IN + lane, is_in, GROUPS * IN,
        )  # fmt: skip
        slope = _read(
            slopes, image, row, col, rows, cols, pixel < pixels,
            first * OUT + lane, is_out, GROUPS * OUT,
        )  # fmt: skip
        total = tl.dot(tl.trans(slope), values, total, input_precision=PRECISION)
    own = (lane // OUT)[:, None] == (lane // IN)[None, :]
    output = (tl.program_id(0) * (GROUPS * OUT) + first * OUT + lane) * IN
    place = (output[:, None] + (lane % IN)[None, :]) * 9 + tap
    tl.store(target + place, total, mask=own & is_out[:, None] & is_in[None, :])


def blocks(
    x: torch.Tensor, weight: torch.Tensor, stride: tuple[int, int], groups: int
) -> list[int]:
    """Numbers of channels that a program may take of this layer; [] where it is not served.

    Served are grouped 3x3 convolutions in channels_last memory and fp16, bf16 or fp32, of 2 to 64
    channels a group.

    Args:
        x: (N, C_in, H, W). weight: (C_out, C_in / groups, k, k).
    """
    widest = max(x.shape[1], len(weight))
    if (
        tuple(weight.shape[2:]) != (3, 3)
        or groups == 1
        or widest == groups  # depthwise: nothing to multiply by a matrix
        or stride[0] != stride[1]
        or x.dtype not in DTYPES
        or not x.is_contiguous(memory_format=torch.channels_last)
        or x.numel() // x.shape[1] * widest > MOST
    ):
        return []
    smallest = max(16, triton.next_power_of_2(widest // groups))
    # Twice as many share what a program reads but its pixels, at the price of more zeros.
    return [n for n in (smallest, 2 * smallest) if n in PIXELS and (n == smallest or n <= widest)]


def forward(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, place: Place, block: int
) -> torch.Tensor:
    """The convolution, (N, C_out, H_out, W_out) in channels_last memory and ``x``'s type.

    Args:
        x: (N, C_in, H, W). weight: (C_out, C_in / groups, 3, 3), of the same type, in any memory
            format. bias: (C_out,) or None.
        place: stride, padding, dilation, groups; the first three the same both ways.
        block: one of `blocks`.

    Raises:
        ValueError: another ``place``, or groups wider than ``block``.
        Exception: whatever Triton raises where it cannot compile or start the kernel.
    """
    stride, padding, dilation, groups = _square(place)
    sides = [(side + 2 * padding - 2 * dilation - 1) // stride + 1 for side in x.shape[2:]]
    out = _empty((len(x), len(weight), *sides), x)
    of_out, of_in, *of_taps = weight.stride()
    widths = (weight.shape[1], len(weight) // groups)
    strides = (widths[1] * of_out, of_out, of_in, *of_taps)
    move = _Move(step=stride, shift=-padding, reach=dilation)
    _convolve(x, weight, bias, out, groups, widths, strides, move, block)
    return out


def grad_input(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, place: Place, block: int
) -> torch.Tensor:
    """The gradient of ``x``, in its shape; arguments and errors as for `forward`.

    Args:
        grad: of the result, (N, C_out, H_out, W_out).
    """
    stride, padding, dilation, groups = _square(place)
    out = _empty(x.shape, x)
    of_out, of_in, *of_taps = weight.stride()
    widths = (len(weight) // groups, weight.shape[1])
    strides = (widths[0] * of_out, of_in, of_out, *of_taps)
    move = _Move(step=1, shift=padding, reach=-dilation, up=stride)
    _convolve(grad, weight, None, out, groups, widths, strides, move, block)
    return out


def grad_weight(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, place: Place, block: int
) -> torch.Tensor:
    """The gradient of ``weight``, in its shape and type; arguments as for `grad_input`."""
    stride, padding, dilation, groups = _square(place)
    outs, ins = len(weight), weight.shape[1]
    packed = _packed(block, (ins, outs // groups))
    rows, cols = grad.shape[2:]
    pixels, programs = len(grad) * rows * cols, 9 * triton.cdiv(groups, packed)
    most = triton.cdiv(pixels, max(1, PROGRAMS // programs))
    share = PIXELS_AT_ONCE * triton.cdiv(most, PIXELS_AT_ONCE)
    shares = triton.cdiv(pixels, share)
    parts = torch.empty((shares, outs, ins, 3, 3), dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        _correlate_block[(shares, triton.cdiv(groups, packed), 9)](
            _last(x), _last(grad), parts, *x.shape[2:], rows, cols, pixels, share,
            GROUPS=groups, IN=ins, OUT=outs // groups,
            STEP=stride, SHIFT=-padding, REACH=dilation,
            PRECISION=_precision(), PACKED=packed, TILE=PIXELS_AT_ONCE, BLOCK=block,
        )  # fmt: skip
    return parts.sum(0).to(weight.dtype)


def _convolve(
    source: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    target: torch.Tensor,
    groups: int,
    widths: tuple[int, int],
    strides: tuple[int, ...],
    move: _Move,
    block: int,
) -> None:
    """Fill ``target``.

    Args:
        widths: channels of a group, of source and target.
        strides: of the weight, by group, target's channel, source's channel, row and column.
    """
    packed, pixels_of_program = _packed(block, widths), PIXELS[block]
    source = _last(source)
    for phase in itertools.product(range(move.up), repeat=2):
        sides = zip(target.shape[2:], phase, strict=True)
        rows, cols = (triton.cdiv(side - first, move.up) for side, first in sides)
        pixels = len(target) * rows * cols
        if pixels == 0:  # one row has no second phase
            continue
        grid = (triton.cdiv(pixels, pixels_of_program), triton.cdiv(groups, packed))
        with torch.cuda.device_of(source):  # Triton starts on the current one
            _convolve_block[grid](
                source, weight, bias, target, *source.shape[2:], *target.shape[2:],
                rows, cols, pixels, *strides,
                GROUPS=groups, IN=widths[0], OUT=widths[1],
                STEP=move.step, SHIFT=move.shift, REACH=move.reach, UP=move.up,
                ROW=phase[0], COL=phase[1],
                PRECISION=_precision(), PACKED=packed, TILE=pixels_of_program, BLOCK=block,
                num_warps=WARPS[block],
            )  # fmt: skip


def _square(place: Place) -> tuple[int, int, int, int]:
    *pairs, groups = place
    if any(first != second for first, second in pairs):
        raise ValueError(f"stride, padding and dilation differ by direction: {pairs}")
    return (*(first for first, _ in pairs), groups)


def _packed(block: int, widths: tuple[int, int]) -> int:
    """How many whole groups a block of channels holds."""
    if max(widths) > block:
        raise ValueError(f"groups of {max(widths)} channels in blocks of {block}")
    return block // max(widths)


def _last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _empty(shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
    last = torch.channels_last
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=last)


def _precision() -> str:
    """Of products in float32: as torch's own convolutions, in TF32 unless it is switched off."""
    conv = getattr(torch.backends.cudnn, "conv", None)  # torch 2.9 and newer
    is_tf32 = torch.backends.cudnn.allow_tf32 if conv is None else conv.fp32_precision == "tf32"
    return "tf32" if is_tf32 else "ieee"
