"""The C sources as a shared library: compiled by the machine's own compiler, kept in its cache.

``RESNEXT_DET_NATIVE=off`` leaves it alone. The file's name says what went into it, sources,
compiler, flags and processor: another of any is compiled anew, and none is ever stale.
"""

import ctypes
import functools
import hashlib
import logging
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from ..errors import one_line
from ..machine import cache_folder, instructions, processor

logger = logging.getLogger(__name__)

FILES = ("common.h", "norm.c", "roi_align.c", "roi_pool.c")
SOURCES = tuple(Path(__file__).parent / name for name in FILES)
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC")
SWITCH = "RESNEXT_DET_NATIVE"
PATIENCE = 120  # seconds; a compiler needs one
LOADED = Path("/proc/self/maps")


class NoLibrary(Exception):
    """Why there is none, in one line."""


@functools.cache
def library() -> ctypes.CDLL | None:
    """The loaded library; None where it is switched off or cannot be had, which the log says."""
    if os.environ.get(SWITCH) == "off":
        return None
    try:
        return ctypes.CDLL(str(_built()))
    except (NoLibrary, OSError, subprocess.SubprocessError) as error:
        logger.info("no kernels in C, PyTorch's are used: %s", one_line(error))
        return None


def _built() -> Path:
    compiler, openmp = _compiler(), _openmp()
    version = _run([compiler, "--version"])
    parts = [*(path.read_bytes() for path in SOURCES), *FLAGS, compiler, version, str(openmp)]
    parts += [processor(), instructions()]
    name = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else part.encode()
        name.update(len(data).to_bytes(8, "little") + data)
    folder = _own_folder()
    path = folder / f"native-{name.hexdigest()[:20]}.so"
    if not _is_ours(path):
        logger.info("compiling kernels in C, once: %s", path)
        _compile(compiler, openmp, path)
    return path


def _compiler() -> str:
    if not sys.platform.startswith("linux"):
        raise NoLibrary(f"they are built on Linux only, this is {sys.platform}")
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        if name and (found := shutil.which(name)):
            return found
    raise NoLibrary("there is no C compiler (cc, gcc, clang; on Debian: apt install gcc)")


def _openmp() -> Path:
    """The OpenMP that torch computes with: a second one's threads would fight over the cores."""
    paths = {line.split()[-1] for line in LOADED.read_text().splitlines() if ".so" in line}
    found = [
        Path(path)
        for path in sorted(paths)
        if Path(path).name.startswith(("libgomp", "libiomp5", "libomp"))
    ]
    own = Path(torch.__file__).parent
    found.sort(key=lambda path: own not in path.parents)
    if not found:
        raise NoLibrary("this torch computes without OpenMP")
    return found[0]


def _own_folder() -> Path:
    """The cache, or where it cannot be written a folder of this process."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return Path(_folder_of_this_process().name)


@functools.cache
def _folder_of_this_process() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="resnext_det-")


def _is_ours(path: Path) -> bool:
    """Whether it is there and only this user can have written it: what is loaded is run."""
    try:
        found = path.stat()
    except OSError:
        return False
    others = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return found.st_uid == os.geteuid() and not others


def _compile(compiler: str, openmp: Path, path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".native-") as aside:
        objects = []
        for source in (source for source in SOURCES if source.suffix == ".c"):
            objects.append(f"{aside}/{source.stem}.o")
            _run([compiler, *FLAGS, "-c", str(source), "-o", objects[-1]])
        built = f"{aside}/{path.name}"
        # By its path and without -fopenmp, which would bring the compiler's own OpenMP along.
        _run([compiler, "-shared", *objects, str(openmp), "-lm", "-o", built])
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
