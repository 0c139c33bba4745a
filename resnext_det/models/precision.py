"""Which arithmetic a network runs in, and on which processors bf16 is worth using."""

import logging

import torch

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


def resolve_precision(precision: str, device_type: str) -> str:
    """ "auto" becomes "bf16" where the processor has it, else "fp32"."""
    if precision != "auto":
        return precision
    return "bf16" if has_bf16(device_type) else "fp32"


def autocast(precision: str, device_type: str) -> torch.autocast:
    """The context in which convolutions run; ``precision`` is a key of ``DTYPES``."""
    if precision == "fp32":  # a dtype of its own would be refused, though not used
        return torch.autocast(device_type, enabled=False)
    return torch.autocast(device_type, dtype=DTYPES[precision])


def in_layout(x: torch.Tensor, channels_last: bool) -> torch.Tensor:
    """``x`` (N, C, H, W) in the memory layout the convolutions are fastest with."""
    if not channels_last:
        return x
    return x.contiguous(memory_format=torch.channels_last)
