"""The trunk by torch.compile (MODEL.COMPILE): in place, so that parameters keep their names.

The compiler fuses norms, ReLUs and additions into kernels of its own, which it makes in a minute or
so at the first batch of a shape, in training and in evaluation. What decides while a network runs
cannot be compiled: regrouping measures, recomputation switches norms. FUSE is not used beside it,
for folding and fusing are then the compiler's.
"""

import functools
import logging
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from ..errors import InputError, one_line
from .convolve import Compute

logger = logging.getLogger(__name__)

BACKEND: str | Callable = "inductor"  # torch.compile's default; tests take others


def check_compile(device: str, regroup: str, recompute: bool) -> None:
    """For the start of a training: whether MODEL.COMPILE can be had.

    Args:
        device: MODEL.DEVICE. regroup: MODEL.REGROUP. recompute: MODEL.RECOMPUTE.

    Raises:
        InputError: one of the other keys excludes it, or torch.compile does not work here; a
            trial on ``device`` finds that out, once a process, in seconds.
    """
    _check_others(regroup != "off", recompute)
    why = _why_not(torch.device(device).type, BACKEND)
    if why:
        raise InputError(
            "MODEL",
            f"COMPILE is True, and torch.compile does not work on {device} here ({why})",
            "install what it asks for (on a CPU a C++ compiler, on a GPU Triton and a C compiler), "
            "or set MODEL.COMPILE False",
        )


def compile_in_place(trunk: nn.Module, device: str) -> None:
    """Let ``trunk`` be compiled when it is first called; names in state dicts do not change.

    Where torch.compile does not work, the log says so once, and the trunk runs as it is: weights
    that were trained compiled serve on every machine.

    Args:
        trunk: its blocks hold their `Compute`.
        device: where it will run; "meta" leaves the trunk as it is, for nothing runs there.

    Raises:
        InputError: the trunk regroups or recomputes.
    """
    computes = [c for m in trunk.modules() if isinstance(c := getattr(m, "compute", None), Compute)]
    _check_others(
        any(compute.regrouping is not None for compute in computes),
        any(compute.recompute for compute in computes),
    )
    kind = torch.device(device).type
    if kind == "meta":
        return
    if why := _why_not(kind, BACKEND):
        _say_once(why)
        return
    for module in trunk.modules():
        if isinstance(getattr(module, "compute", None), Compute):
            module.compute = replace(module.compute, fuse=False)
    trunk.compile(backend=BACKEND)


def _check_others(regroups: bool, recomputes: bool) -> None:
    if regroups:
        raise InputError(
            "MODEL",
            'COMPILE is True and REGROUP is "auto", which measures while the network runs: that '
            "cannot be compiled",
            'set MODEL.REGROUP "off" or MODEL.COMPILE False',
        )
    if recomputes:
        raise InputError(
            "MODEL",
            "COMPILE and RECOMPUTE are both True: a compiled pass cannot leave the statistics of "
            "norms alone when it is repeated",
            "set one of them False",
        )


@functools.cache
def _why_not(kind: str, backend: str | Callable) -> str:
    """What keeps torch.compile from working on a kind of device, in one line; "" if nothing."""
    try:
        torch.compile(_trial, backend=backend)(torch.ones(64, device=kind))
    except Exception as error:  # of compilers, drivers and torch, many kinds
        return one_line(error)
    return ""


def _trial(x: torch.Tensor) -> torch.Tensor:
    return torch.relu(2 * x + 1).sum()


@functools.cache
def _say_once(why: str) -> None:
    logger.warning("MODEL.COMPILE is True, and torch.compile does not work here: %s", why)
