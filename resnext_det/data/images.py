"""ImageNet-style class folders: checked, read, augmented; torchvision does the rest."""

from pathlib import Path

import torch
from detectron2.config import CfgNode
from PIL import Image, ImageOps, UnidentifiedImageError
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

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
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise InputError(
            path, f"cannot be read as an image ({error})", "replace or remove the file"
        ) from error


def class_folder(cfg: CfgNode, split: str, transform: v2.Transform) -> ImageFolder:
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


def _to_input(cfg: CfgNode) -> list[v2.Transform]:
    """PIL image to the trunk's input: channels in INPUT.FORMAT's order, normalised."""
    steps: list[v2.Transform] = [v2.ToImage(), v2.ToDtype(torch.float32)]
    if cfg.INPUT.FORMAT == "BGR":
        steps.append(v2.Lambda(lambda image: image.flip(0)))
    return [*steps, v2.Normalize(cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)]


def training_transform(cfg: CfgNode) -> v2.Transform:
    """Random area-and-aspect crop and flip (paper, Sec. 4: the augmentation of [38])."""
    crop = v2.RandomResizedCrop(
        cfg.DATA.CROP_SIZE,
        scale=(cfg.DATA.MIN_CROP_AREA, 1.0),
        interpolation=v2.InterpolationMode.BICUBIC,
    )
    return v2.Compose([crop, v2.RandomHorizontalFlip(), *_to_input(cfg)])


def test_transform(cfg: CfgNode) -> v2.Transform:
    """Short side to RESIZE_SIZE, centre crop of CROP_SIZE (paper, Sec. 4: 224 from 256)."""
    resize = v2.Resize(cfg.DATA.RESIZE_SIZE, interpolation=v2.InterpolationMode.BICUBIC)
    return v2.Compose([resize, v2.CenterCrop(cfg.DATA.CROP_SIZE), *_to_input(cfg)])


test_transform.__test__ = False  # pytest would take an imported name that starts with test_


def collate(samples: list[tuple[torch.Tensor, int]]) -> dict[str, torch.Tensor]:
    """{"image": float32 (N, 3, H, W), "label": int64 (N,)}."""
    return {
        "image": torch.stack([image for image, _ in samples]),
        "label": torch.tensor([label for _, label in samples]),
    }
