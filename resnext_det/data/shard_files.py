"""One tar shard: its samples' places, read from the headers alone; nothing is unpacked."""

import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ..errors import InputError, shown
from .user_files import open_file

IMAGES, LABEL = ("jpg", "jpeg", "png", "webp"), "cls"
_DIGITS = re.compile(rb"\s*(\d{1,9})\s*")
_LONGEST_LABEL = 32  # bytes
_DAMAGED_TAR = (tarfile.TarError, OSError, ValueError, OverflowError, MemoryError, RecursionError)
_DAMAGED_TAR += (LookupError,)
_AGAIN = "write or copy the shard again"


def cannot_be_read(path: str | Path, error: OSError) -> InputError:
    return InputError(path, f"cannot be read ({error.strerror})", "check the file and the disk")


def read_shard(path: str | Path) -> Iterator[tuple[int, int, int]]:
    """(first byte, bytes, label) of every image in a shard, in order; only headers are read.

    Raises:
        InputError: the file is no whole tar archive, or names the first member that is neither a
            plain file nor a folder (a link, a device, a sparse file), has a path that is
            absolute or has a part "..", reaches beyond the archive, has no partner or two of a
            kind, or is a label other than up to nine digits.
    """
    try:
        file = open_file(path)
    except OSError as error:
        raise cannot_be_read(path, error) from error
    with file:
        yield from _samples(path, file)


def _samples(path: str | Path, file: BinaryIO) -> Iterator[tuple[int, int, int]]:
    waiting: dict[str, dict[str, tuple[int, int] | int]] = {}
    end = os.fstat(file.fileno()).st_size
    for member in _members(path, file):
        _check_member(path, member, end)
        key, kind = _key_and_kind(member)
        if not kind:
            continue
        sample = waiting.setdefault(key, {})
        if kind in sample:
            raise _bad_member(path, member.name, f"is the second {kind} of its key")
        place = member.offset_data, member.size
        sample[kind] = _label(path, member, file) if kind == "label" else place
        if len(sample) == 2:
            yield (*sample["image"], sample["label"])
            del waiting[key]
    for key, sample in waiting.items():
        raise _without_partner(path, key, sample)


def _members(path: str | Path, file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Every member. tarfile ends at a damaged header as it does at the end, and may go back."""
    last = -1
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                if member.offset <= last or member.size < 0:
                    raise tarfile.ReadError(f"the header at byte {member.offset} points backwards")
                last = member.offset
                tar.members.clear()  # it would hold them all
                yield member
            file.seek(tar.offset)
            mark = file.read(tarfile.BLOCKSIZE)
            if mark.strip(b"\0") or len(mark) < tarfile.BLOCKSIZE:
                raise tarfile.ReadError(f"damaged or cut short at byte {tar.offset}")
    except _DAMAGED_TAR as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(path, f"is not a whole plain tar archive ({reason})", _AGAIN) from error


def _bad_member(path: str | Path, name: str, found: str, mend: str = _AGAIN) -> InputError:
    return InputError(path, f"member {shown(name)} {found}", mend)


def _check_member(path: str | Path, member: tarfile.TarInfo, end: int) -> None:
    if member.name.startswith("/") or ".." in member.name.split("/"):
        raise _bad_member(path, member.name, "has a path that leaves the archive")
    if member.isdir():
        return
    if not member.isreg() or member.issparse():
        kind = "a link" if member.issym() or member.islnk() else "no plain file"
        mend = "write the shard again with the files themselves"
        raise _bad_member(path, member.name, f"is {kind}", mend)
    if member.offset_data + member.size > end:
        raise _bad_member(path, member.name, f"of {member.size} bytes reaches beyond the archive")


def _key_and_kind(member: tarfile.TarInfo) -> tuple[str, str]:
    """("images/0001", "image") for images/0001.jpg; the kind is "" for what is passed over."""
    folder, _, name = member.name.rpartition("/")
    stem, _, suffix = name.partition(".")
    kinds = {**dict.fromkeys(IMAGES, "image"), LABEL: "label"}
    kind = kinds.get(suffix.lower(), "") if stem and not member.isdir() else ""
    return f"{folder}/{stem}", kind


def _label(path: str | Path, member: tarfile.TarInfo, file: BinaryIO) -> int:
    file.seek(member.offset_data)
    text = file.read(min(member.size, _LONGEST_LABEL))
    found = _DIGITS.fullmatch(text)
    if not found or member.size > _LONGEST_LABEL:
        mend = "write the label as text, a number from 0 on"
        raise _bad_member(path, member.name, f"holds {text}", mend)
    return int(found[1])


def _without_partner(path: str | Path, key: str, sample: dict) -> InputError:
    has, lacks = ("image", LABEL) if "image" in sample else ("label", "|".join(IMAGES))
    return InputError(
        path,
        f"the {has} of key {shown(key.removeprefix('/'))} has no .{lacks} beside it",
        f"write <key>.{IMAGES[0]} and <key>.{LABEL} of every sample into one shard; an archive of "
        "one class is to be unpacked into the folder of the class",
    )
