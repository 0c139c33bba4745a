"""What MODEL.WEIGHTS says of itself, set in or checked against the config before a model is built.

A key that still has its default is set from the file's record; a key that the user changed
must agree with it. So nobody types pixel statistics by hand, and a wrong pair cannot run.
"""

import logging
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.config import get_cfg as get_detectron2_cfg

from ..config import flatten, get_cfg, set_key
from ..models import Architecture
from ..weights import WeightsRecord
from ..weights.fit import KEYS, NORM, agree, check_norm, conflict

logger = logging.getLogger(__name__)


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
    check_norm(now[NORM], record, source)
    settable = {
        "INPUT.FORMAT": record.pixel_format,
        "MODEL.PIXEL_MEAN": list(record.pixel_mean),
        "MODEL.PIXEL_STD": list(record.pixel_std),
        "MODEL.RESNETS.STRIDE_IN_1X1": record.stride_in_1x1,
    }
    for key, value in settable.items():
        if agree(now[key], value):
            continue
        if not agree(now[key], default[key]):
            raise conflict(key, now[key], value, source)
        logger.info("%s set to %s, as %s records", key, value, source)
        set_key(cfg, key, value)
    # The first records had fewer fields.
    theirs = {**Architecture().as_dict(), **record.architecture}
    for field, key in KEYS.items():
        if key not in settable and now[key] != theirs[field]:
            raise conflict(key, now[key], theirs[field], source)
