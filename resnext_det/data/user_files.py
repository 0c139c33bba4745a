"""Files of users, opened only where they are files."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

_OTHERS = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
_OTHERS |= dict.fromkeys((stat.S_IFCHR, stat.S_IFBLK), "a device")


def require_regular(path: str | Path) -> None:
    """Raises OSError, whose ``strerror`` says why, where reading ``path`` might never end.

    That is a pipe, which waits for a writer, or a device such as /dev/zero. A folder passes: to
    open it is an error of its own.
    """
    kind = _OTHERS.get(stat.S_IFMT(os.stat(path).st_mode))
    if kind:
        raise OSError(errno.EINVAL, f"it is {kind}, not a file", str(path))


def open_file(path: str | Path) -> BinaryIO:
    """A file, opened for reading bytes. Raises OSError as `open` and `require_regular` do."""
    require_regular(path)
    return open(path, "rb")


def read_file(path: str | Path) -> bytes:
    """A file's content. Raises OSError as `open_file`."""
    with open_file(path) as file:
        return file.read()
