"""WebDataset tar shards: millions of images in a few large files, still read at random places.

A split is the plain ``.tar`` files in ROOT/train or ROOT/val (or ROOT/validation), or those in
ROOT whose names have the word at their beginning or after "-", "_" or "."
(``imagenet-train-0001.tar``). As in WebDataset, a member's key is its path up to the first dot of
its file name, and the rest says what it is: an image and a label of one key make a sample.

    0001.jpg  0001.cls      the label as text, "7"
    0002.png  0002.cls

Members of other kinds, folders and names that begin with "." are passed over. ROOT/classes.txt
names the classes, one a line; without it they are called "0", "1", ...

Nothing is unpacked: the headers are read once, and an image later from its place.
"""

import contextlib
import functools
import logging
import os
import re
import tarfile
from array import array
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from detectron2.config import CfgNode
from torch import nn
from torch.utils.data import Dataset

from ..errors import InputError, shown
from .class_folders import list_folder
from .images import read_rgb
from .npz import DamagedArrays, load_arrays
from .reduced import reader_of
from .shard_files import cannot_be_read, read_shard
from .user_files import read_file

logger = logging.getLogger(__name__)

IMAGES, LABEL = ("jpg", "jpeg", "png", "webp"), "cls"
FOLDERS = {"train": ("train",), "val": ("val", "validation")}
_SPLIT = re.compile(r"(?:^|[-_.])(train|val)", re.IGNORECASE)
_TAR = re.compile(r"\.(tar|tar\.(gz|bz2|xz|zst)|tgz|tbz2|txz)$", re.IGNORECASE)
_MOST_OPEN = 128  # shards that a process holds open
_AGAIN = "write or copy the shard again"


def shards_of(root: str | Path, split: str) -> list[Path]:
    """The shards of "train" or "val" in the order of their names; none where the split has folders.

    Raises:
        InputError: they lie in two places, or some are compressed.
    """
    root, found = Path(root), {}
    for folder in (root / name for name in FOLDERS[split] if (root / name).is_dir()):
        folders, files = list_folder(folder)
        if folders:
            return []
        found[folder] = [folder / name for name in files if _TAR.search(name)]
    files = list_folder(root)[1] if root.is_dir() else []
    found[root] = [root / n for n in files if _TAR.search(n) and _split_of(n) == split]
    places = {place: paths for place, paths in found.items() if paths}
    if len(places) > 1:
        where = " and ".join(map(str, places))
        raise InputError(root, f"{split} shards lie in {where}", "leave them in one of the two")
    paths = [path for paths in places.values() for path in paths]
    for path in (path for path in paths if path.suffix.lower() != ".tar"):
        raise InputError(
            path, "is compressed, and shards are read at random places", "make it a plain .tar"
        )
    return paths


def _split_of(name: str) -> str:
    word = _SPLIT.search(name)
    return word[1].lower() if word else ""


# ---- the index ----


@dataclass(frozen=True)
class Index:
    """Where every image lies, packed: 32 bytes an image.

    Args:
        shards: the files.
        table: int64 (N, 4): number of the shard, first byte of the image in it, bytes of the
            image, label.
    """

    shards: tuple[Path, ...]
    table: np.ndarray

    def place(self, row: int) -> str:
        """The shard and the member of an image, for messages (a name's first 100 letters)."""
        shard, offset = self.table[row, :2].tolist()
        with open(self.shards[shard], "rb") as file:
            file.seek(offset - tarfile.BLOCKSIZE)
            name = file.read(100).split(b"\0")[0].decode("utf-8", "replace")
        return f"{self.shards[shard]}, member {shown(name)}"


def read_index(shards: list[Path], cache: Path) -> Index:
    """The index of some shards, from ``cache`` or else from the shards' headers.

    The cache counts only while names, sizes and times of change of the shards are as they were;
    one that cannot be written is done without.

    Raises:
        InputError: names the shard and the member that cannot be used, see `read_shard`.
    """
    return _read_index(tuple(shards), tuple(_stamp(path) for path in shards), cache)


