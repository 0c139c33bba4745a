"""The C sources as a shared library: compiled by the machine's own compiler, kept in its cache.

``RESNEXT_DET_NATIVE=off`` leaves it alone. The file's name says what went into it, sources,
compiler, flags and processor: another of any is compiled anew, and none is ever stale.
"""

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from ..errors import one_line
from ..machine import cache_folder, instructions, processor

logger = logging.getLogger(__name__)

FILES = ("common.h", "norm.c", "roi_align.c", "roi_pool.c")
SOURCES = tuple(Path(__file__).parent / name for name in FILES)
FLAGS = (
    *("-std=gnu11", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math"),
    *("-fopenmp", "-fPIC"),
)
SWITCH, OFF = "RESNEXT_DET_NATIVE", ("off", "0", "false", "no")
PATIENCE = 120  # seconds; a compiler needs one
LOADED = Path("/proc/self/maps")
OTHERS = stat.S_IWGRP | stat.S_IWOTH
_P, _N, _I, _F = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
SIGNATURES = {  # as in the sources: a call of another shape is refused by ctypes
    "norm_scratch": (_N, _N),
    "norm_forward": (*(_P,) * 3, _N, _N, *(_I,) * 3, _P, _P, _F, _F, *(_P,) * 5, _I),
    "norm_backward": (*(_P,) * 5, _N, _N, *(_I,) * 3, *(_P,) * 7, _I),
    "roi_pool_forward": (_P, *(_N,) * 3, _I, *(_P,) * 5, _N, _N, _P, _P, _I),
    "roi_pool_backward": (_P, _P, _I, _P, *(_N,) * 4, _P, _I),
    "roi_align_forward": (_P, *(_N,) * 3, _I, _P, _N, _N, _F, _N, _I, _P, _I),
    "roi_align_backward": (_P, *(_N,) * 3, _I, _P, _N, _N, _F, _N, _I, _P, _I),
}


class NoLibrary(Exception):
    """Why there is none, in one line."""


@functools.cache
def library() -> ctypes.CDLL | None:
    """The loaded library; None where it is switched off or cannot be had, which the log says."""
    if os.environ.get(SWITCH, "").lower() in OFF:
        return None
    try:
        found = _loaded()
    except (NoLibrary, OSError, subprocess.SubprocessError) as error:
        logger.info("no kernels in C, PyTorch's are used: %s", one_line(error))
        return None
    for name, types in SIGNATURES.items():
        function = getattr(found, name)
        function.argtypes, function.restype = types, _N if name == "norm_scratch" else None
    return found


def _loaded() -> ctypes.CDLL:
    """From the cache; where that is not ours, or nothing in it may be run, built for this process.

    Raises:
        NoLibrary, OSError, subprocess.SubprocessError: it cannot be built, or not loaded.
    """
    with contextlib.suppress(OSError):
        if folder := _own_folder():
            return ctypes.CDLL(str(_built(folder)))
    return ctypes.CDLL(str(_built(Path(_folder_of_this_process().name))))


def _built(folder: Path) -> Path:
    compiler, openmp = _compiler(), _openmp()
    version = _run([*compiler, "--version"])
    parts = [*(path.read_bytes() for path in SOURCES), *FLAGS, *compiler, version, str(openmp)]
    parts += [processor(), instructions()]
    name = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else part.encode()
        name.update(len(data).to_bytes(8, "little") + data)
    path = folder / f"{name.hexdigest()[:20]}.so"
    if not _is_ours(path, stat.S_ISREG):
        logger.info("compiling kernels in C for this processor, a few seconds: %s", path)
        _compile(compiler, openmp, path)
    return path


def _compiler() -> list[str]:
    """``$CC``, which may have words of its own ("ccache gcc"), or cc, or gcc."""
    if not sys.platform.startswith("linux"):
        raise NoLibrary(f"they are built on Linux only, this is {sys.platform}")
    for name in (os.environ.get("CC"), "cc", "gcc"):  # clang calls another OpenMP than torch's
        words = shlex.split(name or "")
        if words and (found := shutil.which(words[0])):
            return [found, *words[1:]]
    raise NoLibrary("there is no C compiler (cc or gcc; on Debian: apt install gcc)")


def _openmp() -> Path:
    """The OpenMP that torch computes with: a second one's threads would fight over the cores."""
    lines = LOADED.read_text().splitlines()
    paths = {line.split(maxsplit=5)[5] for line in lines if ".so" in line}
    found = [
        Path(path)
        for path in sorted(paths)
        if Path(path).name.startswith(("libgomp", "libiomp5", "libomp"))
    ]
    own = Path(torch.__file__).parent
    found.sort(key=lambda path: not {own, own.with_name("torch.libs")} & set(path.parents))
    if not found:
        raise NoLibrary("this torch computes without OpenMP")
    return found[0]


def _own_folder() -> Path | None:
    """A folder of the cache that only this user can write: what is loaded from it is run."""
    folder = cache_folder() / "native"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder if _is_ours(folder, stat.S_ISDIR) and os.access(folder, os.W_OK) else None


@functools.cache
def _folder_of_this_process() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="resnext_det-")


def _is_ours(path: Path, is_kind: Callable[[int], bool]) -> bool:
    """Whether it is there, no link, and only this user can have written it."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return is_kind(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & OTHERS


def _compile(compiler: list[str], openmp: Path, path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as aside:
        objects = []
        for source in (source for source in SOURCES if source.suffix == ".c"):
            objects.append(f"{aside}/{source.stem}.o")
            _run([*compiler, *FLAGS, "-c", str(source), "-o", objects[-1]])
        built = f"{aside}/{path.name}"
        # By its path and without -fopenmp, which would bring the compiler's own OpenMP along.
        _run([*compiler, "-shared", *objects, str(openmp), "-lm", "-o", built])
        os.chmod(built, 0o700)
        os.replace(built, path)


def _run(command: list[str]) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", timeout=PATIENCE, check=False
    )
    if done.returncode:
        said = done.stderr.strip() or f"exit status {done.returncode}"
        raise NoLibrary(f"{command[0]} failed: {said.splitlines()[0]}")
    return done.stdout
