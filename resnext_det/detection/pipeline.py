"""From a config to a scored detector: checks first, then the stages that are not finished."""

import logging
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils import comm

from ..config import TRAINED, check_detection_solver, check_keys, flatten, override
from ..data import coco
from ..data.coco_sets import check_config_sets, check_test_sets
from ..engine.checkpoint import remove_leftovers
from ..engine.folders import evaluation_folder, folder_of
from ..engine.run import record_evaluation, record_run
from ..errors import InputError
from ..weights import WeightsRecord, read_record
from . import report, stage_files, stages
from .backbone import check_detector, check_image_sizes, precision_of
from .class_match import check_wanted, matching
from .detector import require_detector, stored_cfg
from .weights_setup import apply_record

logger = logging.getLogger(__name__)


def prepare(cfg: CfgNode) -> None:
    """Check data and weights, and set what follows from them in ``cfg``.

    The class count comes from the annotation files; pixel statistics from MODEL.WEIGHTS.

    Raises:
        InputError: anything wrong with a data set or the weights, before hours are spent.
    """
    check_keys(cfg)
    check_detection_solver(cfg)
    record = _initial_record(cfg)  # a wrong path is told before the data are read
    _load_data_sets(cfg)
    names, ids = coco.class_names(cfg.DATASETS.TRAIN[0])
    classes = (f"{id_} -> {n} {name}" for n, (id_, name) in enumerate(zip(ids, names, strict=True)))
    logger.info("category ids to classes: %s", ", ".join(classes))
    if cfg.MODEL.ROI_HEADS.NUM_CLASSES != len(names):
        logger.info("%d classes, from %s", len(names), cfg.DATASETS.TRAIN[0])
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(names)
    for name in cfg.DATASETS.TEST:  # not only when the training is done
        check_wanted(cfg.TEST.CLASSES, name)
    if record:
        apply_record(cfg, record, cfg.MODEL.WEIGHTS)
    check_detector(cfg)


def _initial_record(cfg: CfgNode) -> WeightsRecord | None:
    if not cfg.MODEL.WEIGHTS:
        return None
    record = read_record(cfg.MODEL.WEIGHTS)
    if record.kind != "classification":
        raise InputError(
            cfg.MODEL.WEIGHTS,
            f"holds {record.kind} weights; training starts from classification weights",
            'give those, or "" to start from random ones',
        )
    return record


def _load_data_sets(cfg: CfgNode) -> None:
    coco.register_from_config(cfg)
    for key in ("TRAIN", "TEST"):
        if not cfg.DATASETS[key]:
            raise InputError(
                "config",
                f"DATASETS.{key} is empty",
                "name a data set there, or give "
                f"--{'train' if key == 'TRAIN' else 'val'}-json and -images",
            )
    check_config_sets(cfg)


def run(cfg: CfgNode, resume: bool, only: str | None = None) -> None:
    """The whole scheme, or one stage of it.

    Args:
        resume: go on in the stage where the run in OUTPUT_DIR stopped.
        only: "rpn", "proposals", "fast_rcnn" or "eval"; what it needs must be there.
    """
    prepare(cfg)
    wanted = stage_files.stages_of(cfg) if only is None else (only,)
    stage_files.check_sources(cfg, wanted)
    if not resume:
        for stage in wanted:
            stage_files.check_unused(cfg, stage)
    if only is not None and not (resume and _is_finished(cfg, only)):
        _require_earlier(cfg, only)
    record_run(cfg, precision=precision_of(cfg))
    cfg.freeze()
    for stage in wanted:
        _run_stage(cfg, stage, resume)


def _is_finished(cfg: CfgNode, stage: str) -> bool:
    return stage != "eval" and stage_files.stage_file(cfg, stage).exists()


def _run_stage(cfg: CfgNode, stage: str, resume: bool) -> None:
    remove_leftovers(stage_files.stage_file(cfg, stage).parent)
    if resume and _is_finished(cfg, stage):
        if stage == "proposals":
            stage_files.check_proposals(cfg)
        else:
            stage_files.check_unchanged(cfg, stage)
        logger.info("stage %s is finished: %s", stage, stage_files.stage_file(cfg, stage))
        return
    if stage in TRAINED:
        stages.train_network(cfg, stage, resume)
    elif stage == "proposals":
        stages.make_proposals(cfg)
    else:
        finish(cfg)


