"""ImageNet-style class folders: checked and read; torchvision does the rest."""

from pathlib import Path

from detectron2.config import CfgNode
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import nn
from torchvision.datasets import ImageFolder

from ..errors import InputError

LAYOUT = "<root>/train/<class>/<image> and <root>/val/<class>/<image>"


def read_rgb(path: str | Path) -> Image.Image:
    """An image file as RGB, turned as its EXIF tag says; grey becomes three equal channels.

    Raises:
        InputError: the file is not a whole image.
    """
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (
        OSError,
        UnidentifiedImageError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,  # above 179 million pixels
    ) as error:
        raise InputError(
            path, f"cannot be read as an image ({error})", "replace or remove the file"
        ) from error


def class_folder(cfg: CfgNode, split: str, transform: nn.Module) -> ImageFolder:
    """The images of one split, classes numbered in the order of their folders' names.

    Args:
        split: "train" or "val".

    Raises:
        InputError: the folder is missing, has no class folders, or an empty one.
    """
    folder = Path(cfg.DATA.ROOT, split)
    if not folder.is_dir():
        raise InputError(
            folder.resolve(),
            f"no images found; the layout looked for is {LAYOUT}",
            "set DATA.ROOT to your data set, or run `make demo`, which needs no data",
        )
    try:
        return ImageFolder(str(folder), transform=transform, loader=read_rgb)
    except FileNotFoundError as error:
        raise InputError(
            folder,
            f"{error}; the layout looked for is {LAYOUT}",
            "put every image into the folder of its class",
        ) from error


def check_same_classes(train: ImageFolder, val: ImageFolder) -> None:
    """Raises InputError where train and val do not hold the same class folders."""
    only_train = sorted(set(train.classes) - set(val.classes))
    only_val = sorted(set(val.classes) - set(train.classes))
    if only_train or only_val:
        raise InputError(
            Path(val.root),
            f"class folders differ from train's: only in train "
            f"{only_train[:5]}, only in val {only_val[:5]}",
            "give both the same class folders",
        )