def _stamp(path: Path) -> tuple[str, int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise cannot_be_read(path, error) from error
    return path.name, status.st_size, status.st_mtime_ns


@functools.lru_cache(maxsize=4)  # both splits, each asked for by both: to know the classes
def _read_index(shards: tuple[Path, ...], stamp: tuple, cache: Path) -> Index:
    names, sizes, times = (np.array(column) for column in zip(*stamp, strict=True))
    facts = {"names": names, "sizes": sizes.astype(np.int64), "times": times.astype(np.int64)}
    table = _from_cache(cache, facts)
    if table is None:
        logger.info("%s: reading the headers of %d shards", shards[0].parent, len(shards))
        table = np.concatenate([_rows(number, path) for number, path in enumerate(shards)])
        _to_cache(cache, {**facts, "table": table})
    return Index(shards, table)


def _rows(number: int, path: Path) -> np.ndarray:
    flat = array("q")
    for sample in read_shard(path):
        flat.extend((number, *sample))
    if not flat:
        kinds = ", ".join(IMAGES)
        raise InputError(path, f"holds no image ({kinds})", "remove the shard, or write it again")
    return np.frombuffer(flat, np.int64).reshape(-1, 4)


def _from_cache(cache: Path, facts: dict[str, np.ndarray]) -> np.ndarray | None:
    """The table, if the cache is whole and of just these shards."""
    if not cache.is_file():
        return None
    try:
        found = load_arrays(cache)
    except DamagedArrays as error:
        logger.warning("%s is damaged (%s) and is made anew", cache, shown(str(error)))
        return None
    table = found.get("table", np.empty(0))
    is_same = all(np.array_equal(found.get(name), value) for name, value in facts.items())
    return table if is_same and _is_table(table, facts["sizes"]) else None


def _is_table(table: np.ndarray, sizes: np.ndarray) -> bool:
    """Whether every row lies inside its shard."""
    if table.dtype != np.int64 or table.ndim != 2 or table.shape[1] != 4 or not len(table):
        return False
    shard, offset, size, label = table.T
    if shard.min() < 0 or shard.max() >= len(sizes) or min(size.min(), label.min()) < 0:
        return False
    return bool((offset >= tarfile.BLOCKSIZE).all() and (offset <= sizes[shard] - size).all())


def _to_cache(cache: Path, fields: dict[str, np.ndarray]) -> None:
    aside = cache.with_name(f".{cache.name}.{os.getpid()}.tmp")  # several processes may write
    try:
        with open(aside, "wb") as file:
            np.savez(file, **fields)
        os.replace(aside, cache)
    except OSError as error:
        logger.info("%s cannot be written (%s): every start will read the shards", cache, error)
        with contextlib.suppress(OSError):
            aside.unlink()


class ShardSet(Dataset):
    """The images of some shards; items are (transformed image, label).

    A process opens a shard when it first reads from it, so the set can be handed to data workers
    that are forked as well as to those that start afresh.

    Args:
        index: where the images lie.
        classes: a label is an index of it.
        root: the folder, for messages.
        read: a content as an image, `images.read_rgb` or of reduced ones.
    """

    def __init__(
        self,
        index: Index,
        classes: list[str],
        root: str,
        transform: nn.Module,
        read: Callable = read_rgb,
    ):
        self.index, self.classes = index, list(classes)
        self.root, self.transform, self.read = root, transform, read
        self._owner, self._open = 0, OrderedDict()

    def __getstate__(self) -> dict:
        return {**vars(self), "_owner": 0, "_open": OrderedDict()}

    def __len__(self) -> int:
        return len(self.index.table)

    def __getitem__(self, row: int) -> tuple:
        shard, offset, size, label = self.index.table[row].tolist()
        content = self._read(shard, offset, size)
        try:
            image = self.read(content, self.index.shards[shard])
        except InputError as error:
            mend = f"{error.mend} in the shard"
            raise InputError(self.index.place(row), error.found, mend) from error
        return self.transform(image), label

    def _read(self, shard: int, offset: int, size: int) -> bytes:
        path = self.index.shards[shard]
        try:
            file = self._file(shard)
            file.seek(offset)
            content = file.read(size)
        except OSError as error:
            raise cannot_be_read(path, error) from error
        if len(content) < size:
            raise InputError(path, "is shorter than when this run began", _AGAIN)
        return content

    def _file(self, shard: int) -> BinaryIO:
        if self._owner != os.getpid():  # after a fork both would move the same file's position
            self._owner, self._open = os.getpid(), OrderedDict()
        if shard not in self._open:
            if len(self._open) >= _MOST_OPEN:
                self._open.popitem(last=False)[1].close()
            self._open[shard] = open(self.index.shards[shard], "rb")
        self._open.move_to_end(shard)
        return self._open[shard]


def open_shards(cfg: CfgNode, split: str, transform: nn.Module) -> ShardSet:
    """The shards of one split in DATA.ROOT, which must have some (`shards_of`).

    Args:
        split: "train" or "val".

    Raises:
        InputError: see `read_shard`; also where classes.txt is damaged or does not name the
            class of every label.
    """
    root = Path(cfg.DATA.ROOT)
    index = _index_of(root, split)
    names = root / "classes.txt"
    classes = _read_classes(names) if names.exists() else _numbered_classes(root)
    too_large = index.table[:, 3] >= len(classes)
    if too_large.any():
        row = int(too_large.argmax())
        raise InputError(
            index.place(row),
            f"has the label {index.table[row, 3]}, and there are {len(classes)} classes in {names}",
            "name a class a line, that of label 0 first",
        )
    folder = str(index.shards[0].parent)
    return ShardSet(index, classes, folder, transform, reader_of(cfg, split))


def _index_of(root: Path, split: str) -> Index | None:
    shards = shards_of(root, split)
    return read_index(shards, shards[0].with_name(f"{split}-shards.npz")) if shards else None


def _numbered_classes(root: Path) -> list[str]:
    """ "0", "1", ... up to the largest label of both splits, which so have the same classes."""
    indices = [index for split in FOLDERS if (index := _index_of(root, split))]
    largest = max(int(index.table[:, 3].max()) for index in indices)
    images = sum(len(index.table) for index in indices)
    if largest >= images:  # some class has none, and a stray number would make billions of names
        raise InputError(
            root,
            f"the labels of {images} images go up to {largest}",
            "number the classes from 0, or name them in classes.txt, one a line",
        )
    return [str(number) for number in range(largest + 1)]


def _read_classes(path: Path) -> list[str]:
    try:
        names = read_file(path).decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            path, f"cannot be read ({error})", "write UTF-8, a class a line"
        ) from error
    while names and not names[-1].strip():
        names.pop()
    lines: dict[str, int] = {}
    for number, name in enumerate(map(str.strip, names), 1):
        if not name or name in lines:
            found = f'"{shown(name)}", as is line {lines[name]}' if name else "empty"
            raise InputError(path, f"line {number} is {found}", "write one class a line")
        lines[name] = number
    if not lines:
        raise InputError(path, "names no class", "write one class a line, or remove it")
    return list(lines)
