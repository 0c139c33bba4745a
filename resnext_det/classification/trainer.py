"""ImageNet-style training: from class folders to ``model_final.safetensors``."""

import functools
import logging
import math

from detectron2.config import CfgNode
from detectron2.utils import comm
from torch.utils.data import Dataset

from ..compat import describe_environment
from ..data import augment, sets
from ..engine.batch import follow_batch, images_per_process
from ..engine.checkpoint import remove_leftovers
from ..engine.folders import folder_of
from ..engine.run import record_run
from ..engine.sampler import ResumableBatches, training_loader
from ..engine.seeding import seed_all
from ..engine.trainer import Trainer
from ..weights import WeightsRecord, save_weights
from .classifier import (
    Classifier,
    build_classifier,
    check_compiler,
    check_network,
    in_words,
)
from .evaluation import evaluate, write_results
from .weights_setup import check_initial, initial_weights, load_initial

logger = logging.getLogger(__name__)
BEST = "classification/top1_error"  # the figure that best weights are told by

FINAL = "model_final.safetensors"


def with_epochs(cfg: CfgNode, num_images: int) -> CfgNode:
    """MAX_EPOCHS and EPOCH_STEPS, where given, turned into MAX_ITER and STEPS for this set."""
    cfg = follow_batch(cfg).clone()
    cfg.defrost()
    per_epoch = math.ceil(num_images / cfg.SOLVER.IMS_PER_BATCH)
    if cfg.SOLVER.MAX_EPOCHS > 0:
        cfg.SOLVER.MAX_ITER = max(1, round(cfg.SOLVER.MAX_EPOCHS * per_epoch))
    if cfg.SOLVER.EPOCH_STEPS or cfg.SOLVER.MAX_EPOCHS > 0:
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


def check_start(cfg: CfgNode, resume: bool) -> str:
    """What a training can be refused for before its folder is made.

    Returns:
        The weights that it begins with: MODEL.WEIGHTS, or "" for random ones or a checkpoint.

    Raises:
        InputError: see `check_network`, `check_compiler` and `check_initial`.
    """
    check_network(cfg)
    check_compiler(cfg)
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
    logger.info(in_words(model))
    if weights:
        load_initial(cfg, model, weights, train_data.classes)
    record_run(cfg, precision=model.trunk.precision)
    remove_leftovers(cfg.OUTPUT_DIR)
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
