"""Which arithmetic a network runs in, and on which processors bf16 is worth using."""

import functools
import logging
import time

import torch
import torch.nn.functional as F

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def has_bf16(device_type: str) -> bool:
    """Whether the processor has bf16 instructions (AVX512-BF16, AMX, or a GPU's)."""
    if device_type == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return device_type == "cpu" and _cpu_has_bf16()


def _cpu_has_bf16() -> bool:
    # Private names, absent from some releases: a missing one counts as "no".
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in probes)


# Of one convolution in bf16 against fp32: releases of torch were 4 to 16 times slower, or wrong, on
# some processors. Where bf16 is right it takes a third to all of fp32's time; noise is no reason.
SLOWEST, LARGEST_ERROR = 1.5, 0.03


def resolve_precision(precision: str, device_type: str) -> str:
    """ "auto" becomes "bf16" where the processor has it and a trial shows no fault, else "fp32"."""
    if precision != "auto":
        return precision
    return "bf16" if has_bf16(device_type) and bf16_serves(device_type) else "fp32"


@functools.cache
def bf16_serves(device_type: str) -> bool:
    """Try one convolution in both types, once a process; what is wrong goes to the log.

    Returns:
        False where bf16 takes more than `SLOWEST` times fp32's time, or is off by more than
        `LARGEST_ERROR` of the largest value.
    """
    found = {dtype: _try_convolution(device_type, dtype) for dtype in ("fp32", "bf16")}
    (expected, plain), (values, half) = found["fp32"], found["bf16"]
    slower = half / plain
    error = float((values - expected).abs().max() / expected.abs().max())
    if slower <= SLOWEST and error <= LARGEST_ERROR:
        return True
    logger.warning(
        "bf16 takes %.1f times fp32's time here and is off by %.2g of the largest value: "
        'MODEL.PRECISION "auto" is fp32',
        slower,
        error,
    )
    return False


@torch.no_grad()
def _try_convolution(device_type: str, precision: str) -> tuple[torch.Tensor, float]:
    """Result in float32, and the best of three times in seconds."""
    random = torch.Generator("cpu").manual_seed(0)
    dtype, best = DTYPES[precision], float("inf")
    # On the CPU also where a network is just being built on another device, as on "meta".
    shapes = ((4, 64, 28, 28), (64, 64, 3, 3))
    x, weight = (torch.randn(s, generator=random, device="cpu") for s in shapes)
    x, weight = (
        t.to(device_type, dtype).contiguous(memory_format=torch.channels_last) for t in (x, weight)
    )
    with autocast("fp32", device_type):
        for _ in range(4):  # the first one pays for memory and code
            start = time.perf_counter()
            out = F.conv2d(x, weight, padding=1)
            if device_type == "cuda":
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - start)
    return out.float(), best


def autocast(precision: str, device_type: str) -> torch.autocast:
    """The context in which convolutions run; ``precision`` is a key of ``DTYPES``."""
    if precision == "fp32":  # a dtype of its own would be refused, though not used
        return torch.autocast(device_type, enabled=False)
    return torch.autocast(device_type, dtype=DTYPES[precision])


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """What comes after the convolutions, pooling, boxes and losses, is in float32 or more."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def in_layout(x: torch.Tensor, channels_last: bool) -> torch.Tensor:
    """``x`` (N, C, H, W) in the memory layout the convolutions are fastest with."""
    if not channels_last:
        return x
    return x.contiguous(memory_format=torch.channels_last)
