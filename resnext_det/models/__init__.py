"""The trunk, in torch and Detectron2 layers only."""

from .architecture import BLOCKS_PER_STAGE, Architecture
from .blocks import Bottleneck
from .convolve import set_compute
from .preactivation import PreactivationBlock
from .resnext import ResNeXt, build_resnext, build_stage

__all__ = [
    "BLOCKS_PER_STAGE",
    "Architecture",
    "Bottleneck",
    "PreactivationBlock",
    "ResNeXt",
    "build_resnext",
    "build_stage",
    "set_compute",
]
