"""What is done to an image before the trunk sees it: the paper's augmentation and test views.

torchvision's transforms v2 do all that they have; the two steps of fb.resnet.torch that they
lack are here. What still differs from the Lua code is listed in docs/deviations.md.
"""

import math

import torch
from detectron2.config import CfgNode
from PIL import Image
from torch import nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from ..errors import InputError

# Principal components of ImageNet's RGB values in 0..1 (Krizhevsky et al. 2012; the numbers of
# facebookresearch/ResNeXt, datasets/imagenet.lua).
EIGENVALUES = (0.2175, 0.0188, 0.0045)
EIGENVECTORS = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)
PROTOCOLS = ("single", "ten_crop", "dense")


def _interpolation(cfg: CfgNode) -> v2.InterpolationMode:
    return v2.InterpolationMode(cfg.DATA.INTERPOLATION)


class UniformAspectCrop(nn.Module):
    """A random crop by area and aspect, resized to a square (RX datasets/transforms.lua).

    Area is uniform in ``min_area``..1 of the image, aspect uniform in 3/4..4/3, turned upright
    in half the draws; ten tries, then the centre square. `v2.RandomResizedCrop` draws the
    logarithm of the aspect instead.

    Args:
        size: side of the result, pixels.
        min_area: least share of the image's area, 0..1.
        interpolation: of the resize.
    """

    def __init__(self, size: int, min_area: float, interpolation: v2.InterpolationMode):
        super().__init__()
        self.size, self.min_area, self.interpolation = size, min_area, interpolation

    def draw(self, height: int, width: int) -> tuple[int, int, int, int]:
        """top, left, height, width of a crop; integers inside the image."""
        for _ in range(10):
            area = height * width * _uniform(self.min_area, 1.0)
            aspect = _uniform(3 / 4, 4 / 3)
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if _uniform(0, 1) < 0.5:
                w, h = h, w
            if 1 <= h <= height and 1 <= w <= width:
                return _integer(height - h), _integer(width - w), h, w
        side = min(height, width)
        return (height - side) // 2, (width - side) // 2, side, side

    def forward(self, image: Image.Image) -> Image.Image:
        box = self.draw(*F.get_size(image))
        return F.resized_crop(image, *box, [self.size, self.size], self.interpolation)


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * torch.rand(()).item()


def _integer(most: int) -> int:
    """Uniform over 0..``most``, both included."""
    return int(torch.randint(most + 1, ()))


class Lighting(nn.Module):
    """Adds a random multiple of each principal colour component (RX transforms.lua, AlexNet).

    Takes and gives RGB float images (3, H, W) in 0..255; nothing is clamped.

    Args:
        strength: standard deviation of the three multiples (0.1 in the paper's code).
    """

    def __init__(self, strength: float):
        super().__init__()
        self.strength = strength

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        alpha = torch.randn(3) * self.strength
        shift = 255 * torch.tensor(EIGENVECTORS) @ (alpha * torch.tensor(EIGENVALUES))
        return image + shift[:, None, None]


