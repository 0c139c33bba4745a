"""Scoring a classifier: on a training's validation images, or by itself (``--eval-only``)."""

import logging
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data.samplers import InferenceSampler
from detectron2.evaluation import inference_on_dataset
from detectron2.utils import comm
from torch.utils.data import Dataset

from ..config import load_cfg, protocol_of, stored_for_test
from ..data import augment, sets
from ..engine.folders import evaluation_folder, folder_of
from ..engine.memory import peak_memory
from ..engine.run import record_evaluation, write_json
from ..engine.trainer import share_statistics
from ..engine.workers import WatchedLoader
from ..weights import load_all, read_weights
from .classifier import Classifier, build_classifier, check_network, in_words
from .evaluator import ErrorEvaluator, errors_in_words
from .protocols import protocol_in_words
from .weights_setup import (
    check_classes,
    check_contradiction,
    require_weights,
    set_as_recorded,
    tell_other_sizes,
)

logger = logging.getLogger(__name__)


def build_test_loader(cfg: CfgNode, data: Dataset) -> WatchedLoader:
    """This process's share of the validation images, in order, none twice."""
    views = 10 if cfg.DATA.TEST_PROTOCOL == "ten_crop" else 1
    is_dense = cfg.DATA.TEST_PROTOCOL == "dense"  # whole images: no two of one size
    return WatchedLoader(
        data,
        1 if is_dense else max(1, cfg.DATA.TEST_BATCH_SIZE // views),
        sampler=InferenceSampler(len(data)),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=augment.collate,
    )


def evaluate(cfg: CfgNode, model: Classifier, data: Dataset) -> dict:
    """`ErrorEvaluator`'s results on ``data``, in percent, by the views of DATA.TEST_PROTOCOL."""
    share_statistics(model)
    evaluator = ErrorEvaluator(cfg.DATA.EVAL_CLASSES)
    with peak_memory("evaluation"):
        results = inference_on_dataset(model, build_test_loader(cfg, data), evaluator)
    logger.info(
        "%s; %d images (%s; %s)",
        errors_in_words(results["classification"], len(data.classes), cfg.DATA.EVAL_CLASSES),
        len(data),
        protocol_in_words(protocol_of(cfg)),
        model.trunk.precision,
    )
    return results


def write_results(cfg: CfgNode, model: Classifier, data: Dataset, results: dict, weights) -> dict:
    """results.json: the errors, and as "evaluation" how they were measured.

    Args:
        results: of `evaluate`.
        weights: the file scored, as it was named; a run's own is beside results.json.

    Returns:
        {"classification": {..}, "evaluation": {"protocol": .., "crop": .., "resize": or "scales":
        .., "precision": "fp32", "images": 50000, "weights": ..}}
    """
    measured = {"precision": model.trunk.precision, "images": len(data), "weights": str(weights)}
    results = {**results, "evaluation": {**protocol_of(cfg), **measured}}
    if comm.is_main_process():
        path = folder_of(cfg, "results.json")
        write_json(path, results)
        logger.info("results: %s", path)
    return results


def evaluation_cfg(config_file: str | None, opts: list[str], default_file: str | Path) -> CfgNode:
    """The config of an ``--eval-only``, MODEL.WEIGHTS' own where no file is named.

    Network and pixels are as the weights record them; the arithmetic is fp32 and OUTPUT_DIR is
    `evaluation_folder`'s, unless ``opts`` name them.

    Args:
        config_file: None takes the config stored in the weights, so that they are tested at the
            sizes that they were trained for; those of other programs store none.
        opts: KEY VALUE overrides, MODEL.WEIGHTS among them.
        default_file: the config for weights that store none.

    Raises:
        InputError: no weights are named or they cannot be read; what is named for the network is
            another than theirs; or as `load_cfg`.
    """
    cfg = load_cfg(config_file or default_file, opts)
    record = require_weights(cfg)
    named = opts[::2]
    if config_file is None and record.config:
        cfg = stored_for_test(record.config, cfg.MODEL.WEIGHTS, opts)
        logger.info("no --config-file: settings are those stored in %s", cfg.MODEL.WEIGHTS)
    check_contradiction(cfg, record, named, whole=config_file is not None)
    tell_other_sizes(cfg, record)
    set_as_recorded(cfg, record)
    check_network(cfg)
    if "MODEL.PRECISION" not in named:
        cfg.MODEL.PRECISION = "fp32"
        logger.info("MODEL.PRECISION fp32, as of published errors; name it for another arithmetic")
    if "OUTPUT_DIR" not in named:
        keys = ("DATA", "MODEL.PRECISION")
        cfg.OUTPUT_DIR = str(evaluation_folder(cfg, _folder_name(cfg), keys))
    return cfg


def _folder_name(cfg: CfgNode) -> str:
    """eval_single224, eval_ten_crop224 (protocol and DATA.CROP_SIZE) or eval_dense."""
    protocol = protocol_of(cfg)
    size = "" if "scales" in protocol else protocol["crop"]
    return f"eval_{protocol['protocol']}{size}"


def evaluate_only(cfg: CfgNode) -> dict:
    """Score ``MODEL.WEIGHTS`` on the validation images; writes run.json and results.json.

    Args:
        cfg: of `evaluation_cfg`.

    Returns:
        As `write_results`; errors in percent.

    Raises:
        InputError: the weights' classes are not the data set's (files of other programs name none:
            then their number must agree), or OUTPUT_DIR holds a training run.
    """
    path = cfg.MODEL.WEIGHTS
    tensors, record = read_weights(path)
    set_as_recorded(cfg, record)
    val = sets.open_split(cfg, "val")
    check_classes(path, tensors, record, val)
    model = build_classifier(cfg, len(val.classes))
    logger.info("%s: %s", path, load_all(model.trunk, tensors, path))
    logger.info(in_words(model))
    record_evaluation(cfg, precision=model.trunk.precision)
    return write_results(cfg, model, val, evaluate(cfg, model, val), path)
