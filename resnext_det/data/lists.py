"""Image lists: a split as one text file, for sets too large, or too scattered, for class folders.

A list is UTF-8 text and whole in itself. First its header, one line a class, in the order of the
labels 0, 1, ..., and optionally the number of images, which finds a list that was cut short; then
one line an image, a path relative to the folder of the images, a tab, and the label:

    # images: 2
    # class: cat
    # class: dog
    pets/a cat.jpg<tab>0
    dog/1.jpg<tab>1
"""

import codecs
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from torch import nn
from torch.utils.data import Dataset

from ..errors import InputError, shown
from .images import read_rgb
from .reduced import reader_of
from .user_files import read_file

logger = logging.getLogger(__name__)

CLASS, IMAGES = "# class: ", "# images: "  # the header's two kinds of line
FORMAT = f'write "{CLASS}<name>" for every class, then "<path><tab><label>" for every image'
_TAB, _NEWLINE, _SLASH, _DOT, _ZERO = b"\t\n/.0"
_DIGITS = 9  # of a label, at most
_PROBES = 100  # images looked for on the disk when a list is opened
_BLOCK = 1_000_000  # lines hashed at once


@dataclass(frozen=True)
class Entries:
    """The images of a list, packed: millions of paths are three arrays, not millions of strings.

    Args:
        text: uint8, the list's lines without its header.
        starts, ends: int64 (N,); path i is ``text[starts[i]:ends[i]]``.
        labels: int32 (N,).
        first_line: the line of the file that image 0 stands on, from 1.
    """

    text: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    labels: np.ndarray
    first_line: int

    def __len__(self) -> int:
        return len(self.starts)

    def path(self, index: int) -> str:
        return os.fsdecode(self.text[self.starts[index] : self.ends[index]].tobytes())


class ListSet(Dataset):
    """The images of a list; items are (transformed image, label).

    Args:
        entries: what the list names.
        classes: a label is an index of it; a class may have no image.
        folder: what the paths are relative to.
        root: the list itself, for messages.
        read: a file as an image, `images.read_rgb` or of reduced ones.
    """

    def __init__(
        self,
        entries: Entries,
        classes: list[str],
        folder: Path,
        root: str,
        transform: nn.Module,
        read: Callable = read_rgb,
    ):
        self.entries, self.classes, self.folder = entries, list(classes), folder
        self.root, self.transform, self.read = root, transform, read

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> tuple:
        image = self.read(self.folder / self.entries.path(index))
        return self.transform(image), int(self.entries.labels[index])


def list_of(cfg: CfgNode, split: str) -> str:
    """The list that DATA.TRAIN_LIST or DATA.VAL_LIST names for "train" or "val"; "" for none."""
    return cfg.DATA.TRAIN_LIST if split == "train" else cfg.DATA.VAL_LIST


def check_keys(cfg: CfgNode) -> None:
    """Raises InputError where a key is set that only a validation list gives a meaning."""
    data = cfg.DATA
    if data.EVAL_CLASSES < 0:
        raise InputError("config", f"DATA.EVAL_CLASSES is {data.EVAL_CLASSES}", "set it to 0 (all)")
    for key in ("VAL_ROOT", "EVAL_CLASSES"):
        if data[key] and not data.VAL_LIST:
            raise InputError(
                "config", f"DATA.{key} is {data[key]}, but DATA.VAL_LIST is empty", "set both"
            )


def open_list(cfg: CfgNode, split: str, transform: nn.Module) -> ListSet:
    """The list of one split, in the folder DATA.ROOT ("val": DATA.VAL_ROOT, where it is set).

    Args:
        split: "train" or "val".

    Raises:
        InputError: see `read_list`; also where an image is not in the folder (only some are
            looked for: first and last, and up to 98 in between), or where DATA.EVAL_CLASSES
            does not fit the labels of the validation list.
    """
    path = list_of(cfg, split)
    key = "VAL_ROOT" if split == "val" and cfg.DATA.VAL_ROOT else "ROOT"
    entries, classes = read_list(path)
    if split == "val" and cfg.DATA.EVAL_CLASSES:
        _check_eval_classes(entries, len(classes), cfg.DATA.EVAL_CLASSES, path)
    read = reader_of(cfg, split)
    data = ListSet(entries, classes, Path(cfg.DATA[key]), path, transform, read)
    for index in np.linspace(0, len(data) - 1, min(len(data), _PROBES)).astype(int).tolist():
        image = data.folder / entries.path(index)
        if not image.is_file():
            line = entries.first_line + index
            raise InputError(path, f"line {line}: {image} does not exist", f"check DATA.{key}")
    return data


