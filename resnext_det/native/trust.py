"""Whether the library gives PyTorch's results here: tried once a type, before it is used."""

import functools
import itertools
import logging
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F
from torchvision.ops import roi_align

from .build import library
from .kernels import (
    FLOATS,
    Norm,
    norm_backward,
    norm_forward,
    roi_align_backward,
    roi_align_forward,
    roi_pool_backward,
    roi_pool_forward,
)

logger = logging.getLogger(__name__)

# Mean error as a part of the mean value: rounding gives 1e-7 and 2e-3, a wrong place in memory 1.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
CHANNELS = 2100  # more than one block of rows has to be joined, and the last vector is not full


def is_recorded() -> bool:
    """Whether operators are being recorded, by a trace, an export or a compiler, not only run."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling()


def kernels_serve(x: torch.Tensor) -> bool:
    """Whether the library computes on ``x``, its device and type, and right.

    It reads memory: not of tensors that have none, nor where operators are being recorded.
    """
    return (
        x.device.type == "cpu"
        and x.dtype in TOLERANCES
        and type(x) in (torch.Tensor, torch.nn.Parameter)
        and not x.is_neg()
        and not is_recorded()
        and _agrees(x.dtype)
    )


def kernels_of(device: str) -> str:
    """ "C" where this process computes in them on ``device``, "PyTorch" otherwise."""
    serves = torch.device(device).type == "cpu" and all(map(_agrees, TOLERANCES))
    return "C" if serves else "PyTorch"


@functools.cache
def _agrees(dtype: torch.dtype) -> bool:
    if library() is None:
        return False
    # In a thread of its own, where no modes, hooks or default devices of the first caller hold.
    with ThreadPoolExecutor(1) as thread:
        errors = thread.submit(_errors, dtype).result()
    wrong = [f"{name} {error:.2g}" for name, error in errors.items() if not _is_small(error, dtype)]
    if wrong:
        logger.warning("kernels in C are wrong in %s, PyTorch's are used: %s", dtype, wrong)
    return not wrong


@torch.no_grad()
def _errors(dtype: torch.dtype) -> dict[str, float]:
    return {
        "norm": _error_of_norm(dtype),
        "RoIPool": _error_of_pool(dtype),
        "RoIAlign": _error_of_align(dtype),
    }


def _is_small(error: float, dtype: torch.dtype) -> bool:
    return error <= TOLERANCES[dtype]  # not a number is not


def _distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    found, expected = found.double(), expected.double()
    return float((found - expected).abs().mean() / expected.abs().mean())


def _error_of_norm(dtype: torch.dtype) -> float:
    # A generator of its own: a trial must not move a run's random numbers.
    random = torch.Generator().manual_seed(0)
    x, add, grad = (
        torch.randn(2, CHANNELS, 5, 3, generator=random, **FLOATS)
        .to(dtype)
        .contiguous(memory_format=torch.channels_last)
        for _ in range(3)
    )
    weight, bias = torch.rand(2, CHANNELS, generator=random, **FLOATS).unbind()
    sources = [x.float(), add.float(), weight.clone(), bias.clone()]
    statistics = [torch.zeros(CHANNELS, **FLOATS), torch.ones(CHANNELS, **FLOATS)]
    with torch.enable_grad():
        leaves = [source.requires_grad_() for source in sources]
        mapped = F.batch_norm(leaves[0], *statistics, *leaves[2:], True, 0.1, 1e-5)
        result = F.relu(mapped + leaves[1])
        expected = torch.autograd.grad(result, leaves, grad.float())
    running = (torch.zeros(CHANNELS, **FLOATS), torch.ones(CHANNELS, **FLOATS))
    norm = Norm(weight, bias, 1e-5, 0.1, running)
    y, kept = norm_forward(x, add, norm, relu=True)
    found = norm_backward(grad, x, y, norm, kept, relu=True)
    pairs = zip((y, *running, *found), (result, *statistics, *expected), strict=True)
    return sum(_distance(a.detach(), b.detach()) for a, b in pairs)  # not a number stays one


def _error_of_pool(dtype: torch.dtype) -> float:
    random = torch.Generator().manual_seed(0)
    order = torch.rand(2, 5, 6, 24, generator=random, **FLOATS).reshape(2, 30, 24).argsort(dim=1)
    cells = order.reshape(2, 5, 6, 24).to(dtype)  # each of 0..29 once: no two are equal
    image = torch.tensor([0, 1, 1], dtype=torch.int32)
    first = torch.tensor([[0, 2], [1, 1], [3, 0]], dtype=torch.int32)
    sides = first, first + torch.tensor([[2, 3], [1, 0], [2, 5]], dtype=torch.int32)
    out, which = roi_pool_forward(cells, image, sides, sides, keep=True)
    total = roi_pool_backward(out, which, image, cells.shape)
    expected, sums = torch.zeros_like(out), torch.zeros(cells.shape, **FLOATS)
    for r, i, j in itertools.product(range(3), range(2), range(2)):
        rows, cols = (slice(int(sides[0][r, n]), int(sides[1][r, n])) for n in (i, j))
        part = cells[image[r], rows, cols]
        if part.numel():
            largest = part.amax(dim=(0, 1))
            expected[r, i, j] = largest
            sums[image[r], rows, cols] += (part == largest) * largest.float()
    return _distance(out, expected) + _distance(total, sums)


def _error_of_align(dtype: torch.dtype) -> float:
    random = torch.Generator().manual_seed(0)
    cells = torch.randn(2, 5, 6, 300, generator=random, **FLOATS).to(
        dtype
    )  # more than one tile of channels
    grad = torch.randn(3, 2, 2, 300, generator=random, **FLOATS).to(dtype)
    # Inside; over a border; of no height, which has no samples where aligned and adaptive.
    rois = torch.tensor([[0, 3, 2, 9, 9], [1, -4, 5, 6, 30], [1, 1, 4, 11, 4]], **FLOATS)
    error = 0.0
    for sampling_ratio, aligned in ((0, True), (2, False)):
        how = (0.5, sampling_ratio, aligned)
        found = roi_align_forward(cells, rois, 2, *how)
        total = roi_align_backward(grad, rois, cells.shape, *how)
        with torch.enable_grad():
            leaf = cells.float().permute(0, 3, 1, 2).requires_grad_()
            expected = roi_align(leaf, rois, 2, *how)
            (sums,) = torch.autograd.grad(expected, leaf, grad.float().permute(0, 3, 1, 2))
        error += _distance(found.permute(0, 3, 1, 2), expected.detach())
        error += _distance(total.permute(0, 3, 1, 2), sums)
    return error  # not a number stays one
