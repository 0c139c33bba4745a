"""The trunk, in torch and Detectron2 layers only."""

from .architecture import BLOCKS_PER_STAGE, Architecture
from .resnext import ResNeXt, build_resnext, build_stage

__all__ = ["BLOCKS_PER_STAGE", "Architecture", "ResNeXt", "build_resnext", "build_stage"]
