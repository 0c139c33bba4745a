"""JPEGs decoded at a half, a quarter or an eighth of their sides, for training.

libjpeg leaves the fine coefficients of every block out (its scaled inverse transform), which saves
most of the time of decoding a photograph of many megapixels that is shrunk afterwards anyway. Off
unless DATALOADER.REDUCED_DECODE is set; evaluation and prediction never do it.
"""

import functools
import math
from collections.abc import Callable

from detectron2.config import CfgNode

from ..errors import InputError
from .images import read_rgb

GAP = 2.0  # a reduced image is so many times larger than what is asked for; Pillow's own default
SCALES = (2, 4, 8)  # that libjpeg has


def reader_of(cfg: CfgNode, split: str) -> Callable:
    """`images.read_rgb`, of reduced images where the config wants them.

    Args:
        split: "train" or "val" (never reduced).
    """
    if split != "train" or not cfg.DATALOADER.REDUCED_DECODE:
        return read_rgb
    return functools.partial(read_rgb, short_side=crop_side(cfg))


def crop_side(cfg: CfgNode) -> int:
    """Short side of a classification image, pixels, that loses nothing of a training crop.

    That of an image whose smallest crop is not enlarged; at least `GAP` times the test's.
    """
    smallest = cfg.DATA.CROP_SIZE / math.sqrt(cfg.DATA.MIN_CROP_AREA)
    return math.ceil(max(smallest, GAP * cfg.DATA.RESIZE_SIZE))


def detector_side(cfg: CfgNode) -> int:
    """Short side of a detector's training image, pixels; 0: images are not reduced.

    Raises:
        InputError: INPUT.CROP counts pixels of the whole image.
    """
    if not cfg.DATALOADER.REDUCED_DECODE:
        return 0
    if cfg.INPUT.CROP.ENABLED and cfg.INPUT.CROP.TYPE.startswith("absolute"):
        raise InputError(
            "config",
            f"INPUT.CROP.TYPE is {cfg.INPUT.CROP.TYPE}, pixels of whole images, and "
            "DATALOADER.REDUCED_DECODE is True",
            "set INPUT.CROP.TYPE relative, or DATALOADER.REDUCED_DECODE False",
        )
    share = min(cfg.INPUT.CROP.SIZE) if cfg.INPUT.CROP.ENABLED else 1.0
    return math.ceil(GAP * max(cfg.INPUT.MIN_SIZE_TRAIN) / share)


def is_reduced(size: tuple[int, int], whole: tuple[int, int]) -> bool:
    """Whether (height, width) is what libjpeg makes of the size ``whole`` at one of `SCALES`."""
    return any(size == tuple(math.ceil(side / scale) for side in whole) for scale in SCALES)
