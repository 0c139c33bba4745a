"""Weights files of other programs, read safely: nothing in a file is run."""

import io
import mmap
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from .kinds import ZIP_MAGIC, container_kind
from .machine import EXPANSION, SLACK, STATE_DICT, Refused, mapped, phrase, told_of
from .pickles import read_pickle
from .torch_pickles import TorchPickle


@dataclass(frozen=True)
class Contents:
    """What a file holds.

    Args:
        kind: as `container_kind`.
        tree: safetensors: flat dict of tensors; torch: as `torch.load` gives it, on the CPU;
            pickle: as `read_pickle`; torch7: None (read elsewhere).
    """

    kind: str
    tree: Any


def read_container(path: str | Path) -> Contents:
    """The whole file, read without running any of it; takes a few times the file's size.

    Raises:
        InputError: as `container_kind` and `read_pickle`; the file is cut off, damaged, unpacks
            to far more than its size, is TorchScript, or asks for a global (it is named).
    """
    kind = container_kind(path)
    readers = {"safetensors": _read_safetensors, "torch": _read_torch, "pickle": read_pickle}
    return Contents(kind, readers[kind](path) if kind in readers else None)


def _read_safetensors(path: str | Path) -> dict[str, torch.Tensor]:
    with told_of(path), safe_open(str(path), framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def _read_torch(path: str | Path) -> Any:
    with told_of(path):
        with mapped(path) as stream:
            is_zip = stream[:4] == ZIP_MAGIC  # as torch tells it: the end does not count
            if not is_zip:
                _check_legacy(stream)
        if is_zip:
            _check_zip(path)
        # A file, not its name: torch looks at the name's ending.
        with open(path, "rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)


def _check_zip(path: str | Path) -> None:
    """torch.save since torch 1.6: one folder with data.pkl and a record for each storage."""
    size = os.path.getsize(path)
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        sizes = {entry.filename: entry.file_size for entry in entries}
        # Python and torch would find different entries where the archive is not the whole file.
        if archive.comment or min((entry.header_offset for entry in entries), default=0):
            raise Refused("is a zip archive with something before or behind it")
        if len({name.lower() for name in sizes}) < len(entries):
            raise Refused("is a zip archive with two entries of one name")
        if sum(sizes.values()) > EXPANSION * size + SLACK:
            raise Refused("is a zip archive that unpacks to far more than its own size")
        folder = next(iter(sizes), "").split("/")[0]
        if f"{folder}/constants.pkl" in sizes:
            raise Refused("is a TorchScript archive, which holds code", STATE_DICT)
        if f"{folder}/data.pkl" not in sizes:
            raise Refused("is a zip archive without torch's data.pkl", STATE_DICT)
        text = archive.read(f"{folder}/data.pkl")
    pickle = TorchPickle(io.BytesIO(text), size)
    pickle.run()
    for key, count in pickle.storages.items():
        # Older torch reads beyond a record that is shorter than its pickle says.
        if count and sizes.get(f"{folder}/data/{key}") != count:
            raise ValueError(f"record data/{phrase(key)} is not of {count} bytes")


def _check_legacy(stream: mmap.mmap) -> None:
    """torch.save before: five pickles, then each storage as its int64 length and its bytes."""
    size = len(stream)
    for _ in ("magic number", "version", "machine"):
        TorchPickle(stream, size).run()
    pickle = TorchPickle(stream, size)
    pickle.run()
    keys = TorchPickle(stream, size).run()
    if type(keys) is not list or set(map(str, keys)) != set(pickle.storages):
        raise ValueError("its storages are not those that its tensors use")
    end = stream.tell() + sum(8 + count for count in pickle.storages.values())
    if end > size:
        raise ValueError(f"{end - size} bytes are missing at its end")
