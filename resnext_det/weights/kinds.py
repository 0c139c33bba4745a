"""Which kind of weights file a file is, told from its first bytes and never from its name."""

import os
import tarfile
from pathlib import Path

from ..errors import InputError
from .machine import AGAIN, STATE_DICT, Refused, told_of

HEAD = 1024  # bytes that tell the kind
ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # torch.save's first number until torch 1.6
TORCH7_OBJECTS = (3, 4)  # a table, or an object of a class; as int32, then its int32 index
# What weights are often mistaken for: first bytes, what it is, the mend.
OTHERS = (
    (b"version https://git-lfs", "is a git-LFS pointer, not the file itself", "run git lfs pull"),
    (b"\x1f\x8b", "is compressed by gzip", "unpack it with gunzip"),
    (b"BZh", "is compressed by bzip2", "unpack it with bunzip2"),
    (b"\xfd7zXZ", "is compressed by xz", "unpack it with unxz"),
    (b"\x89HDF", "is an HDF5 file (Keras)", STATE_DICT),
    (b"\x93NUMPY", "is a single NumPy array", STATE_DICT),
    (b"4\n1\n3\nV 1", "is a Torch7 file in text form", "save it in Torch7's binary form"),
)
WEB_PAGES = (b"<!doctype", b"<html", b"<?xml")
A_RUNS = "model_final.safetensors"  # what every training run of this package leaves


def require_file(path: str | Path) -> None:
    """Raises InputError where ``path`` is no file: an address, a folder, or not there."""
    if os.path.isfile(path):
        return
    if "://" in str(path):
        raise InputError(path, "is an address, not a file", "download it and give the file")
    if os.path.isdir(path):
        inside = Path(path, A_RUNS)
        mend = f"give {inside}" if inside.is_file() else "give a file in it"
        raise InputError(path, "is a folder, not a weights file", mend)
    if os.path.exists(path):
        raise InputError(path, "is no file", "give the weights file itself")
    raise InputError(
        path,
        "the weights file does not exist",
        f"check the path; a training run writes such files (`make demo`: "
        f"output/demo/classification/{A_RUNS}), and those of torchvision, timm, Detectron2, "
        'Detectron and Torch7 are read too (MODEL.WEIGHTS "" trains from random weights)',
    )


def container_kind(path: str | Path) -> str:
    """ "safetensors", "torch" (torch.save, both forms), "pickle" or "torch7", from the contents.

    Raises:
        InputError: the file is missing, empty, no file, or something else (a web page, a git-LFS
            pointer, an archive), which is named.
    """
    require_file(path)
    with told_of(path):
        return _kind_of(_head(path))


def is_safetensors(path: str | Path) -> bool:
    """Whether a file begins as one; it may be anything. Raises InputError as `require_file`."""
    require_file(path)
    with told_of(path):
        return _begins_as_safetensors(_head(path))


def _head(path: str | Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(HEAD)


def _begins_as_safetensors(head: bytes) -> bool:
    """By the JSON that follows its own length, 8 bytes."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**32


def _kind_of(head: bytes) -> str:
    """Raises Refused."""
    if not head:
        raise Refused("is empty", AGAIN)
    if head.startswith(ZIP_MAGIC):
        return "torch"
    if _is_tar(head):  # before torch's older form: a file can be both, and torch would unpack it
        raise Refused("is a tar archive", "unpack it with tar -xf and give the weights in it")
    # Before the pickles: the length of a safetensors header may end in their first byte.
    if _begins_as_safetensors(head):
        return "safetensors"
    if head[:1] == b"\x80":
        return "torch" if LEGACY_MAGIC in head[2:32] else "pickle"
    if int.from_bytes(head[:4], "little") in TORCH7_OBJECTS and any(head[4:8]):
        return "torch7"
    if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:9].lower().startswith(WEB_PAGES):
        raise Refused(
            "is a web page, not weights",
            "download the file itself, not the page that links to it",
        )
    for start, found, mend in OTHERS:
        if head.startswith(start):
            raise Refused(found, mend)
    raise Refused(
        f"is no weights file (it begins with {head[:8].hex(' ')})",
        f"{AGAIN}, or give safetensors, torch.save, Caffe2 pickle or Torch7",
    )


def _is_tar(head: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True
