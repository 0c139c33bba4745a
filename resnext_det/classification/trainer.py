"""ImageNet-style training: from class folders to ``model_final.safetensors``."""

import functools
import logging
import math
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data.samplers import InferenceSampler
from detectron2.evaluation import inference_on_dataset
from detectron2.utils import comm
from torch.utils.data import Dataset

from ..compat import describe_environment
from ..config import architecture_arguments, check_sizes, protocol_of
from ..data import augment, sets
from ..engine.batch import follow_batch, images_per_process
from ..engine.run import folder_of, record_evaluation, record_run, write_json
from ..engine.sampler import ResumableBatches, one_thread, training_loader
from ..engine.seeding import seed_all
from ..engine.trainer import Trainer, share_statistics
from ..models import Architecture
from ..models.checks import check_layers
from ..weights import WeightsRecord, load_all, read_weights, save_weights
from .classifier import Classifier, build_classifier
from .evaluator import ErrorEvaluator, in_words
from .protocols import protocol_in_words
from .weights_setup import (
    check_classes,
    check_initial,
    initial_weights,
    load_initial,
    require_weights,
    set_as_recorded,
)

logger = logging.getLogger(__name__)
BEST = "classification/top1_error"  # the figure that best weights are told by

FINAL = "model_final.safetensors"


def with_epochs(cfg: CfgNode, num_images: int) -> CfgNode:
    """MAX_EPOCHS and EPOCH_STEPS turned into MAX_ITER and STEPS for a set of this size."""
    cfg = follow_batch(cfg).clone()
    cfg.defrost()
    per_epoch = math.ceil(num_images / cfg.SOLVER.IMS_PER_BATCH)
    if cfg.SOLVER.MAX_EPOCHS > 0:
        cfg.SOLVER.MAX_ITER = max(1, round(cfg.SOLVER.MAX_EPOCHS * per_epoch))
        cfg.SOLVER.STEPS = tuple(round(e * per_epoch) for e in cfg.SOLVER.EPOCH_STEPS)
    cfg.SOLVER.STEPS = tuple(s for s in cfg.SOLVER.STEPS if s < cfg.SOLVER.MAX_ITER)
    cfg.freeze()
    logger.info(
        "%d images, %d iterations an epoch: %d iterations, learning rate divided at %s",
        num_images,
        per_epoch,
        cfg.SOLVER.MAX_ITER,
        list(cfg.SOLVER.STEPS),
    )
    return cfg


def build_train_loader(cfg: CfgNode, data: Dataset, start: int):
    """Batches {"image", "label"} of this process, from iteration ``start`` on."""
    batches = ResumableBatches(len(data), images_per_process(cfg), cfg.SEED, start=start)
    return training_loader(
        data.__getitem__, batches, collate=augment.collate, num_workers=cfg.DATALOADER.NUM_WORKERS
    )


