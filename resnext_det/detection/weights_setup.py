"""What MODEL.WEIGHTS says of itself, set in or checked against the config before a model is built.

A key that still has its default is set from the file's record; a key that the user changed
must agree with it. So nobody types pixel statistics by hand, and a wrong pair cannot run.
"""

import logging
from typing import Any

from detectron2.config import CfgNode

from ..config import flatten, get_cfg
from ..errors import InputError
from ..models import Architecture
from ..weights import WeightsRecord

logger = logging.getLogger(__name__)

ARCHITECTURE_KEYS = {
    "depth": "MODEL.RESNETS.DEPTH",
    "cardinality": "MODEL.RESNETS.NUM_GROUPS",
    "bottleneck_width": "MODEL.RESNETS.WIDTH_PER_GROUP",
    "width_multiplier": "MODEL.RESNETS.WIDTH_MULTIPLIER",
    "shortcut": "MODEL.RESNETS.SHORTCUT",
}
DEFAULTS = Architecture().as_dict()


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(
            abs(a - b) < 1e-3 for a, b in zip(first, second, strict=True)
        )
    return first == second


def _set(cfg: CfgNode, key: str, value: Any) -> None:
    *path, leaf = key.split(".")
    node = cfg
    for part in path:
        node = node[part]
    node[leaf] = value


def apply_record(cfg: CfgNode, record: WeightsRecord, source: str) -> None:
    """Set pixel format, statistics and stride place; check norm, depth and widths.

    Raises:
        InputError: names the key, both values and the mend.
    """
    now, default = flatten(cfg), flatten(get_cfg())
    if record.fused_norm and now["MODEL.RESNETS.NORM"] != "FrozenBN":
        raise InputError(
            "config",
            f"MODEL.RESNETS.NORM is {now['MODEL.RESNETS.NORM']!r}, but the norms of {source} are "
            "fused to scale and shift and have no statistics to train on",
            'set MODEL.RESNETS.NORM "FrozenBN" or give other weights',
        )
    settable = {
        "INPUT.FORMAT": record.pixel_format,
        "MODEL.PIXEL_MEAN": list(record.pixel_mean),
        "MODEL.PIXEL_STD": list(record.pixel_std),
        "MODEL.RESNETS.STRIDE_IN_1X1": record.stride_in_1x1,
    }
    for key, value in settable.items():
        if _same(now[key], value):
            continue
        if not _same(now[key], default[key]):
            raise _conflict(key, now[key], value, source)
        logger.info("%s set to %s, as %s records", key, value, source)
        _set(cfg, key, value)
    theirs = {**DEFAULTS, **record.architecture}  # the first records had fewer fields
    for field, key in ARCHITECTURE_KEYS.items():
        if not _same(now[key], theirs[field]):
            raise _conflict(key, now[key], theirs[field], source)


def _conflict(key: str, ours: Any, theirs: Any, source: str) -> InputError:
    return InputError(
        "config",
        f"{key} is {ours!r}, but {source} was trained with {theirs!r}",
        f"set {key} {theirs!r} or give other weights",
    )