def _require_earlier(cfg: CfgNode, stage: str) -> None:
    """Raises InputError where the file of an earlier stage is missing."""
    for earlier in stage_files.needs(cfg, stage):
        path = stage_files.stage_file(cfg, earlier)
        if not path.exists():
            raise InputError(
                path,
                f"stage {stage} needs this file, which stage {earlier} writes",
                f"run --stage {earlier} first, or leave --stage away",
            )


def finish(cfg: CfgNode) -> None:
    """Join the two networks, score the detector, draw the pictures."""
    if comm.is_main_process():
        stages.join(cfg)
    comm.synchronize()
    evaluate(cfg, stage_files.stage_file(cfg, "join"))


def evaluate(cfg: CfgNode, weights: str | Path) -> dict:
    """Score a detector file on DATASETS.TEST, write results.json and pictures/."""
    results, model = stages.evaluate_detector(cfg, weights)
    if comm.is_main_process():
        report.draw(cfg, model, results)
        logger.info("results: %s, pictures/", folder_of(cfg, "results.json"))
    return results


def evaluation_cfg(cfg: CfgNode | None, weights: str, opts: Sequence[str] = ()) -> CfgNode:
    """The config for ``--eval-only``: the given one, or the one stored in the weights.

    The stored one's OUTPUT_DIR is `use_own_folder`'s.

    Args:
        opts: KEY VALUE overrides of the stored one.

    Raises:
        InputError: no detector weights, or a config that they do not fit.
    """
    if not weights:
        raise InputError(
            "MODEL.WEIGHTS",
            "is empty, and --eval-only needs a trained detector",
            "add MODEL.WEIGHTS path/to/model_final.safetensors",
        )
    record = read_record(weights)
    require_detector(record, weights)
    stored = stored_cfg(weights)
    if cfg is None:
        override(stored, list(opts))
        if "OUTPUT_DIR" not in opts[::2]:
            use_own_folder(stored, weights)
        return stored
    apply_record(cfg, record, weights)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(record.class_names)
    for key, value in flatten(cfg.MODEL, "MODEL.").items():
        then = flatten(stored)[key]
        if then != value and key not in ("MODEL.WEIGHTS", "MODEL.DEVICE"):
            logger.warning("%s is %r, but the detector was trained with %r", key, value, then)
    return cfg


# Settings that tell two evaluations of one detector apart.
OF_AN_EVALUATION = ("DATASETS", "INPUT", "TEST", "MODEL.PRECISION", "MODEL.RPN", "MODEL.ROI_HEADS")


def use_own_folder(cfg: CfgNode, weights: str | Path) -> None:
    """OUTPUT_DIR of an evaluation unless it is named: ``eval`` beside the weights, or ``eval_2`` ..

    See `engine.folders.evaluation_folder`.
    """
    cfg.MODEL.WEIGHTS = str(weights)
    cfg.OUTPUT_DIR = str(evaluation_folder(cfg, "eval", OF_AN_EVALUATION))


def evaluate_only(cfg: CfgNode, weights: str) -> dict:
    """Score ``weights`` with a config from `evaluation_cfg`; config.yaml and run.json say how.

    Raises:
        InputError: no data set, one with faults or other classes, or OUTPUT_DIR holds a training
            run.
    """
    coco.register_from_config(cfg)
    if not cfg.DATASETS.TEST:
        raise InputError(
            "config",
            "DATASETS.TEST is empty",
            "name a data set there, or give --val-json and --val-images",
        )
    check_image_sizes(cfg)
    record = read_record(weights)
    check_test_sets(cfg)
    for name in cfg.DATASETS.TEST:
        matching(record, weights, name, tuple(cfg.TEST.CLASSES))
    record_evaluation(cfg, precision=precision_of(cfg))
    return evaluate(cfg, weights)
