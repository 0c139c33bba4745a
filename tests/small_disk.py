"""A disk that takes no more, for tests: the system's own limit of a file's size."""

import contextlib
import resource
from collections.abc import Iterator


@contextlib.contextmanager
def small_disk(size: int) -> Iterator[None]:
    """While the block runs, no file of this process grows beyond ``size`` bytes (EFBIG)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def contents(folder) -> dict[str, bytes]:
    """All files below a folder, by their names."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
