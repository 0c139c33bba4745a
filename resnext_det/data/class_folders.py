"""Images in ImageNet-style class folders, read by `images.read_rgb`."""

import logging
import os
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from detectron2.config import CfgNode
from torch import nn
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from ..errors import InputError
from .images import read_rgb
from .reduced import reader_of

logger = logging.getLogger(__name__)

LAYOUT = "<root>/train/<class>/<image> and <root>/val/<class>/<image>"
_NAMED = 5  # names that a message gives of many


class ClassFolders(ImageFolder):
    """torchvision's `ImageFolder` that reads by `read_rgb` and names what it cannot use.

    The same samples in the same order, but: names that begin with "." are passed over, files
    and folders alike; a folder is read once for a class, so links in a circle end.

    Args:
        root: holds a folder a class.
        transform: of a sample's image.
        read: a file as an image, `images.read_rgb` or of reduced ones.

    Raises:
        InputError: there are no class folders, some hold no image, or one cannot be listed.
    """

    def __init__(self, root: str, transform: nn.Module, read: Callable = read_rgb):
        super().__init__(root, transform=transform, loader=read)

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        """Class names in the order of their labels, and the label of each."""
        folders, files = list_folder(directory)
        images = [name for name in files if _is_image(name)]
        if not folders:
            raise _no_class_folders(directory, images)
        if images:
            logger.warning(
                "%s: %d images, such as %s, lie beside the class folders and are not used",
                directory,
                len(images),
                images[0],
            )
        return folders, {name: label for label, name in enumerate(folders)}

    @staticmethod
    def make_dataset(
        directory: str | Path, class_to_idx: dict[str, int], *_, **__
    ) -> list[tuple[str, int]]:
        """Samples (path, label), by class, folder and name."""
        samples, empty, above = [], {}, [_identity(directory)]
        for name, label in sorted(class_to_idx.items()):
            folders = sorted(_walk(os.path.join(directory, name), above))
            paths = [os.path.join(folder, file) for folder, files in folders for file in files]
            images = [path for path in paths if _is_image(path)]
            samples += [(path, label) for path in images]
            if not images:
                empty[name] = paths
        if empty:
            raise _no_images(directory, empty)
        return samples


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMG_EXTENSIONS)


def list_folder(folder: str | Path) -> tuple[list[str], list[str]]:
    """Names of the folders and of the files in a folder, hidden ones (".x") left out, sorted.

    Raises:
        InputError: the folder cannot be listed.
    """
    folders, files = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    (folders if _is_folder(entry) else files).append(entry.name)
    except OSError as error:
        raise _cannot_be_listed(folder, error) from error
    return sorted(folders), sorted(files)


def _cannot_be_listed(folder: str | Path, error: OSError) -> InputError:
    return InputError(folder, f"cannot be listed ({error.strerror})", "check its permissions")


def _is_folder(entry: os.DirEntry) -> bool:
    # A link that leads in a circle is no folder, where `entry.is_dir()` would raise.
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _identity(folder: str | Path) -> tuple[int, int]:
    """The same for every path that leads to a folder. Raises InputError as `list_folder`."""
    try:
        status = os.stat(folder)
    except OSError as error:
        raise _cannot_be_listed(folder, error) from error
    return status.st_dev, status.st_ino


def _walk(top: str, above: list[tuple[int, int]]) -> Iterator[tuple[str, list[str]]]:
    """(folder, names of its files) for ``top`` and all below it, each once, none of ``above``."""
    seen, waiting = set(above), deque([top])
    while waiting:
        folder = waiting.popleft()
        if (identity := _identity(folder)) not in seen:
            seen.add(identity)
            folders, files = list_folder(folder)
            waiting.extend(os.path.join(folder, name) for name in folders)
            yield folder, files


def _no_class_folders(directory: str | Path, images: list[str]) -> InputError:
    found = f"{len(images)} images, such as {images[0]}, but " if images else ""
    return InputError(
        directory,
        f"holds {found}no class folders; the layout looked for is {LAYOUT}",
        "put every image into the folder of its class, or name them with their labels in an image "
        "list (DATA.TRAIN_LIST, DATA.VAL_LIST; docs/images.md)",
    )


def _no_images(directory: str | Path, empty: dict[str, list[str]]) -> InputError:
    """For class folders that hold no image; ``empty`` gives the other files of each."""
    names = [
        f"{name} ({len(paths)} other files, such as {os.path.basename(paths[0])})"
        if paths
        else f"{name} (empty)"
        for name, paths in list(empty.items())[:_NAMED]
    ]
    more = f" and {len(empty) - _NAMED} more" if len(empty) > _NAMED else ""
    return InputError(
        directory,
        f"class folders without an image: {', '.join(names)}{more}",
        f"remove them, or give them images ({', '.join(IMG_EXTENSIONS)})",
    )


def class_folder(cfg: CfgNode, split: str, transform: nn.Module) -> ClassFolders:
    """The images of one split, classes numbered in the order of their folders' names.

    Args:
        split: "train" or "val".

    Raises:
        InputError: the folder is missing; see also `ClassFolders`.
    """
    folder = Path(cfg.DATA.ROOT, split)
    if not folder.is_dir():
        better = _better_root(Path(cfg.DATA.ROOT), split)
        raise InputError(
            folder.resolve(),
            f"no images found; the layout looked for is {LAYOUT}, or a CIFAR archive's folder, "
            "or a .npz file (docs/images.md)",
            f"set DATA.ROOT to {better}, which has {split}/"
            if better
            else "set DATA.ROOT to your data set, or run `make demo`, which needs no data",
        )
    return ClassFolders(str(folder), transform, reader_of(cfg, split))


def _better_root(root: Path, split: str) -> Path | None:
    """The folder above or below that has the split: DATA.ROOT is often named one level off."""
    below = sorted(root.glob("*/")) if root.is_dir() else []
    return next((p for p in (root.resolve().parent, *below) if (p / split).is_dir()), None)


def check_same_classes(train: Dataset, val: Dataset) -> None:
    """Raises InputError where train and val, of any kind, do not have the same classes."""
    only_train = sorted(set(train.classes) - set(val.classes))
    only_val = sorted(set(val.classes) - set(train.classes))
    if only_train or only_val:
        raise InputError(
            Path(val.root),
            f"its classes differ from train's: only in train {only_train[:_NAMED]}, only in val "
            f"{only_val[:_NAMED]}",
            "give both the same classes",
        )
