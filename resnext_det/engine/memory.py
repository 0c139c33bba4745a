"""How much memory a piece of work needs at most, as the log says it; and memory kept for reuse."""

import contextlib
import ctypes
import logging
from collections.abc import Iterator
from pathlib import Path

import torch

logger = logging.getLogger(__name__)

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of <malloc.h>
_LARGEST_BLOCK, _LARGEST_TRIM = 2**25, 2**31 - 1  # the most that glibc takes
_OWN_TRIM = 2 * _LARGEST_BLOCK  # what glibc arrives at by itself, once it has met such blocks
_open: list[dict[str, int]] = []  # of each block that runs now: bytes by whose they are


@contextlib.contextmanager
def peak_memory(what: str) -> Iterator[None]:
    """Log the most memory that was in use at once while the block ran; blocks may lie in blocks.

    Of this process (resident; its data workers have their own) where the system tells it, as Linux
    does, and of the GPU where one is used.

    Args:
        what: for the line, as "training".
    """
    _begin_anew()
    _open.append({})
    try:
        yield
    finally:
        _note()
        found = [f"{size / 2**30:.2f} GiB of {whose}" for whose, size in _open.pop().items()]
        if found:
            logger.info("peak memory of %s: %s", what, ", ".join(found))


def _begin_anew() -> None:
    """Forget the peak of before, which the blocks around keep."""
    _note()
    with contextlib.suppress(OSError):  # no such file, or not allowed: the peak is of all before
        _CLEAR.write_text("5")
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def _note() -> None:
    for whose, size in _peaks():
        for block in _open:
            block[whose] = max(size, block.get(whose, 0))


def _peaks() -> Iterator[tuple[str, int]]:
    with contextlib.suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                yield "this process", int(line.split()[1]) * 1024
    if torch.cuda.is_initialized():
        yield "the GPU", torch.cuda.max_memory_allocated()


def keep_freed_memory(keep: bool = True) -> bool:
    """Keep what this process frees for what it asks for next; blocks of up to 32 MiB.

    glibc gives large blocks back to the system, which clears every page of the next one: a
    twentieth to a tenth of a step on a CPU. What a run needs at most grows by 0 to 4 %, over ten
    image sizes in turn (blocks are not much larger: see ROIS_AT_ONCE in detection/roi_heads.py).

    Args:
        keep: False goes back to what glibc does by itself once it has met such blocks.

    Returns:
        Whether this system has the switch (glibc, ``mallopt``).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    trim = _LARGEST_TRIM if keep else _OWN_TRIM
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST_BLOCK) and mallopt(_TRIM_THRESHOLD, trim))
