"""The layers in front of res2: Detectron2's for ImageNet, a 3x3 convolution for CIFAR."""

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.layers import CNNBlockBase, Conv2d, get_norm
from detectron2.modeling.backbone.resnet import BasicStem

from .architecture import Architecture
from .blocks import Norm
from .convolve import PLAIN, convolve
from .folding import ForgetsFolded


class CifarStem(ForgetsFolded, CNNBlockBase):
    """3x3 convolution of stride 1, norm, ReLU (paper, Appendix A).

    Inputs (N, in_channels, H, W), outputs (N, out_channels, H, W); there is no pooling.
    """

    compute = PLAIN

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 64,
        norm: Norm = "BN",
    ):
        super().__init__(in_channels, out_channels, stride=1)
        self.conv1 = Conv2d(
            in_channels,
            out_channels,
            kernel_size=3,
            padding=1,
            bias=False,
            norm=get_norm(norm, out_channels),
        )
        weight_init.c2_msra_fill(self.conv1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return convolve(self.conv1, x, relu=True, compute=self.compute)


class ImageNetStem(ForgetsFolded, BasicStem):
    """Detectron2's stem, 7x7 of stride 2 and max pooling (paper, Table 1)."""

    compute = PLAIN

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = convolve(self.conv1, x, relu=True, compute=self.compute)
        return F.max_pool2d(x, kernel_size=3, stride=2, padding=1)


def build_stem(
    architecture: Architecture,
    norm: Norm,
    in_channels: int = 3,
) -> CNNBlockBase:
    """The stem of ``architecture``, of its ``stem_stride``: ImageNet's (Table 1) or CIFAR's."""
    stem = CifarStem if architecture.is_cifar else ImageNetStem
    return stem(in_channels, architecture.stem_channels, norm)
