"""Weights files of other programs: which kind it is, its contents read safely, its tensors named.

The kind is told from the contents, never from the file's name. Nothing in a file is run.
"""

import io
import logging
import mmap
import os
import tarfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from ..errors import InputError
from .machine import AGAIN, EXPANSION, SLACK, STATE_DICT, Refused, mapped, phrase, told_of
from .pickles import read_pickle
from .torch_pickles import TorchPickle

logger = logging.getLogger(__name__)

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

# Under which key training programs keep the weights; the first that is there is taken.
WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "blobs",
    "state_dict_ema",
    "model_ema",
)
MAX_WRAPPERS = 3  # {"model": {"state_dict": ...}} and one more
PREFIXES = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile
DETECTRON1_NOTES = ("weight_order", "cfg")  # texts that stand among Detectron1's blobs
MAX_NOTE = 200  # characters of a text that is handed on


@dataclass(frozen=True)
class Contents:
    """What a file holds.

    Args:
        kind: as `container_kind`.
        tree: safetensors: flat dict of tensors; torch: as `torch.load` gives it, on the CPU;
            pickle: as `read_pickle`; torch7: None (read elsewhere).
        metadata: of a safetensors file; else empty.
    """

    kind: str
    tree: Any
    metadata: dict[str, str] = field(default_factory=dict)


def container_kind(path: str | Path) -> str:
    """ "safetensors", "torch" (torch.save, both forms), "pickle" or "torch7", from the contents.

    Raises:
        InputError: the file is missing, empty, no file, or something else (a web page, a git-LFS
            pointer, an archive), which is named.
    """
    if not Path(path).exists():
        raise InputError(path, "the weights file does not exist", "check the path")
    if not Path(path).is_file():
        raise InputError(path, "is no file", "give the weights file itself")
    with told_of(path):
        with open(path, "rb") as file:
            head = file.read(HEAD)
        return _kind_of(head)


def _kind_of(head: bytes) -> str:
    """Raises Refused."""
    if not head:
        raise Refused("is empty", AGAIN)
    if head.startswith(ZIP_MAGIC):
        return "torch"
    if _is_tar(head):  # before torch's older form: a file can be both, and torch would unpack it
        raise Refused("is a tar archive", "unpack it with tar -xf and give the weights in it")
    # Before the pickles: the length of a safetensors header may end in their first byte.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**32:
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


def read_container(path: str | Path) -> Contents:
    """The whole file, read without running any of it; takes a few times the file's size.

    Raises:
        InputError: as `container_kind` and `read_pickle`; the file is cut off, damaged, unpacks
            to far more than its size, is TorchScript, or asks for a global (it is named).
    """
    kind = container_kind(path)
    if kind == "safetensors":
        return _read_safetensors(path)
    if kind == "torch":
        return Contents(kind, _read_torch(path))
    return Contents(kind, read_pickle(path) if kind == "pickle" else None)


def _read_safetensors(path: str | Path) -> Contents:
    with told_of(path), safe_open(str(path), framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return Contents("safetensors", tensors, dict(file.metadata() or {}))


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


def tensors_of(contents: Contents, path: str | Path) -> tuple[dict[str, torch.Tensor], dict]:
    """The weights as one flat dict, out of the wrappers that training programs put around them.

    A prefix of `PREFIXES` that all names have is taken off. Detectron1's ``*_momentum`` blobs
    stay; its None entries and notes go to the extras.

    Args:
        path: the file's name, for messages.

    Returns:
        name -> tensor (dense, on the CPU, dtype as stored), and the extras: whatever stands
        beside the weights. Numbers, short texts, True, False and None keep their values; the rest
        (an optimizer's state, other weights) is only described, as "(dict of 3)".

    Raises:
        InputError: there are no tensors; or, naming it, an entry is no tensor, is sparse,
            quantised, complex or without values, or holds NaN or infinity.
    """
    with told_of(path):
        weights, extras = _unwrap(contents.tree)
        tensors = {}
        for name, value in weights.items():
            is_note = value is None or type(value) in (bool, int, float)
            if contents.kind == "pickle" and (is_note or name in DETECTRON1_NOTES):
                extras.setdefault(name, _note(value))
            else:
                tensors[_name(name)] = _tensor(phrase(name), value)
        if not tensors:
            raise Refused("holds no tensors", STATE_DICT)
        return _without_prefix(tensors), extras


def _unwrap(tree: Any) -> tuple[dict, dict]:
    extras: dict[str, Any] = {}
    for _ in range(MAX_WRAPPERS):
        if not isinstance(tree, dict):
            break
        keys = [key for key in WRAPPERS if _holds_tensors(tree.get(key))]
        if not keys:
            return tree, extras
        for key in keys[1:]:
            logger.info("the weights are those under %r; %r is left", keys[0], key)
        for key, value in tree.items():
            if key != keys[0]:
                extras.setdefault(str(key), _note(value))
        tree = tree[keys[0]]
    if not isinstance(tree, dict):
        raise Refused(f"holds {_describe(tree)}, not a dict of tensors", STATE_DICT)
    return tree, extras


def _holds_tensors(value: Any) -> bool:
    """Whether a dict holds a tensor, itself or in a dict inside."""
    return isinstance(value, dict) and any(
        isinstance(v, torch.Tensor | np.ndarray) or _holds_tensors(v) for v in value.values()
    )


def _note(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    short = isinstance(value, str) and len(value) <= MAX_NOTE
    return value if short or type(value) in (bool, int, float, type(None)) else _describe(value)


def _describe(value: Any) -> str:
    """ "(dict of 3)", "(tensor of (64, 3, 7, 7))": never the value, which may be of any size."""
    if isinstance(value, torch.Tensor | np.ndarray):
        return f"(tensor of {tuple(value.shape)})"
    size = f" of {len(value)}" if isinstance(value, dict | list | tuple | str | bytes) else ""
    return f"({type(value).__name__}{size})"


def _name(name: Any) -> str:
    if not isinstance(name, str):
        raise Refused(f"names a tensor by {_describe(name)}, not by text", STATE_DICT)
    return name


def _tensor(name: str, value: Any) -> torch.Tensor:
    """The value as a plain tensor. Raises Refused."""
    if isinstance(value, np.ndarray | np.generic):
        value = torch.from_numpy(np.asarray(value))
    if not isinstance(value, torch.Tensor):
        raise Refused(f"{name} is {_describe(value)}, not a tensor", STATE_DICT)
    kinds = {
        "nested": value.is_nested,
        "sparse": value.layout != torch.strided,
        "quantised": value.is_quantized,
        "complex": value.is_complex(),
        "meta (without values)": value.is_meta,
    }
    for kind, holds in kinds.items():
        if holds:
            raise Refused(f"{name} is a {kind} tensor", "give dense tensors of real numbers")
    value = value.detach()
    if value.is_floating_point() and not _is_finite(value):
        raise Refused(f"{name} holds NaN or infinity", "give weights from a run that did not fail")
    return value


def _is_finite(value: torch.Tensor) -> bool:
    value = value.float() if value.itemsize == 1 else value  # float8 has no isfinite
    return bool(torch.isfinite(value).all())


def _without_prefix(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found = [p for p in PREFIXES if all(k.startswith(p) and k != p for k in tensors)]
    if not found:
        return tensors
    return _without_prefix({key.removeprefix(found[0]): value for key, value in tensors.items()})
