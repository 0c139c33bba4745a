"""CIFAR: the official python archives, or any images in one .npz file.

Fields of the .npz (read without pickle): ``train_images``, ``test_images`` uint8 (N, H, W, 3)
RGB; ``train_labels``, ``test_labels`` integers (N,); ``class_names`` strings, optional.
"""

from pathlib import Path

import numpy as np
from PIL import Image
from torch import nn
from torch.utils.data import Dataset
from torchvision.datasets import CIFAR10, CIFAR100

from ..errors import InputError, shown
from .npz import DamagedArrays, load_arrays

ARCHIVES = {"cifar-10-batches-py": CIFAR10, "cifar-100-python": CIFAR100}
FIELDS = {"train": "train", "val": "test"}  # our split -> the archives' word for it


class ArraySet(Dataset):
    """Images in memory; items are (transformed image, label).

    Args:
        images: uint8 (N, H, W, 3), RGB.
        labels: integers (N,), each an index of ``classes``.
        root: the file they came from, for messages.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        classes: list[str],
        root: str,
        transform: nn.Module,
    ):
        self.images, self.labels = images, labels
        self.classes, self.root, self.transform = list(classes), root, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple:
        # torchvision's transforms pass an array over as something that is no image.
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def read_npz(path: Path, split: str, transform: nn.Module) -> ArraySet:
    """One split of a .npz file.

    Without ``class_names`` the classes are called "0", "1", ... up to the largest label of both
    splits.

    Raises:
        InputError: the file or a field is damaged, a field is missing, or its shape, type or
            range is another.
    """
    word = FIELDS[split]
    other = "test" if word == "train" else "train"
    fields = _read(path, unread=f"{other}_images")
    images, labels = (_field(fields, f"{word}_{name}", path) for name in ("images", "labels"))
    _check(images, labels, word, path)
    classes = _classes(fields, path)
    if labels.min() < 0 or labels.max() >= len(classes):
        raise InputError(
            path,
            f"{word}_labels run from {labels.min()} to {labels.max()} for {len(classes)} classes",
            "number the classes from 0, and name them all in class_names",
        )
    return ArraySet(images, labels.astype(np.int64), classes, str(path), transform)


def _read(path: Path, unread: str) -> dict[str, np.ndarray]:
    """Every field but one; arrays of objects, which would be pickles, are refused."""
    try:
        return load_arrays(path, leave_out=unread)
    except DamagedArrays as error:
        place = f", field {shown(error.field)}" if error.field else ""
        raise InputError(
            path,
            f"is not a whole .npz file of arrays{place} ({shown(str(error))})",
            "write it with numpy.savez",
        ) from error


def _field(fields: dict[str, np.ndarray], name: str, path: Path) -> np.ndarray:
    if name not in fields or not fields[name].size:
        found = f"{name} is empty" if name in fields else f"has no {name}"
        raise InputError(
            path,
            f"{found} (read: {shown(', '.join(sorted(fields))) or 'nothing'})",
            "see resnext_det/data/arrays.py for the fields",
        )
    return fields[name]


def _check(images: np.ndarray, labels: np.ndarray, word: str, path: Path) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise InputError(
            path,
            f"{word}_images is {images.dtype} of shape {images.shape}",
            "give uint8 of shape (N, H, W, 3)",
        )
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise InputError(
            path,
            f"{word}_labels is {labels.dtype} of shape {labels.shape} for {len(images)} images",
            "give one integer an image",
        )


def _classes(fields: dict[str, np.ndarray], path: Path) -> list[str]:
    if "class_names" in fields:
        names = fields["class_names"]
        if names.ndim != 1 or names.dtype.kind != "U":
            raise InputError(
                path,
                f"class_names is {names.dtype} of shape {names.shape}",
                "give one string a class",
            )
        return names.tolist()
    labels = [fields[name] for name in ("train_labels", "test_labels") if name in fields]
    labels = [x for x in labels if x.size and x.dtype.kind in "iu"]
    largest = max(int(x.max()) for x in labels)
    # A class takes one label at least; a stray label would otherwise make billions of them.
    return [str(number) for number in range(min(largest + 1, sum(x.size for x in labels)))]


def archive_in(root: Path) -> Path | None:
    """The folder that holds an official CIFAR archive's own folder, if ``root`` is one or has one.

    The archive itself may be missing where ``root`` has its name; `read_archive` says so.

    >>> archive_in(Path("data/cifar-10-batches-py"))  # doctest: +SKIP
    PosixPath('data')
    """
    if root.name in ARCHIVES and not (root / "train").is_dir():  # nor class folders
        return root.parent
    return root if any((root / name).is_dir() for name in ARCHIVES) else None


def read_archive(root: Path, split: str, transform: nn.Module) -> ArraySet:
    """CIFAR-10 or CIFAR-100 as its authors publish it (torchvision checks every file's MD5).

    Raises:
        InputError: both archives are there, or a file is missing or differs from the original.
    """
    parent = archive_in(root)
    there = [root.name] if root.name in ARCHIVES else [n for n in ARCHIVES if (parent / n).is_dir()]
    if len(there) > 1:
        raise InputError(
            root, f"holds {' and '.join(there)}", f"set DATA.ROOT to {parent / there[0]}"
        )
    try:
        # The files are pickles; they are opened only after their MD5 is the published one.
        data = ARCHIVES[there[0]](str(parent), train=split == "train", download=False)
    except RuntimeError as error:
        raise InputError(
            parent / there[0],
            "is not the whole original archive (a file is missing or its MD5 differs)",
            "unpack the .tar.gz of www.cs.toronto.edu/~kriz/cifar.html there, or set DATA.ROOT",
        ) from error
    labels = np.array(data.targets)
    return ArraySet(data.data, labels, data.classes, str(parent / there[0]), transform)
