"""The configs of Table 8, one network of one of them at a time, for tests of the recipe."""

import functools
from pathlib import Path

from detectron2.config import CfgNode

from resnext_det.config import load_cfg, stage_cfg

CONFIGS = Path(__file__).parents[2] / "configs"
NARROW = ("MODEL.RESNETS.WIDTH_MULTIPLIER", "0.25", "MODEL.RESNETS.DEPTH", "14")


@functools.cache
def cfg_of(stage: str, name: str = "X50_32x4d", *opts: str) -> CfgNode:
    """ "rpn" or "fast_rcnn" of a row, on the CPU; ``opts`` are KEY VALUE pairs. Frozen."""
    opts = ["MODEL.DEVICE", "cpu", *opts]
    return stage_cfg(load_cfg(CONFIGS / f"faster_rcnn_{name}.yaml", opts), stage)