def _check_eval_classes(entries: Entries, classes: int, first: int, path: str | Path) -> None:
    if first > classes:
        raise InputError(
            "config",
            f"DATA.EVAL_CLASSES is {first}, {path} has {classes} classes",
            "set it to the number of classes that the validation images are of",
        )
    _refuse(
        entries.labels >= first,
        lambda i: f"has the label {entries.labels[i]}, but DATA.EVAL_CLASSES is {first}",
        "number the classes of the validation images first, or set DATA.EVAL_CLASSES 0",
        path,
        entries.first_line,
    )


def check_same_order(train: Dataset, val: Dataset) -> None:
    """Raises InputError where a label means one class in train and another in val."""
    for label, (ours, theirs) in enumerate(zip(train.classes, val.classes, strict=True)):
        if ours != theirs:
            raise InputError(
                val.root,
                f'label {label} is "{theirs}", but "{ours}" in {train.root}',
                "give both the same classes in the same order",
            )


def read_list(path: str | Path) -> tuple[Entries, list[str]]:
    """The images and the classes of a list (the format is the module's docstring).

    Seven million lines take a few seconds. Images listed more than once stay and are counted in
    a notice.

    Raises:
        InputError: the file cannot be read, has no classes or no images, or another number of
            images than its header says; names the first line with another form, with a label
            that no class has, or with a path that leaves the folder (".." or absolute).
    """
    try:
        content = read_file(path)
    except OSError as error:
        raise InputError(
            path,
            f"the image list cannot be read ({error.strerror})",
            "check DATA.TRAIN_LIST and DATA.VAL_LIST (ImageNet-5K: tools/make_imagenet5k.py)",
        ) from error
    content = content.removeprefix(codecs.BOM_UTF8).replace(b"\r\n", b"\n")
    classes, images, lines, begin = _header(content, path)
    body = content[begin:].rstrip(b"\n") + b"\n"
    if not classes or body == b"\n":
        raise InputError(path, f"names no {'image' if classes else 'class'}", FORMAT)
    entries = _entries(body, lines + 1, len(classes), path)
    if images is not None and (images != len(entries) or not content.endswith(b"\n")):
        found = f'its header says "{IMAGES}{images}", it holds {len(entries)}'
        cut = "" if content.endswith(b"\n") else " and ends inside a line"
        raise InputError(path, found + cut, "write the list again")
    _notice_repeated(entries, body, path)
    return entries, classes


def _header(content: bytes, path: str | Path) -> tuple[list[str], int | None, int, int]:
    """Classes, number of images if stated, number of header lines, and where the body begins."""
    classes: dict[str, int] = {}
    images, number, begin = None, 0, 0
    while content.startswith(b"# ", begin):
        number += 1
        end = content.find(b"\n", begin) + 1 or len(content)
        line = content[begin:end].decode("utf-8", "replace").strip()
        begin = end
        name, count = line.removeprefix(CLASS), line.removeprefix(IMAGES)
        if name != line and name not in classes and "\ufffd" not in name:
            classes[name] = number
        elif count != line and count.isdecimal() and images is None:
            images = int(count)
        else:
            where = f" (so is line {classes[name]})" if name in classes else ""
            raise InputError(path, f"line {number} is {_short(line)}{where}", FORMAT)
    return list(classes), images, number, begin


def _short(line: str) -> str:
    return f'"{shown(line, 80)}"'


def _refuse(
    bad: np.ndarray, found: Callable[[int], str], mend: str, path: str | Path, first_line: int
) -> None:
    """Raises InputError for the first image of ``bad`` (bool (N,)); ``found(index)`` says why."""
    if bad.any():
        index = int(bad.argmax())
        raise InputError(path, f"line {first_line + index} {found(index)}", mend)


