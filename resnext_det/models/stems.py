"""The layers in front of res2: Detectron2's for ImageNet, a 3x3 convolution for CIFAR."""

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.layers import CNNBlockBase, Conv2d, get_norm
from detectron2.modeling.backbone.resnet import BasicStem

from .architecture import Architecture
from .blocks import Norm


class CifarStem(CNNBlockBase):
    """3x3 convolution of stride 1, norm, ReLU (paper, Appendix A).

    Inputs (N, in_channels, H, W), outputs (N, out_channels, H, W); there is no pooling.
    """

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
        return F.relu_(self.conv1(x))


def build_stem(
    architecture: Architecture,
    norm: Norm,
    in_channels: int = 3,
) -> CNNBlockBase:
    """The stem of ``architecture``: stride 4 (7x7 and max pooling, Table 1), CIFAR's stride 1."""
    stem = CifarStem if architecture.is_cifar else BasicStem
    return stem(in_channels, architecture.stem_channels, norm)
