"""Which processor this is, and the folder that keeps what was measured or built for it."""

import functools
import os
import platform
import tempfile
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


@functools.cache
def processor() -> str:
    """The processor's name, as "AMD EPYC 9554"."""
    return _line("model name") or platform.processor() or platform.machine()


@functools.cache
def instructions() -> str:
    """What the processor can do, as the kernel lists it; "" where it does not."""
    return _line("flags") or _line("Features")


def _line(name: str) -> str:
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), "")


def cache_folder() -> Path:
    """``RESNEXT_DET_CACHE``, or ``resnext_det`` in the user's own folder of caches."""
    if own := os.environ.get("RESNEXT_DET_CACHE"):
        return Path(own)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base, "resnext_det")
    try:
        return Path.home() / ".cache" / "resnext_det"
    except RuntimeError:  # a user without a home, as in some containers
        return Path(tempfile.gettempdir(), f"resnext_det-{os.getuid()}")
