"""One process at a time writes into a folder: a lock on a small file, until the process ends.

The lock is the kernel's (``flock``): it ends with the process, whatever ends it, so that no stale
one is ever left. The file stays; it says who holds the lock, or held it last.
"""

import contextlib
import errno
import logging
import os
import socket
import time
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

from ..errors import InputError, one_line
from ..writing import told_of_writing

logger = logging.getLogger(__name__)

NAME = ".lock"
# Seconds: a process that was killed keeps its locks until its memory is given back, and one that
# only looks (`check_free`) holds one for an instant.
PATIENCE = 2.0
_HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
_held: dict[str, int] = {}  # by path of the lock file: the open file, -1 where a parent has it


def lock_folder(folder: str | Path, elsewhere: str = "choose another OUTPUT_DIR") -> None:
    """Take the folder for this process and those that it forks, until it ends; again is nothing.

    Where the file system keeps no locks, a notice says so and the run goes on.

    Args:
        folder: is there, and can be written.
        elsewhere: the mend beside waiting.

    Raises:
        InputError: another process has it; it is named with its machine. Or the disk is full.
    """
    path = Path(folder, NAME)
    if _is_ours(path):
        return
    if fcntl is None:
        logger.info("%s: no locks on this system; start no second run there", folder)
        return
    with told_of_writing(path):
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if not _take(file, fcntl.LOCK_EX):
            raise _in_use(folder, file, elsewhere)
        with told_of_writing(path):
            os.ftruncate(file, 0)
            os.write(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    except _NoLocks as error:
        os.close(file)
        logger.info("%s: %s; start no second run there", folder, error)
    except InputError:
        os.close(file)
        raise
    else:
        _held[os.path.realpath(path)] = file


def check_free(folder: str | Path, elsewhere: str = "choose another OUTPUT_DIR") -> None:
    """Raises InputError as `lock_folder`, and takes and writes nothing: to be told early."""
    path = Path(folder, NAME)
    if fcntl is None or _is_ours(path):
        return
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:  # no folder, or none with a lock; whether it can be made is another question
        return
    try:
        with contextlib.suppress(_NoLocks):
            if not _take(file, fcntl.LOCK_SH):
                raise _in_use(folder, file, elsewhere)
    finally:
        os.close(file)


def unlock_folder(folder: str | Path) -> None:
    """Give a folder back before the process ends; one that is not held stays as it is."""
    file = _held.pop(os.path.realpath(Path(folder, NAME)), -1)
    if file >= 0:
        os.close(file)


class _NoLocks(Exception):
    """The file system has none."""


def _is_ours(path: Path) -> bool:
    """Whether this process, or the one that it was forked from, holds the lock of this very file.

    A folder may have been removed and made again.
    """
    file = _held.get(os.path.realpath(path))
    if file is None:
        return False
    if file < 0 or (path.exists() and os.path.samestat(os.fstat(file), path.stat())):
        return True
    unlock_folder(path.parent)
    return False


def _take(file: int, kind: int) -> bool:
    """Whether the lock was free, or became so soon."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno not in _HELD:
                raise _NoLocks(f"the file system keeps no locks ({error.strerror})") from error
        if time.monotonic() > end:
            return False
        time.sleep(0.05)


def _in_use(folder: str | Path, file: int, elsewhere: str) -> InputError:
    holder = one_line(os.pread(file, 200, 0).decode(errors="replace")) or "another process"
    return InputError(
        folder, f"is in use by {holder} ({NAME})", f"wait for it or end it, or {elsewhere}"
    )


def _after_fork() -> None:
    """A child, as a data worker, may outlive its parent: the lock must not live on with it."""
    for path, file in _held.items():
        if file >= 0:
            os.close(file)
            _held[path] = -1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
