"""Files that are written whole or not at all, and what is told where a disk takes no more.

A file is written beside its place, under a name with the process's number, forced to the disk,
and renamed: a process or a machine that dies leaves the former file, or none.
"""

import contextlib
import errno
import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from .errors import not_written

# The error's number in what safetensors, which is no Python, says of it.
_NUMBER = re.compile(r"\bos error (\d+)|\bcode: (\d+)")
_UMASK = os.umask(0o077)  # only read by setting it; while a module is imported there is one thread
os.umask(_UMASK)
_NO_SYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)  # some file systems have none


@contextmanager
def told_of_writing(path: str | Path, elsewhere: str = "") -> Iterator[None]:
    """Put what the system refuses while the block writes ``path`` into words.

    Args:
        elsewhere: the mend where room is not what is missing, as "choose another --output".

    Raises:
        InputError: in place of an error with the system's number.
    """
    try:
        yield
    except Exception as error:
        number = _number(error)
        if number is None:
            raise
        raise not_written(path, number, os.strerror(number), elsewhere) from error


def _number(error: Exception) -> int | None:
    if isinstance(error, FileExistsError):  # what should be the folder is a file
        return errno.ENOTDIR
    if isinstance(error, OSError):
        return error.errno
    found = None if isinstance(error, ValueError) else _NUMBER.search(str(error))
    return int(found[1] or found[2]) if found else None


@contextmanager
def written_whole(path: str | Path, elsewhere: str = "") -> Iterator[Path]:
    """A path beside ``path`` to write to, which takes its place when all went well.

    Its folder is made where it is missing.

    Raises:
        InputError: see `told_of_writing`; nothing is left then but the former file.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with told_of_writing(path, elsewhere):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield aside
            _to_disk(aside)
            # As `open` makes files; safetensors makes private ones.
            os.chmod(aside, 0o666 & ~_UMASK)
            os.replace(aside, path)
        finally:
            with contextlib.suppress(OSError):  # renamed, or its folder is not to be written
                aside.unlink()


def _to_disk(path: Path) -> None:
    """A file system may say only now that it has no room; behind the rename it would be late."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(number)


@contextmanager
def open_whole(
    path: str | Path, mode: str = "wb", elsewhere: str = "", **others: Any
) -> Iterator[IO]:
    """As `written_whole`, with the file open; ``mode`` and the others are those of ``open``."""
    with written_whole(path, elsewhere) as aside, open(aside, mode, **others) as file:
        yield file


def write_text(path: str | Path, text: str, elsewhere: str = "") -> None:
    """A text file in UTF-8, whole or not at all. Raises InputError as `written_whole`."""
    with open_whole(path, "w", elsewhere, encoding="utf-8") as file:
        file.write(text)


def write_array(path: str | Path, array: np.ndarray) -> None:
    """A .npy file, whole or not at all. Raises InputError as `written_whole`."""
    content = io.BytesIO()  # to a file NumPy writes by itself, and hides the system's error
    np.save(content, array, allow_pickle=False)
    with open_whole(path) as file:
        file.write(content.getbuffer())


class _Keeping:
    """A file for torch.save, which would end with an error of its own and hide the system's."""

    def __init__(self, file: IO[bytes]):
        self.file, self.error = file, None

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                return self.file.write(data)
            except OSError as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        if self.error is None:
            self.file.flush()


@contextmanager
def open_for_torch(path: str | Path) -> Iterator[_Keeping]:
    """As `open_whole`, for ``torch.save(data, file)``.

    Raises:
        InputError: what the system said in the middle of it.
    """
    with written_whole(path) as aside, open(aside, "wb") as file:
        keeping = _Keeping(file)
        yield keeping
        if keeping.error is not None:
            raise keeping.error
