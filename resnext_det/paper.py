"""The numbers of the paper's tables, each in one place (Xie et al., CVPR 2017; arXiv:1611.05431v2).

Keys are architecture names as `resnext_det.models.Architecture.name` spells them; networks that
are no member of the family have the paper's own names (`OTHERS`). Errors and AP are percent,
sizes are plain numbers (25.5e6 is what the paper prints as 25.5 x 10^6). What a table leaves
open is None. Nothing here is measured or computed.
"""

from typing import NamedTuple

OTHERS = ("Inception-v3", "Inception-v4", "Inception-ResNet-v2", "Wide ResNet")


class Errors(NamedTuple):
    """Percent."""

    top1: float
    top5: float


class Convolution(NamedTuple):
    """Table 1's conv1; ``output`` is the side of its output in pixels, for a 224 x 224 image."""

    output: int
    kernel: int
    channels: int
    stride: int


class Pooling(NamedTuple):
    """Table 1's max pooling, listed under conv2."""

    kernel: int
    stride: int


class Stage(NamedTuple):
    """A stage of Table 1.

    Args:
        output: side of its output in pixels, for a 224 x 224 image.
        channels: of a block's three convolutions.
        cardinality: C, the groups of the second.
        blocks: how many such blocks are stacked.
        kernels: sides of the three, in pixels.
    """

    output: int
    channels: tuple[int, int, int]
    cardinality: int
    blocks: int
    kernels: tuple[int, int, int] = (1, 3, 1)


class Layers(NamedTuple):
    """A column of Table 1; ``stages`` by our names, of which "res2" is the paper's conv2.

    ``parameters`` and ``flops`` (multiply-adds) are those of the whole, ``classes`` the outputs
    of the fully connected layer behind the global average pooling.
    """

    conv1: Convolution
    pooling: Pooling
    stages: dict[str, Stage]
    classes: int
    parameters: float
    flops: float


class Width(NamedTuple):
    """A column of Table 2: d, and the channels of the 3x3 ("width of group conv.")."""

    bottleneck_width: int
    bottleneck_channels: int


class LargeTest(NamedTuple):
    """A row of Table 5: errors on a 224 crop and on a larger one, whose side is ``large_side``."""

    at_224: Errors | None
    at_large: Errors | None
    large_side: int | None


class FiveThousand(NamedTuple):
    """A row of Table 6: a choice among all 5,000 classes, or among the 1,000 of the test set."""

    of_5000: Errors
    of_1000: Errors


class Cifar(NamedTuple):
    """A row of Table 7: learned parameters, and test errors in percent."""

    parameters: float
    cifar10: float
    cifar100: float


class Detection(NamedTuple):
    """A row of Table 8: AP at IoU 0.5, and COCO's mean over IoU 0.5..0.95; percent."""

    ap50: float
    ap: float


TABLE_1 = {
    "R50_1x64d": Layers(
        conv1=Convolution(output=112, kernel=7, channels=64, stride=2),
        pooling=Pooling(kernel=3, stride=2),
        stages={
            "res2": Stage(output=56, channels=(64, 64, 256), cardinality=1, blocks=3),
            "res3": Stage(output=28, channels=(128, 128, 512), cardinality=1, blocks=4),
            "res4": Stage(output=14, channels=(256, 256, 1024), cardinality=1, blocks=6),
            "res5": Stage(output=7, channels=(512, 512, 2048), cardinality=1, blocks=3),
        },
        classes=1000,
        parameters=25.5e6,
        flops=4.1e9,
    ),
    "X50_32x4d": Layers(
        conv1=Convolution(output=112, kernel=7, channels=64, stride=2),
        pooling=Pooling(kernel=3, stride=2),
        stages={
            "res2": Stage(output=56, channels=(128, 128, 256), cardinality=32, blocks=3),
            "res3": Stage(output=28, channels=(256, 256, 512), cardinality=32, blocks=4),
            "res4": Stage(output=14, channels=(512, 512, 1024), cardinality=32, blocks=6),
            "res5": Stage(output=7, channels=(1024, 1024, 2048), cardinality=32, blocks=3),
        },
        classes=1000,
        parameters=25.0e6,
        flops=4.2e9,
    ),
}
"""Table 1: layers at 224 x 224 and 1,000 classes; parameters and multiply-adds of the whole."""

TABLE_2 = {
    1: Width(bottleneck_width=64, bottleneck_channels=64),
    2: Width(bottleneck_width=40, bottleneck_channels=80),
    4: Width(bottleneck_width=24, bottleneck_channels=96),
    8: Width(bottleneck_width=14, bottleneck_channels=112),
    32: Width(bottleneck_width=4, bottleneck_channels=128),
}
"""Table 2: C to d and C x d, in channels, of the template of conv2 (our res2)."""