def _entries(body: bytes, first_line: int, classes: int, path: str | Path) -> Entries:
    """``body`` (ends with a newline, not with an empty line) taken apart and checked."""
    text = np.frombuffer(body, np.uint8)
    stops, tabs = np.flatnonzero(text == _NEWLINE), np.flatnonzero(text == _TAB)
    starts = np.concatenate([[0], stops[:-1] + 1])

    def is_line(index: int) -> str:
        return f"is {_short(body[starts[index] : stops[index]].decode('utf-8', 'replace'))}"

    tabs_in_line = np.diff(np.searchsorted(tabs, np.append(starts, len(text))))
    _refuse(tabs_in_line != 1, is_line, FORMAT, path, first_line)
    labels = _numbers(text, tabs + 1, stops)
    _refuse((labels < 0) | (tabs == starts), is_line, FORMAT, path, first_line)
    most = f"the labels of {classes} classes are 0 to {classes - 1}"
    _refuse(labels >= classes, is_line, most, path, first_line)
    below = 'paths must stay below DATA.ROOT or DATA.VAL_ROOT: not absolute, without ".."'
    _refuse(_leaves_folder(text, starts), is_line, below, path, first_line)
    return Entries(text, starts, tabs, labels.astype(np.int32), first_line)


def _numbers(text: np.ndarray, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    """The decimal numbers text[begin[i]:end[i]], int64; -1 for what is none (or has 10 digits)."""
    length = end - begin
    numbers = np.where((length < 1) | (length > _DIGITS), -1, 0)
    for place in range(min(int(length.max()), _DIGITS)):
        rows = np.flatnonzero((length > place) & (numbers >= 0))
        digits = text[begin[rows] + place].astype(np.int64) - _ZERO
        is_digit = (digits >= 0) & (digits <= 9)
        numbers[rows] = np.where(is_digit, 10 * numbers[rows] + digits, -1)
    return numbers


def _leaves_folder(text: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Which lines hold an absolute path or one with a part "..", bool (N,)."""
    leaves = text[starts] == _SLASH
    is_dot = text == _DOT
    pairs = np.flatnonzero(is_dot[:-1] & is_dot[1:])
    before = (pairs == 0) | np.isin(text[pairs - 1], (_SLASH, _NEWLINE))
    parts = pairs[before & np.isin(text[pairs + 2], (_SLASH, _TAB))]
    leaves[np.searchsorted(starts, parts, side="right") - 1] = True
    return leaves


def _notice_repeated(entries: Entries, body: bytes, path: str | Path) -> None:
    """Log how many images are listed again, and how many of those with another label.

    Paths are compared by their 64-bit hashes, which takes no string for each.
    """
    hashes = np.fromiter(_hashes(entries, body), np.int64, len(entries))
    order = np.argsort(hashes, kind="stable")
    again = hashes[order[1:]] == hashes[order[:-1]]
    if again.any():
        labels = entries.labels[order]
        other = again & (labels[1:] != labels[:-1])
        logger.warning(
            "%s: %d lines name an image that another line has named, %d of them with another label",
            path,
            again.sum(),
            other.sum(),
        )


def _hashes(entries: Entries, body: bytes) -> Iterator[int]:
    bounds = [*entries.starts[::_BLOCK].tolist(), len(body)]
    for begin, end in zip(bounds[:-1], bounds[1:], strict=True):
        yield from (hash(line.partition(b"\t")[0]) for line in body[begin : end - 1].split(b"\n"))


def write_list(
    path: str | Path, classes: list[str], entries: Iterable[tuple[bytes, int]], images: int
) -> None:
    """Write a list that `read_list` reads.

    Args:
        entries: (path, label) of every image; a path has no tab and no line break in it.
        images: their number, for the header.
    """
    with open(path, "wb") as file:
        file.write(f"{IMAGES}{images}\n".encode())
        file.writelines(f"{CLASS}{name}\n".encode() for name in classes)
        file.writelines(b"%s\t%d\n" % entry for entry in entries)
