"""Image files as RGB by one set of rules (docs/images.md), and ImageNet-style class folders."""

import io
import logging
import os
import warnings
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import nn
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from ..errors import InputError

logger = logging.getLogger(__name__)

LAYOUT = "<root>/train/<class>/<image> and <root>/val/<class>/<image>"
_NAMED = 5  # names that a message gives of many

# What the eight values of EXIF's orientation tag ask for (Exif 2.3, Sec. 4.6.4 A); 1 is upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_WITH_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
_DEPTH_16 = ("I;16", "I;16L", "I;16B", "I;16N")
_16_BIT_AS_I = ("PNG", "PPM")  # formats that hold 16 bits at most where Pillow says "I"


def read_rgb(source: str | Path | bytes, name: str | Path | None = None) -> Image.Image:
    """An image as 8-bit RGB, by the rules of docs/images.md.

    The first frame, turned as its EXIF tag says. Grey becomes three equal channels, 16 bits of
    grey are scaled by 1/257, what is transparent shows white, CMYK is converted by Pillow.

    Args:
        source: an image file, or the content of one.
        name: what messages call a content; a file is called by its path.

    Raises:
        InputError: the source is not a whole image, has pixels without a fixed range (float,
            32-bit integers), or more of them than Pillow's guard against memory bombs allows.
    """
    name = source if name is None and not isinstance(source, bytes) else name
    try:
        with warnings.catch_warnings():
            # Above half the limit Pillow warns without a name; only above the limit it refuses.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                image.load()  # before the tag is asked for: some formats are turned by this
                return _as_rgb(_upright(image), image.format, name)
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        most = f"shrink it to {2 * Image.MAX_IMAGE_PIXELS:,} pixels or fewer"
        raise _unreadable(name, _one_line(error), most) from error
    except Exception as error:  # damaged bytes lead Pillow's decoders to errors of any type
        raise _unreadable(name, _reason(error, source), "replace or remove the file") from error


def _unreadable(name: str | Path, reason: str, mend: str) -> InputError:
    return InputError(name, f"cannot be read as an image ({reason})", mend)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _reason(error: Exception, source: str | Path | bytes) -> str:
    if isinstance(error, UnidentifiedImageError):  # its own text only repeats the name
        begin = source[:16] if isinstance(source, bytes) else _begin(source)
        found = f"damaged or of no known type, it begins with {begin}"
        return found if begin else "it is empty"
    return getattr(error, "strerror", None) or _one_line(error)


def _begin(path: str | Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(16)


def _upright(image: Image.Image) -> Image.Image:
    """Turned and mirrored as the EXIF tag says; a damaged EXIF block counts as none."""
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception as error:  # of any type, as above; the pixels are whole
        logger.debug("EXIF is damaged: %s", error)
        turn = None
    return image if turn is None else image.transpose(turn)


def _as_rgb(image: Image.Image, kind: str | None, name: str | Path) -> Image.Image:
    """``kind`` is Pillow's name of the file's format."""
    if image.mode in _DEPTH_16 or (image.mode == "I" and kind in _16_BIT_AS_I):
        grey = np.asarray(image).astype(np.int32)
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        depth = "float" if image.mode == "F" else "32-bit integer"
        mend = "convert it to 8 or 16 bits a channel"
        raise _unreadable(name, f"{depth} pixels have no fixed range", mend)
    if not _has_transparency(image):
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _has_transparency(image: Image.Image) -> bool:
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        return True
    return image.mode == "P" and image.palette.mode.endswith("A")


class ClassFolders(ImageFolder):
    """torchvision's `ImageFolder` that reads by `read_rgb` and names what it cannot use.

    The same samples in the same order, but: names that begin with "." are passed over, files
    and folders alike; a folder is read once for a class, so links in a circle end.

    Args:
        root: holds a folder a class.
        transform: of a sample's image.

    Raises:
        InputError: there are no class folders, some hold no image, or one cannot be listed.
    """

    def __init__(self, root: str, transform: nn.Module):
        super().__init__(root, transform=transform, loader=read_rgb)

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
        raise InputError(
            folder, f"cannot be listed ({error.strerror})", "check its permissions"
        ) from error
    return sorted(folders), sorted(files)


def _is_folder(entry: os.DirEntry) -> bool:
    # A link that leads in a circle is no folder, where `entry.is_dir()` would raise.
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _identity(folder: str | Path) -> tuple[int, int]:
    """The same for every path that leads to a folder."""
    status = os.stat(folder)
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
        raise InputError(
            folder.resolve(),
            f"no images found; the layout looked for is {LAYOUT} (others: docs/images.md)",
            "set DATA.ROOT to your data set, or run `make demo`, which needs no data",
        )
    return ClassFolders(str(folder), transform)


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