class ReverseChannels(nn.Module):
    """RGB to BGR, (3, H, W)."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.flip(0)


class Views(nn.Module):
    """One image through several transforms: a list of views."""

    def __init__(self, transforms: list[nn.Module]):
        super().__init__()
        self.transforms = nn.ModuleList(transforms)

    def forward(self, image: Image.Image) -> list[torch.Tensor]:
        return [transform(image) for transform in self.transforms]


class StackedCrops(nn.Module):
    """Crops (a tuple of images) through one transform, stacked: (crops, 3, H, W)."""

    def __init__(self, transform: nn.Module):
        super().__init__()
        self.transform = transform

    def forward(self, crops: tuple) -> torch.Tensor:
        return torch.stack([self.transform(crop) for crop in crops])


def _to_input(cfg: CfgNode) -> list[nn.Module]:
    """RGB float 0..255 to the trunk's input: channels in INPUT.FORMAT's order, normalised."""
    steps: list[nn.Module] = []
    if cfg.INPUT.FORMAT == "BGR":
        steps.append(ReverseChannels())
    return [*steps, v2.Normalize(cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)]


def _crop(cfg: CfgNode) -> nn.Module:
    size, least = cfg.DATA.CROP_SIZE, cfg.DATA.MIN_CROP_AREA
    if cfg.DATA.CROP_ASPECT == "uniform":
        return UniformAspectCrop(size, least, _interpolation(cfg))
    return v2.RandomResizedCrop(size, scale=(least, 1.0), interpolation=_interpolation(cfg))


def training_transform(cfg: CfgNode) -> v2.Compose:
    """Image to float32 (3, CROP_SIZE, CROP_SIZE), augmented.

    With DATA.PAD > 0 the CIFAR recipe (paper, App. A): normalise, flip, then a random crop of
    the image padded with zeros, so that the border is the mean colour. Otherwise ImageNet's
    (paper, Sec. 4): area-and-aspect crop, colour jitter, lighting, normalise, flip.
    """
    to_float = [v2.ToImage(), v2.ToDtype(torch.float32)]
    flip = v2.RandomHorizontalFlip()
    if cfg.DATA.PAD:
        crop = v2.RandomCrop(cfg.DATA.CROP_SIZE, padding=cfg.DATA.PAD)
        return v2.Compose([*to_float, *_to_input(cfg), flip, crop])
    colour = []
    if jitter := cfg.DATA.COLOR_JITTER:
        colour.append(v2.ColorJitter(brightness=jitter, contrast=jitter, saturation=jitter))
    lighting = [Lighting(cfg.DATA.LIGHTING)] if cfg.DATA.LIGHTING else []
    # Jitter works on bytes, as torchvision's kernels round and clamp them anyway.
    return v2.Compose(
        [_crop(cfg), v2.ToImage(), *colour, to_float[1], *lighting, *_to_input(cfg), flip]
    )


def _resize(cfg: CfgNode, short_side: int) -> nn.Module:
    return v2.Resize(short_side, interpolation=_interpolation(cfg))


def test_transform(cfg: CfgNode) -> nn.Module:
    """The views of one test image by DATA.TEST_PROTOCOL.

    "single": centre crop of CROP_SIZE from a short side of RESIZE_SIZE, (3, S, S) (paper,
    Sec. 4: 224 from 256). "ten_crop": centre, four corners and their mirror images,
    (10, 3, S, S). "dense": the whole image at each short side of TEST_SCALES, a list of
    (3, h, w). A set of CROP_SIZE images (CIFAR, DATA.PAD > 0) is not resized for the first two,
    and "single" takes the whole image.
    """
    to_input = [v2.ToImage(), v2.ToDtype(torch.float32), *_to_input(cfg)]
    if cfg.DATA.TEST_PROTOCOL == "dense":
        return Views([v2.Compose([_resize(cfg, side), *to_input]) for side in cfg.DATA.TEST_SCALES])
    resize = [] if cfg.DATA.PAD else [_resize(cfg, cfg.DATA.RESIZE_SIZE)]
    if cfg.DATA.TEST_PROTOCOL == "ten_crop":
        crops = StackedCrops(v2.Compose(to_input))
        return v2.Compose([*resize, v2.TenCrop(cfg.DATA.CROP_SIZE), crops])
    if cfg.DATA.PAD:
        return v2.Compose(to_input)
    return v2.Compose([*resize, v2.CenterCrop(cfg.DATA.CROP_SIZE), *to_input])


test_transform.__test__ = False  # pytest would take an imported name that starts with test_


def collate(samples: list[tuple]) -> dict:
    """{"image": float32 (N, 3, H, W) or (N, 10, 3, H, W), "label": int64 (N,)}.

    Whole images of the dense protocol have sizes of their own: "image" is then a list of
    (N, 3, h, w), one a scale, and all images of the batch must have the same size.
    """
    views = [view for view, _ in samples]
    label = torch.tensor([label for _, label in samples])
    if isinstance(views[0], list):
        return {"image": [torch.stack(scale) for scale in zip(*views, strict=True)], "label": label}
    return {"image": torch.stack(views), "label": label}


def check_keys(cfg: CfgNode) -> None:
    """Raises InputError where a DATA key has a value no transform knows, or could be meant."""
    modes = [mode.value for mode in v2.InterpolationMode]
    for key, choices in (
        ("TEST_PROTOCOL", PROTOCOLS),
        ("CROP_ASPECT", ("uniform", "log")),
        ("INTERPOLATION", modes),
    ):
        if cfg.DATA[key] not in choices:
            raise InputError(
                "config", f'DATA.{key} is "{cfg.DATA[key]}"', f"choose one of {', '.join(choices)}"
            )
    for key, is_good, mend in _bounds(cfg.DATA):
        if not is_good:
            raise InputError("config", f"DATA.{key} is {cfg.DATA[key]}", mend)


def _bounds(data: CfgNode) -> list[tuple[str, bool, str]]:
    """(key, whether its value is good, the mend) of the DATA keys that are numbers."""
    is_resized = not data.PAD and data.TEST_PROTOCOL != "dense"
    at_least_0, at_least_1 = "set it to 0 or more", "set it to 1 or more"
    return [
        ("CROP_SIZE", data.CROP_SIZE >= 1, at_least_1),
        ("TEST_BATCH_SIZE", data.TEST_BATCH_SIZE >= 1, at_least_1),
        ("PAD", data.PAD >= 0, at_least_0),
        ("COLOR_JITTER", data.COLOR_JITTER >= 0, at_least_0),
        ("LIGHTING", data.LIGHTING >= 0, at_least_0),
        ("MIN_CROP_AREA", 0 < data.MIN_CROP_AREA <= 1, "set it to a share above 0, at most 1"),
        (  # torchvision would pad the image with black
            "RESIZE_SIZE",
            data.RESIZE_SIZE >= data.CROP_SIZE or not is_resized,
            f"set it to DATA.CROP_SIZE, {data.CROP_SIZE}, or more",
        ),
        (
            "TEST_SCALES",
            bool(data.TEST_SCALES)
            and all(isinstance(side, int) and side >= 1 for side in data.TEST_SCALES),
            "name one short side or more, whole pixels",
        ),
    ]
