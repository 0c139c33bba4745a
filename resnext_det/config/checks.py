"""What is wrong with a config and can be known before anything is read: InputError, key by key."""

from collections.abc import Iterable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import get_norm

from ..errors import InputError
from .keys import get_cfg
from .views import TRAINED, flatten, nearest_key

# As other rooms have them, which this one may not import; tests/test_config.py compares.
SCORERS = ("auto", "pycocotools", "hotcoco")  # detection.scorer_backends.CHOICES
PRECISIONS = ("fp32", "bf16", "fp16", "auto")  # models.precision.DTYPES, and "auto"
NORMS = ("BN", "SyncBN", "FrozenBN", "GN", "LN")  # models.blocks.NORMS
# Classification's, and what counts in detection: iterations.
EPOCHS = {"MAX_EPOCHS": "MAX_ITER", "EPOCH_STEPS": "STEPS"}
# Keys of Detectron2's that nothing here reads, and what to do instead: a changed one is refused.
UNREAD = {
    "SOLVER.AMP.ENABLED": 'set MODEL.PRECISION "bf16" instead',
    "SOLVER.REFERENCE_WORLD_SIZE": "set SOLVER.RPN.REFERENCE_BATCH and so on, images in all",
    "DATALOADER.SAMPLER_TRAIN": "leave it: every image comes once an epoch, so that runs resume",
    "DATASETS.PROPOSAL_FILES_TRAIN": "set PROPOSALS.FILES (docs/proposals.md)",
    "DATASETS.PROPOSAL_FILES_TEST": "leave it: the detector's own RPN proposes",
    "TEST.AUG.ENABLED": "leave it: an image is looked at once",
    "TEST.PRECISE_BN.ENABLED": "leave it: running statistics are taken as they are",
}


def _check_choice(source: str, key: str, value: Any, choices: tuple) -> None:
    if value not in choices:
        raise InputError(
            source, f'{key} is "{value}"', f"set it to one of {', '.join(map(str, choices))}"
        )


def check_sizes(cfg: CfgNode, keys: Iterable[str], least: int) -> None:
    """Raises InputError where images would be smaller than one cell of the network's last map.

    Args:
        keys: of sizes in pixels, one or several each, as "DATA.TEST_SCALES"; 0 stands for images
            that are not resized.
        least: pixels, the network's total stride (``models.Architecture.stride``).
    """
    leaves = flatten(cfg)
    for key in keys:
        value = leaves[key]
        sizes = value if isinstance(value, tuple | list) else [value]
        if any(0 < size < least for size in sizes):
            raise InputError(
                "config",
                f"{key} is {value}, and the network needs {least} pixels, its stride",
                f"set it to {least} or more",
            )


def _check_norm(norm: str, source: str) -> None:
    try:
        get_norm(norm, 32)  # a number that every norm can divide
    except KeyError as error:
        raise InputError(
            source,
            f'MODEL.RESNETS.NORM is "{norm}"',
            f'set it to one of {", ".join(NORMS)}, or to "" for none',
        ) from error


def _check_device(device: str, source: str) -> None:
    try:
        torch.device(device)
    except RuntimeError as error:
        raise InputError(
            source, f'MODEL.DEVICE is "{device}"', "set it to cuda, cuda:1 (one of several) or cpu"
        ) from error


def check_cfg(cfg: CfgNode, source: str) -> None:
    """Checks of keys, and across them, that would otherwise fail after hours.

    Raises:
        InputError: names the key, its value and the mend.
    """
    _check_device(cfg.MODEL.DEVICE, source)
    _check_norm(cfg.MODEL.RESNETS.NORM, source)
    for key, value, choices in (
        ("MODEL.PRECISION", cfg.MODEL.PRECISION, PRECISIONS),
        ("INPUT.FORMAT", cfg.INPUT.FORMAT, ("RGB", "BGR")),
        ("TEST.SCORER", cfg.TEST.SCORER, SCORERS),
        ("SOLVER.FINAL_WEIGHTS", cfg.SOLVER.FINAL_WEIGHTS, ("last", "best")),
    ):
        _check_choice(source, key, value, choices)
    _check_unread(cfg, source)
    _check_coco_json(cfg, source)
    _check_solver(cfg, source)


def check_keys(cfg: CfgNode) -> None:
    """Raises InputError for a key that a script has made up: nothing would read it."""
    known = get_cfg()
    keys = flatten(known)
    for key in flatten(cfg):
        if key not in keys:
            raise InputError(
                "config",
                f"there is no config key {key}",
                f"did you mean {nearest_key(known, key)}?",
            )


def check_detection_solver(cfg: CfgNode) -> None:
    """Raises InputError for a schedule given to all networks at once: each has its own."""
    default = get_cfg().SOLVER
    instead = {name: name for name in default.RPN} | EPOCHS
    for name, own in instead.items():
        if cfg.SOLVER[name] != default[name]:
            keys = [f"SOLVER.{network.upper()}.{own}" for network in TRAINED]
            raise InputError(
                "config",
                f"SOLVER.{name} is {cfg.SOLVER[name]!r}, and in detection each network has its own",
                f"set {keys[0]} and {keys[1]} (or {keys[2]}, of the shared baseline)",
            )


def _check_unread(cfg: CfgNode, source: str) -> None:
    now, default = flatten(cfg), flatten(get_cfg())
    for key, mend in UNREAD.items():
        # A plain Detectron2 config may lack one, as may a Detectron2 of another year.
        if key in now and now[key] != default.get(key):
            raise InputError(source, f"{key} is {now[key]!r}, and nothing here reads it", mend)


def _check_coco_json(cfg: CfgNode, source: str) -> None:
    for entry in cfg.DATASETS.COCO_JSON:
        if not (isinstance(entry, list | tuple) and len(entry) == 3):
            raise InputError(
                source,
                f"DATASETS.COCO_JSON holds {entry!r}",
                "write each entry as [name, json file, image folder]",
            )


def _check_solver(cfg: CfgNode, source: str) -> None:
    wants_figures = cfg.SOLVER.EARLY_STOP > 0 or cfg.SOLVER.FINAL_WEIGHTS == "best"
    if wants_figures and cfg.TEST.EVAL_PERIOD < 1:
        raise InputError(
            source,
            "SOLVER.EARLY_STOP and SOLVER.FINAL_WEIGHTS best need evaluations, and "
            f"TEST.EVAL_PERIOD is {cfg.TEST.EVAL_PERIOD}",
            "set TEST.EVAL_PERIOD to the iterations between two evaluations",
        )
    if cfg.TEST.EVAL_PERIOD < 0:
        raise InputError(
            source, f"TEST.EVAL_PERIOD is {cfg.TEST.EVAL_PERIOD}", "set it to 0 (none)"
        )
    if cfg.PROPOSALS.ONLINE and cfg.MODEL.META_ARCHITECTURE == "SharedRCNN":
        raise InputError(
            source,
            "PROPOSALS.ONLINE is True, and SharedRCNN makes its proposals itself",
            "leave PROPOSALS.ONLINE away",
        )
    for key, value in flatten(cfg.SOLVER, "SOLVER.").items():
        if key.endswith(("IMS_PER_BATCH", "MAX_ITER", "ACCUMULATE")) and value < 1:
            raise InputError(source, f"{key} is {value}", "set it to 1 or more")
