"""MODEL.WEIGHTS of a classifier: what a training begins with, what an evaluation scores."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn
from torch.utils.data import Dataset

from ..config import cfg_from_text, flatten, get_cfg, set_key
from ..engine.checkpoint import RunCheckpointer
from ..errors import InputError
from ..models import Architecture
from ..weights import WeightsRecord, load_all, read_record, read_weights
from ..weights.fit import KEYS, NORM, agree, check_fit, check_norm, conflict
from .classifier import Classifier

logger = logging.getLogger(__name__)

HEAD = "linear."
PIXELS = {
    "INPUT.FORMAT": "pixel_format",
    "MODEL.PIXEL_MEAN": "pixel_mean",
    "MODEL.PIXEL_STD": "pixel_std",
}


def _recorded(record: WeightsRecord) -> dict[str, Any]:
    """{config key: value} of network and pixels; the first records had fewer fields."""
    architecture = Architecture(**record.architecture).as_dict()
    found = {key: getattr(record, name) for key, name in PIXELS.items()}
    return found | {key: architecture[field] for field, key in KEYS.items()}


def set_as_recorded(cfg: CfgNode, record: WeightsRecord) -> None:
    """Network and pixels as the weights know them, whatever the config says."""
    for key, value in _recorded(record).items():
        set_key(cfg, key, value)


def check_contradiction(
    cfg: CfgNode, record: WeightsRecord, named: Sequence[str], whole: bool
) -> None:
    """Whether what the user says of network and pixels is what the weights record.

    Args:
        named: keys on the command line.
        whole: the user named the config as well, which then speaks of the whole network, and of
            pixels where it changes their defaults.

    Raises:
        InputError: names the key, both values and the mend.
    """
    now, default, said = flatten(cfg), flatten(get_cfg()), set(named)
    check_norm(now[NORM], record, cfg.MODEL.WEIGHTS)
    if whole:
        said |= {*KEYS.values(), *(key for key in PIXELS if now[key] != default[key])}
    for key, theirs in _recorded(record).items():
        if key in said and not agree(theirs, now[key]):
            raise conflict(key, now[key], theirs, cfg.MODEL.WEIGHTS)


TEST_SIZES = ("CROP_SIZE", "RESIZE_SIZE", "PAD", "INTERPOLATION")


def tell_other_sizes(cfg: CfgNode, record: WeightsRecord) -> None:
    """Log where test images are made otherwise than in the weights' own run."""
    if not record.config:
        return
    stored = cfg_from_text(record.config, cfg.MODEL.WEIGHTS).DATA
    for key in TEST_SIZES:
        if stored[key] != cfg.DATA[key]:
            text = "DATA.%s is %r here, the run of these weights had %r"
            logger.info(text, key, cfg.DATA[key], stored[key])
    if cfg.DATA.TEST_PROTOCOL == "dense":
        _tell_scales(cfg.DATA.TEST_SCALES, stored.CROP_SIZE)


def _tell_scales(scales: tuple[int, ...], crop: int) -> None:
    """The dense protocol's scales are of networks that were trained at 224 pixels."""
    if scales and crop < min(scales):
        text = (
            "DATA.TEST_SCALES are %s, and these weights were trained at %d pixels: an image takes "
            "about %d times a single crop's time; the same ratios are DATA.TEST_SCALES %s"
        )
        ratio = sum((scale / crop) ** 2 for scale in scales)
        own = tuple(round(scale * crop / min(scales)) for scale in scales)
        logger.warning(text, ", ".join(map(str, scales)), crop, ratio, f'"{own}"')


def initial_weights(cfg: CfgNode, resume: bool) -> str:
    """MODEL.WEIGHTS; "" where a checkpoint of the run itself is gone on with instead."""
    if cfg.MODEL.WEIGHTS and resume:
        checkpoint = RunCheckpointer(nn.Module(), cfg.OUTPUT_DIR).newest()
        if checkpoint is not None:
            logger.info("%s is there: MODEL.WEIGHTS is not read", checkpoint)
            return ""
    return cfg.MODEL.WEIGHTS


def check_initial(cfg: CfgNode, path: str) -> None:
    """Whether the weights named fit the network and the pixels of the config.

    Raises:
        InputError: the file is missing, damaged or no classification weights; or names a key, its
            value, the file's and the mend.
    """
    record = read_record(path)
    if record.kind != "classification":
        raise InputError(
            path,
            f"holds {record.kind} weights, and classification begins with its own kind",
            'give classification weights, or MODEL.WEIGHTS "" to begin with random ones',
        )
    now = flatten(cfg)
    check_norm(now[NORM], record, path)
    for key, theirs in _recorded(record).items():
        if not agree(theirs, now[key]):
            raise conflict(key, now[key], theirs, path)


def load_initial(cfg: CfgNode, model: Classifier, path: str, class_names: Sequence[str]) -> None:
    """Load the file into the trunk, and into the head where it is one for the same classes.

    Raises:
        InputError: see `read_weights`, `check_fit` and `load_all`.
    """
    tensors, record = read_weights(path)
    check_fit(model.trunk, record, path)
    allowed = tuple(cfg.MODEL.WEIGHTS_ALLOW_MISSING)
    reason = _why_fresh(tensors, record, class_names)
    if reason:
        tensors = {name: t for name, t in tensors.items() if not name.startswith(HEAD)}
        allowed += (f"{HEAD}*",)
    report = load_all(model.trunk, tensors, path, allowed)
    logger.info("%s: %s%s", path, report, reason and f"; the head starts fresh: {reason}")


def _why_fresh(
    tensors: dict[str, torch.Tensor], record: WeightsRecord, class_names: Sequence[str]
) -> str:
    """Why the file's head is of no use here; "" where it is."""
    if f"{HEAD}weight" not in tensors:
        return "the file has none"
    outputs = len(tensors[f"{HEAD}weight"])
    if outputs != len(class_names):
        return f"the file's is for {outputs} classes, the data have {len(class_names)}"
    if record.class_names and list(record.class_names) != list(class_names):
        return f"the file's is for other classes ({', '.join(record.class_names[:3])}, ...)"
    return ""


def require_weights(cfg: CfgNode) -> WeightsRecord:
    """The record of an evaluation's MODEL.WEIGHTS.

    Raises:
        InputError: none are named, or they are not there or damaged.
    """
    if not cfg.MODEL.WEIGHTS:
        raise InputError(
            "MODEL.WEIGHTS",
            "is empty, and --eval-only needs trained weights",
            "add MODEL.WEIGHTS path/to/model_final.safetensors",
        )
    return read_record(cfg.MODEL.WEIGHTS)


def check_classes(path: str, tensors: dict, record: WeightsRecord, val: Dataset) -> None:
    """Raises InputError where weights and data set have other classes or no head at all."""
    if f"{HEAD}weight" not in tensors:
        raise InputError(
            path,
            f"holds {record.kind} weights without a classification head",
            "give weights with one",
        )
    outputs = len(tensors[f"{HEAD}weight"])
    if outputs != len(val.classes):
        found = f"has {len(val.classes)} classes, {path} has {outputs}"
    elif record.class_names and record.class_names != val.classes:
        found = (
            f"has classes {val.classes[:3]} ..., {path} was trained on {record.class_names[:3]} ..."
        )
    else:
        return
    raise InputError(val.root, found, "give the same classes")
