"""The pictures of a data set looked at before training: headers in parallel, pixels on demand.

Sizes are those that the reader (`images.read_array`) returns: turned as the EXIF tag says.
"""

import multiprocessing
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from typing import BinaryIO, NamedTuple

from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from ..errors import InputError, shown
from .images import IS_PROGRAM, PROGRAMS, has_transparency
from .user_files import open_file

ORIENTATION = 0x0112  # the EXIF tag
SWAPPING = (5, 6, 7, 8)  # its values that exchange width and height
CHUNK = 32  # pictures a task
FEW = 500  # so many are decoded sooner than processes for it have started
WORKERS = min(16, 2 * (os.cpu_count() or 1))  # threads: headers wait for the disk
TOO_LARGE = "has too many pixels"
_ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
_BEGINNINGS = {
    b"version https://git-lfs": "is a Git LFS pointer instead of the picture",
    b"<": "is a text or web page instead of a picture",
}


class Header(NamedTuple):
    """What a picture says of itself.

    Args:
        width, height: pixels, as stored.
        orientation: the EXIF tag, 1 (upright) where there is none.
        mode: Pillow's name of the channels, "RGB", "L", ...
        format: Pillow's name of the format, "JPEG", ...
        transparent: pixels may be transparent.
        error: why the picture cannot be read; "" if it can.
    """

    width: int = 0
    height: int = 0
    orientation: int = 1
    mode: str = ""
    format: str = ""
    transparent: bool = False
    error: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) as the reader returns them."""
        turned = self.orientation in SWAPPING
        return (self.height, self.width) if turned else (self.width, self.height)


def set_pixel_limit(pixels: int) -> None:
    """Pictures of more pixels are refused by Pillow in this process (DATASETS.MAX_IMAGE_PIXELS).

    Pillow raises an error at twice its own limit, and warns from there on.
    """
    Image.MAX_IMAGE_PIXELS = pixels // 2


def read_header(path: str, *, decode: bool = False) -> Header:
    """The header of one picture. Never raises: what is wrong is in ``error``.

    The end of a JPEG or PNG is looked at as well, which finds a file that was cut off.

    Args:
        decode: read the pixels too.
    """
    try:
        with open_file(path) as file:
            if os.fstat(file.fileno()).st_size == 0:
                return Header(error="is empty (0 bytes)")
            image = Image.open(file)
            if image.format in PROGRAMS:
                return Header(error=IS_PROGRAM)
            header = Header(
                *image.size,
                orientation=_orientation(image),
                mode=image.mode,
                format=image.format or "",
                transparent=has_transparency(image),
            )
            if header.format == "TIFF" and header.orientation in SWAPPING:
                image.load()  # Pillow turns it, some of its versions already on opening
                header = header._replace(width=image.height, height=image.width)
            if decode or not _has_its_end(file, header.format):
                image.load()
            if decode and header.transparent and header.mode == "P":
                image.convert("RGBA")  # fails where there are more transparencies than colours
            return header
    except Image.DecompressionBombError as error:
        count = re.search(r"\d+", str(error))
        return Header(error=f"{TOO_LARGE}: {count[0] if count else error}")
    except OSError as error:
        return Header(error=_why(path, error))
    # Whatever a damaged file makes a decoder raise: struct.error, SyntaxError, IndexError, ...
    except Exception as error:
        found = shown(f"{type(error).__name__}: {error}")
        return Header(error=f"cannot be read as an image ({found})")


def _why(path: str, error: OSError) -> str:
    if error.errno is not None:
        return f"cannot be opened ({error.strerror})"
    if isinstance(error, UnidentifiedImageError):
        with open(path, "rb") as file:
            begin = file.read(64).lstrip()
        for first, what in _BEGINNINGS.items():
            if begin.startswith(first):
                return what
        return "is of no image format that Pillow knows"
    return f"cannot be read as an image ({shown(str(error))})"


def _orientation(image: Image.Image, whole: bool = False) -> int:
    """The tag as the reader takes it: a damaged one is none.

    Args:
        whole: look for it behind the pixels of a PNG too, which decodes them.
    """
    try:
        exif = image.getexif() if whole else Image.Image.getexif(image)
        orientation = exif.get(ORIENTATION, 1)
        return orientation if orientation in range(2, 9) else 1
    except Exception:
        return 1


def read_late_orientation(path: str, header: Header) -> Header:
    """``header`` with the tag that a PNG may hold behind its pixels."""
    if header.format != "PNG" or header.orientation != 1:
        return header
    with Image.open(path) as image:
        return header._replace(orientation=_orientation(image, whole=True))


def _has_its_end(file: BinaryIO, kind: str) -> bool:
    """False where a JPEG or PNG does not end as it should: then only decoding tells."""
    end = _ENDS.get(kind)
    if end is None:
        return True
    place = file.tell()
    file.seek(0, os.SEEK_END)
    file.seek(-min(len(end), file.tell()), os.SEEK_END)
    found = file.read()
    file.seek(place)
    return found == end


# ---- many at once ----


def read_headers(
    paths: Sequence[str], *, decode: bool = False, workers: int = 0, progress: bool = False
) -> list[Header]:
    """`read_header` of every path, in their order.

    Headers are read by threads, pixels (which hold Python's lock) by processes.

    Args:
        workers: threads or processes; 0: chosen from the number of cores.
        progress: show a bar on a terminal.

    Raises:
        InputError: a process was ended from outside (for want of memory) while it decoded.
    """
    if workers < 0:
        raise InputError("--workers", f"is {workers}", "give 0 (by the number of cores) or more")
    chunks = [paths[begin : begin + CHUNK] for begin in range(0, len(paths), CHUNK)]
    what = "pictures decoded" if decode else "picture headers"
    with (
        _pool(decode and len(paths) > FEW, workers) as pool,
        tqdm(total=len(paths), desc=what, disable=None if progress else True) as bar,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # of Pillow's, which name no file
        headers: list[Header] = []
        try:
            for part in pool.map(partial(_read_chunk, decode=decode), chunks):
                headers += part
                bar.update(len(part))
        except BrokenProcessPool as error:
            raise InputError(
                paths[len(headers)],
                "a process was ended while it decoded this picture or one soon after it",
                "give fewer --workers (they share the memory), or look for a giant picture",
            ) from error
    return headers


def _read_chunk(paths: Sequence[str], decode: bool) -> list[Header]:
    return [read_header(path, decode=decode) for path in paths]


@contextmanager
def _pool(processes: bool, workers: int) -> Iterator[Executor]:
    if not processes:
        with ThreadPoolExecutor(workers or WORKERS) as pool:
            yield pool
        return
    # A fork of a process that has threads (torch's) may hang.
    context = multiprocessing.get_context("spawn")
    count = workers or os.cpu_count() or 1
    arguments = (Image.MAX_IMAGE_PIXELS,)
    with ProcessPoolExecutor(count, context, _start_process, arguments) as pool:
        yield pool


def _start_process(pixels: int | None) -> None:
    Image.MAX_IMAGE_PIXELS = pixels
    warnings.simplefilter("ignore")