TABLE_2_PARAMETERS, TABLE_2_FLOPS = 70e3, 0.22e9
"""Table 2's caption: what every column has, about; parameters, and multiply-adds at 56 x 56."""

TABLE_3 = {
    "R50_1x64d": 23.9,
    "X50_2x40d": 23.0,
    "X50_4x24d": 22.6,
    "X50_8x14d": 22.3,
    "X50_32x4d": 22.2,
    "R101_1x64d": 22.0,
    "X101_2x40d": 21.7,
    "X101_4x24d": 21.4,
    "X101_8x14d": 21.3,
    "X101_32x4d": 21.2,
}
"""Table 3: top-1 error in percent, ImageNet-1K validation set, single 224 crop."""

TABLE_3_FLOPS = {50: 4.1e9, 101: 7.8e9}
"""Table 3's caption: multiply-adds by depth, about."""

TABLE_4 = {
    "R101_1x64d": Errors(top1=22.0, top5=6.0),
    "X101_32x4d": Errors(top1=21.2, top5=5.6),
    "R200_1x64d": Errors(top1=21.7, top5=5.8),
    "R101_1x100d": Errors(top1=21.3, top5=5.7),
    "X101_2x64d": Errors(top1=20.7, top5=5.5),
    "X101_64x4d": Errors(top1=20.4, top5=5.3),
}
"""Table 4: errors in percent, ImageNet-1K validation set, single 224 crop."""

TABLE_4_COMPLEXITY = {
    "R101_1x64d": 1,
    "X101_32x4d": 1,
    "R200_1x64d": 2,
    "R101_1x100d": 2,
    "X101_2x64d": 2,
    "X101_64x4d": 2,
}
"""Table 4: multiply-adds as multiples of ResNet-101's, about."""

TABLE_4_FLOPS = 15e9
"""Sec. 5.1: multiply-adds of Table 4's models of complexity 2, about."""

SHORTCUTS = {
    "R50_1x64d": 23.9,
    "R50_1x64d_noshortcut": 31.2,
    "X50_32x4d": 22.2,
    "X50_32x4d_noshortcut": 26.1,
}
"""Sec. 5.1, the table without a number: top-1 error in percent, as in Table 3."""

TABLE_5 = {
    "R101_1x64d": LargeTest(Errors(22.0, 6.0), None, None),
    "R200_1x64d": LargeTest(Errors(21.7, 5.8), Errors(20.1, 4.8), 320),
    "Inception-v3": LargeTest(None, Errors(21.2, 5.6), 299),
    "Inception-v4": LargeTest(None, Errors(20.0, 5.0), 299),
    "Inception-ResNet-v2": LargeTest(None, Errors(19.9, 4.9), 299),
    "X101_64x4d": LargeTest(Errors(20.4, 5.3), Errors(19.1, 4.4), 320),
}
"""Table 5: errors in percent, ImageNet-1K validation set, single crops of the sides given."""

MULTI_SCALE, ENSEMBLE_TOP5 = Errors(top1=17.7, top5=3.7), 3.03
"""Sec. 5.1, percent: one model, multi-scale dense testing; an ensemble's top-5 on the test set."""

TABLE_6 = {
    "R50_1x64d": FiveThousand(Errors(45.5, 19.4), Errors(27.1, 8.2)),
    "X50_32x4d": FiveThousand(Errors(42.3, 16.8), Errors(24.4, 6.6)),
    "R101_1x64d": FiveThousand(Errors(42.4, 16.9), Errors(24.2, 6.8)),
    "X101_32x4d": FiveThousand(Errors(40.1, 15.1), Errors(22.2, 5.7)),
}
"""Table 6: errors in percent, trained on ImageNet-5K, ImageNet-1K validation set, 224 crop."""

TABLE_7 = {
    "Wide ResNet": Cifar(parameters=36.5e6, cifar10=4.17, cifar100=20.50),
    "X29_8x64d": Cifar(parameters=34.4e6, cifar10=3.65, cifar100=17.77),
    "X29_16x64d": Cifar(parameters=68.1e6, cifar10=3.58, cifar100=17.31),
}
"""Table 7: parameters, and test errors in percent, means of 10 runs."""

TABLE_8 = {
    "R50_1x64d": Detection(ap50=47.6, ap=26.5),
    "X50_32x4d": Detection(ap50=49.7, ap=27.5),
    "R101_1x64d": Detection(ap50=51.1, ap=29.8),
    "X101_32x4d": Detection(ap50=51.9, ap=30.0),
}
"""Table 8: AP in percent on COCO minival, Faster R-CNN with the backbone named."""