def build_test_loader(cfg: CfgNode, data: Dataset) -> torch.utils.data.DataLoader:
    """This process's share of the validation images, in order, none twice."""
    views = 10 if cfg.DATA.TEST_PROTOCOL == "ten_crop" else 1
    is_dense = cfg.DATA.TEST_PROTOCOL == "dense"  # whole images: no two of one size
    return torch.utils.data.DataLoader(
        data,
        1 if is_dense else max(1, cfg.DATA.TEST_BATCH_SIZE // views),
        sampler=InferenceSampler(len(data)),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=augment.collate,
        worker_init_fn=one_thread,
    )


def evaluate(cfg: CfgNode, model: Classifier, data: Dataset) -> dict:
    """`ErrorEvaluator`'s results on ``data``, in percent, by the views of DATA.TEST_PROTOCOL."""
    share_statistics(model)
    evaluator = ErrorEvaluator(cfg.DATA.EVAL_CLASSES)
    results = inference_on_dataset(model, build_test_loader(cfg, data), evaluator)
    logger.info(
        "%s; %d images (%s; %s)",
        in_words(results["classification"], len(data.classes), cfg.DATA.EVAL_CLASSES),
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
        write_json(folder_of(cfg, "results.json"), results)
    return results


def record_of(
    cfg: CfgNode, model: Classifier, class_names: list[str], top1_error: float | None
) -> WeightsRecord:
    return WeightsRecord(
        kind="classification",
        architecture=model.trunk.architecture.as_dict(),
        pixel_format=cfg.INPUT.FORMAT,
        pixel_mean=list(cfg.MODEL.PIXEL_MEAN),
        pixel_std=list(cfg.MODEL.PIXEL_STD),
        class_names=list(class_names),
        top1_error=top1_error,
        config=cfg.dump(),
        versions=describe_environment(),
    )


def check_network(cfg: CfgNode) -> None:
    """Raises InputError where the network cannot be, or the images are too small for it."""
    augment.check_keys(cfg)
    architecture = Architecture(**architecture_arguments(cfg))
    check_layers(architecture, cfg.MODEL.RESNETS.NORM, cfg.MODEL.RESNETS.FORM)
    keys = ["DATA.CROP_SIZE"]
    if cfg.DATA.TEST_PROTOCOL == "dense":
        keys.append("DATA.TEST_SCALES")
    check_sizes(cfg, keys, architecture.stride)


def check_start(cfg: CfgNode, resume: bool) -> str:
    """What a training can be refused for before its folder is made.

    Returns:
        The weights that it begins with: MODEL.WEIGHTS, or "" for random ones or a checkpoint.

    Raises:
        InputError: see `check_network` and `check_initial`.
    """
    check_network(cfg)
    weights = initial_weights(cfg, resume)
    if weights:
        check_initial(cfg, weights)
    return weights


def train(cfg: CfgNode, resume: bool) -> dict:
    """The whole classification step; writes model_final.safetensors and results.json.

    It begins with MODEL.WEIGHTS where they are named (their head where it is for the same
    classes), or with ``resume`` where the run in OUTPUT_DIR stopped.

    Returns:
        As `write_results`; errors in percent.
    """
    weights = check_start(cfg, resume)
    final = folder_of(cfg, FINAL)
    train_data, val_data = sets.open_both(cfg)
    cfg = with_epochs(cfg, len(train_data))
    seed_all(cfg.SEED, 2)
    model = build_classifier(cfg, len(train_data.classes))
    logger.info(
        "%s with %d classes, %.2f M parameters, %s",
        model.trunk.architecture.name,
        len(train_data.classes),
        sum(p.numel() for p in model.parameters()) / 1e6,
        model.trunk.precision,
    )
    if weights:
        load_initial(cfg, model, weights, train_data.classes)
    record_run(cfg, precision=model.trunk.precision)
    results: dict = {}

    def score() -> dict:
        results.update(evaluate(cfg, model, val_data))
        return results

    loader = functools.partial(build_train_loader, cfg, train_data)
    period = cfg.TEST.EVAL_PERIOD
    trainer = Trainer(cfg, model, loader, evaluate=score, eval_period=period, best=BEST)
    trainer.fit(resume)
    if cfg.SOLVER.FINAL_WEIGHTS == "best":
        trainer.load_best()
        score()
    if comm.is_main_process():
        top1 = results["classification"]["top1_error"]
        save_weights(
            final, model.trunk.state_dict(), record_of(cfg, model, train_data.classes, top1)
        )
        logger.info("weights: %s", final)
    return write_results(cfg, model, val_data, results, FINAL)


def evaluation_folder(cfg: CfgNode) -> Path:
    """Where an evaluation goes unless OUTPUT_DIR is named: beside its weights, not into their run.

    eval_single224, eval_ten_crop224 (protocol and DATA.CROP_SIZE) or eval_dense.

    Raises:
        InputError: no weights are named, or they are not there; or a DATA key is unknown.
    """
    augment.check_keys(cfg)
    protocol = protocol_of(cfg)
    size = "" if "scales" in protocol else protocol["crop"]
    return require_weights(cfg).parent / f"eval_{protocol['protocol']}{size}"


def use_published_arithmetic(cfg: CfgNode) -> None:
    """An evaluation's MODEL.PRECISION unless the command line names one."""
    cfg.MODEL.PRECISION = "fp32"
    logger.info("MODEL.PRECISION fp32, as of published errors; name it for another arithmetic")


def evaluate_only(cfg: CfgNode) -> dict:
    """Score ``MODEL.WEIGHTS`` on the validation images; writes run.json and results.json.

    Network and pixels are as the weights record them.

    Returns:
        As `write_results`; errors in percent.

    Raises:
        InputError: no weights are named, their classes are not the data set's (files of other
            programs name none: then their number must agree), or OUTPUT_DIR holds a training run.
    """
    path = str(require_weights(cfg))
    tensors, record = read_weights(path)
    set_as_recorded(cfg, record)
    check_network(cfg)
    val = sets.open_split(cfg, "val")
    check_classes(path, tensors, record, val)
    model = build_classifier(cfg, len(val.classes))
    logger.info("%s: %s", path, load_all(model.trunk, tensors, path))
    record_evaluation(cfg, precision=model.trunk.precision)
    return write_results(cfg, model, val, evaluate(cfg, model, val), path)
