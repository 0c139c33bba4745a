"""A trained detector from one file: what evaluation, pictures and a user's script need."""

import logging
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from ..compat import describe_environment
from ..config import architecture_arguments, stored_for_test
from ..data.coco import class_names
from ..engine.run import choose_device
from ..errors import InputError
from ..models import Architecture
from ..weights import WeightsRecord, check_fit, load_all, read_record, read_weights

logger = logging.getLogger(__name__)


def load_detector(path: str | Path, cfg: CfgNode | None = None) -> tuple[nn.Module, CfgNode]:
    """Build the joined detector in a weights file and load it, in evaluation mode.

    Args:
        path: a ``model_final.safetensors`` of kind "detector".
        cfg: the config to build with; None takes the one stored in the file.

    Raises:
        InputError: no such file, another kind of weights, or a config that does not fit.
    """
    tensors, record = read_weights(path)
    require_detector(record, path)
    if cfg is None:
        cfg = stored_cfg(path)
    model = build_model(cfg).eval()
    check_fit(model, record, path)
    logger.info("%s: %s", path, load_all(model, tensors, path))
    return model, cfg


def require_detector(record: WeightsRecord, path: str | Path) -> None:
    if record.kind != "detector":
        raise InputError(
            path,
            f"holds {record.kind} weights, not a detector",
            "give the model_final.safetensors of a finished train_net.py run",
        )


def stored_cfg(path: str | Path) -> CfgNode:
    """The training config inside a detector file, MODEL.DEVICE as this machine has it.

    Raises:
        InputError: as `load_detector`.
    """
    record = read_record(path)
    require_detector(record, path)
    cfg = stored_for_test(record.config, str(path))
    choose_device(cfg)
    return cfg


def record_of(cfg: CfgNode, kind: str, dataset: str) -> WeightsRecord:
    """The record for weights trained on a loaded data set, whose classes travel along."""
    names, ids = class_names(dataset)
    return WeightsRecord(
        kind=kind,
        architecture=Architecture(**architecture_arguments(cfg)).as_dict(),
        pixel_format=cfg.INPUT.FORMAT,
        pixel_mean=list(cfg.MODEL.PIXEL_MEAN),
        pixel_std=list(cfg.MODEL.PIXEL_STD),
        class_names=names,
        class_ids=ids,
        config=cfg.dump(),
        versions=describe_environment(),
    )
