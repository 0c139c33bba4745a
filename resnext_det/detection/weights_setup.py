"""What MODEL.WEIGHTS says of itself, set in or checked against the config before a model is built.

A key that still has its default is set from the file's record; a key that the user changed
must agree with it. So nobody types pixel statistics by hand, and a wrong pair cannot run.
"""

import logging
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.config import get_cfg as get_detectron2_cfg

from ..config import flatten, get_cfg, set_key
from ..errors import InputError
from ..models import Architecture
from ..weights import WeightsRecord
from ..weights.fit import KEYS, are_near, conflict

logger = logging.getLogger(__name__)

NORM = "MODEL.RESNETS.NORM"
# Of Detectron2's get_norm, those with a running mean and variance.
WITH_STATISTICS = ("FrozenBN", "BN", "SyncBN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")


def _same(first: Any, second: Any) -> bool:
    return are_near(first, second) if isinstance(first, list | tuple) else first == second


def apply_record(cfg: CfgNode, record: WeightsRecord, source: str | Path) -> None:
    """Set pixel format, statistics and stride place; check norm, depth and widths.

    Args:
        cfg: changed in place; `resnext_det.get_cfg`'s or a plain Detectron2 one.
        record: of `resnext_det.weights.read_record`.
        source: the weights file's name, for messages.

    Raises:
        InputError: names the key, both values and the mend.
    """
    base = get_cfg() if "SHORTCUT" in cfg.MODEL.RESNETS else get_detectron2_cfg()
    now, default = {**flatten(get_cfg()), **flatten(cfg)}, flatten(base)
    _check_norm(now[NORM], record, source)
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
            raise conflict(key, now[key], value, source)
        logger.info("%s set to %s, as %s records", key, value, source)
        set_key(cfg, key, value)
    # The first records had fewer fields.
    theirs = {**Architecture().as_dict(), **record.architecture}
    for field, key in KEYS.items():
        if key not in settable and now[key] != theirs[field]:
            raise conflict(key, now[key], theirs[field], source)


def _check_norm(norm: str, record: WeightsRecord, source: str | Path) -> None:
    """Norms are never set: which one is trained with is the user's choice among those that fit."""
    if record.fused_norm and norm != "FrozenBN":
        found = "are fused to scale and shift and have no statistics to train on"
        mend = f'set {NORM} "FrozenBN"'
    elif record.has_statistics and norm not in WITH_STATISTICS:
        found = "have running statistics, which that has no place for"
        mend = f'set {NORM} "FrozenBN", "BN" or "SyncBN"'
    elif not record.has_statistics and norm in WITH_STATISTICS:
        found = "have no running statistics"
        mend = f"set {NORM} to the one that they were trained with"
    else:
        return
    raise InputError(
        "config",
        f"{NORM} is {norm!r}, but the norms of {source} {found}",
        f"{mend} or give other weights",
    )
