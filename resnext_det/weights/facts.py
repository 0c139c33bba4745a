"""What no other program's weights file says of itself: how its pixels are fed, by family.

===============================================  ======  ========  =========  =========
weights                                          pixels  mean      deviation  stride in
===============================================  ======  ========  =========  =========
torchvision and timm (their names are the same)  RGB     ImageNet  ImageNet   the 3x3
Torch7                                           RGB     ImageNet  ImageNet   the 3x3
Torch7, a CIFAR network, 10 or 100 classes       RGB     CIFAR     CIFAR      the 3x3
Detectron2 names, "__author__" torchvision       RGB     ImageNet  ImageNet   the 3x3
Caffe2, 1 x 64d (MSRA's R-50, R-101)             BGR     ImageNet  1 1 1      the 1x1
Caffe2, C > 1, norms with statistics             BGR     ImageNet  ImageNet   the 3x3
Caffe2, C > 1, fused norms                       BGR     ImageNet  1 1 1      the 3x3
all others                                       as the user states, or refused
===============================================  ======  ========  =========  =========

Sources: torchvision's and timm's model cards; ResNeXt's ``datasets/*.lua``; Detectron2's
MODEL_ZOO.md, ``checkpoint/catalog.py`` and ``tools/convert-torchvision-to-d2.py``. Detectron1 fed
its fused X-101 files other means (102.9801, 115.9465, 122.7717); Detectron2 feeds them these.
"""

from dataclasses import dataclass, replace
from typing import Any

from ..errors import InputError
from ..models import Architecture
from .record import FORMATS, are_numbers

OPTIONS = {
    "pixel_format": f"--pixel-format {'|'.join(FORMATS)}",
    "pixel_mean": "--pixel-mean A B C",
    "pixel_std": "--pixel-std A B C",
    "stride_in_1x1": "--stride-in-1x1 true|false",
}


@dataclass(frozen=True)
class Facts:
    """How pixels are fed and where the stride sits; None where nothing is known of it.

    Args:
        pixel_format: "RGB" or "BGR".
        pixel_mean, pixel_std: three numbers on the 0..255 scale, in that order of channels.
        stride_in_1x1: as `models.Architecture` has it.

    Raises:
        InputError: another order, or not three finite numbers, deviations above 0.
    """

    pixel_format: str | None = None
    pixel_mean: tuple[float, float, float] | None = None
    pixel_std: tuple[float, float, float] | None = None
    stride_in_1x1: bool | None = None

    def __post_init__(self):
        mean, std = self.pixel_mean, self.pixel_std
        if self.pixel_format not in (None, *FORMATS):
            raise _error("pixel_format", self.pixel_format, f"give {' or '.join(FORMATS)}")
        if mean is not None and not are_numbers(list(mean)):
            raise _error("pixel_mean", mean, "give three finite numbers on the 0..255 scale")
        if std is not None and not (are_numbers(list(std)) and min(std) > 0):
            raise _error("pixel_std", std, "give three numbers above 0 on the 0..255 scale")

    def over(self, rule: "Facts") -> "Facts":
        """These facts, and the rule's where these are silent.

        Mean and deviation of the rule belong to its colours: where only the order of channels is
        stated to be another, they are turned round with it.
        """
        if rule.pixel_format and self.pixel_format not in (None, rule.pixel_format):
            mean, std = rule.pixel_mean[::-1], rule.pixel_std[::-1]
            rule = replace(rule, pixel_mean=mean, pixel_std=std)
        return replace(rule, **{k: v for k, v in vars(self).items() if v is not None})

    @property
    def unknown(self) -> list[str]:
        """The options of tools/convert_weights.py that state what is not known."""
        return [option for name, option in OPTIONS.items() if getattr(self, name) is None]


def _error(name: str, value: Any, mend: str) -> InputError:
    return InputError("command line", f"--{name.replace('_', '-')} is {value!r}", mend)


NO_FACTS = Facts()
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
IMAGENET = Facts("RGB", MEAN, STD, stride_in_1x1=False)
FAIR = Facts("BGR", MEAN[::-1], STD[::-1], stride_in_1x1=False)
FOLDED_STD = replace(FAIR, pixel_std=(1.0, 1.0, 1.0))  # multiplied into the first convolution
MSRA = replace(FOLDED_STD, stride_in_1x1=True)
CIFAR = {
    10: replace(IMAGENET, pixel_mean=(125.3, 123.0, 113.9), pixel_std=(63.0, 62.1, 66.7)),
    100: replace(IMAGENET, pixel_mean=(129.3, 124.1, 112.4), pixel_std=(68.2, 65.4, 70.4)),
}


def rule_of(
    family: str, architecture: Architecture, classes: int, is_fused: bool, author: str
) -> Facts:
    """The facts by the table above; empty ones where it has no row.

    Args:
        family: a key of `families.FAMILIES`.
        classes: outputs of the head, 0 without one.
        is_fused: the norms have no statistics.
        author: Detectron2's "__author__" entry, or "".
    """
    if family == "caffe2" and architecture.cardinality > 1:
        return FOLDED_STD if is_fused else FAIR
    if family == "caffe2":
        return MSRA if architecture.bottleneck_width == 64 else NO_FACTS
    if family == "detectron2" and author != "torchvision":
        return NO_FACTS
    if family == "torch7" and architecture.is_cifar:
        return CIFAR.get(classes, NO_FACTS)
    return IMAGENET
