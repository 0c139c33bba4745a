"""Arrays out of an .npz file that anyone may have made: no pickle, no more memory than stated.

`numpy.load` refuses pickles, but allocates whatever a header says before it looks for the numbers,
and unpacks whatever a zip archive holds.
"""

import math
import zipfile
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy

from .user_files import open_file

EXPANSION = 500  # bytes of arrays for one byte of file; 2-D shapes on black reach 120
SLACK = 64 << 20  # bytes beyond that
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


class DamagedArrays(ValueError):
    """Which field cannot be read, if it is one, and why."""

    def __init__(self, field: str, reason: str):
        super().__init__(reason)
        self.field = field


def load_arrays(path: str | Path, leave_out: str = "") -> dict[str, np.ndarray]:
    """Every field of an .npz file but one.

    At most `EXPANSION` times the file's size and `SLACK` are unpacked.

    Raises:
        DamagedArrays: the file is no zip archive, or a field is cut short, overwritten, encrypted,
            of Python objects, or of another size than its header says.
    """
    fields, name = {}, ""
    try:
        with open_file(path) as file:
            if not zipfile.is_zipfile(file):
                raise ValueError("it is no zip file")
            with zipfile.ZipFile(file) as archive:
                size = file.seek(0, 2)
                entries = {e.filename.removesuffix(".npy"): e for e in archive.infolist()}
                entries.pop(leave_out, None)
                if sum(e.file_size for e in entries.values()) > EXPANSION * size + SLACK:
                    raise ValueError("it unpacks to far more than its own size")
                for name, entry in entries.items():
                    fields[name] = _array(archive, entry)
    except Exception as error:  # NumPy and zipfile raise what they like at wrong bytes
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DamagedArrays(name, reason) from error
    return fields


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(entry) as member:
        is_array = member.read(len(npy.MAGIC_PREFIX)) == npy.MAGIC_PREFIX
    if not is_array:  # as `numpy.load` does
        return np.asarray(archive.read(entry))
    with archive.open(entry) as member:
        _check_header(member, entry.file_size)
    with archive.open(entry) as member:
        return npy.read_array(member, allow_pickle=False)


def _check_header(member: BinaryIO, size: int) -> None:
    """Raises ValueError where shape and type do not make the bytes that are there."""
    version = npy.read_magic(member)
    if version not in _HEADERS:  # (3, 0) is for field names in Unicode, which no plain array has
        raise ValueError(f"its header is of version {version}")
    shape, _, dtype = _HEADERS[version](member)
    if dtype.hasobject:
        return  # refused where it is read
    due = size - member.tell()
    if not dtype.itemsize or min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != due:
        raise ValueError(f"its shape {shape} of {dtype} does not make {due} bytes")
