"""ImageNet-style training: from class folders to ``model_final.safetensors``."""

import functools
import logging
import math

import torch
from detectron2.config import CfgNode
from detectron2.data.samplers import InferenceSampler
from detectron2.evaluation import inference_on_dataset
from detectron2.utils import comm
from torch.utils.data import Dataset

from ..compat import describe_environment
from ..data import augment, sets
from ..engine.batch import follow_batch, images_per_process
from ..engine.run import folder_of, record_run, write_json
from ..engine.sampler import ResumableBatches, one_thread, training_loader
from ..engine.seeding import seed_all
from ..engine.trainer import Trainer
from ..errors import InputError
from ..models.architecture import FIELDS
from ..weights import WeightsRecord, load_all, read_weights, save_weights
from .classifier import Classifier, build_classifier
from .evaluator import ErrorEvaluator, in_words

logger = logging.getLogger(__name__)

# Fields of a record's architecture, and their keys in MODEL.RESNETS.
ARCHITECTURE_KEYS = {field: key for field, (key, *_) in FIELDS.items()}


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


def _share_statistics(model: torch.nn.Module) -> None:
    """Every process has BN statistics of its own; the main one's are saved, so they are scored."""
    if comm.get_world_size() > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, 0)


def evaluate(cfg: CfgNode, model: torch.nn.Module, data: Dataset) -> dict:
    """`ErrorEvaluator`'s results on ``data``, in percent, by the views of DATA.TEST_PROTOCOL."""
    _share_statistics(model)
    evaluator = ErrorEvaluator(cfg.DATA.EVAL_CLASSES)
    results = inference_on_dataset(model, build_test_loader(cfg, data), evaluator)
    logger.info(
        "%s; %d images (crop %d)",
        in_words(results["classification"], len(data.classes), cfg.DATA.EVAL_CLASSES),
        len(data),
        cfg.DATA.CROP_SIZE,
    )
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


def train(cfg: CfgNode, resume: bool) -> dict:
    """The whole classification step; writes model_final.safetensors and results.json.

    Returns:
        {"classification": {"top1_error": .., "top5_error": ..}}, percent.
    """
    final = folder_of(cfg, "model_final.safetensors")
    train_data, val_data = sets.open_both(cfg)
    cfg = with_epochs(cfg, len(train_data))
    record_run(cfg)
    seed_all(cfg.SEED, 2)
    model = build_classifier(cfg, len(train_data.classes))
    logger.info(
        "%s with %d classes, %.2f M parameters",
        model.trunk.architecture.name,
        len(train_data.classes),
        sum(p.numel() for p in model.parameters()) / 1e6,
    )
    results: dict = {}

    def score() -> dict:
        results.update(evaluate(cfg, model, val_data))
        return results

    loader = functools.partial(build_train_loader, cfg, train_data)
    Trainer(cfg, model, loader, evaluate=score, eval_period=cfg.TEST.EVAL_PERIOD).fit(resume)
    if comm.is_main_process():
        top1 = results["classification"]["top1_error"]
        save_weights(
            final, model.trunk.state_dict(), record_of(cfg, model, train_data.classes, top1)
        )
        write_json(folder_of(cfg, "results.json"), results)
        logger.info("weights: %s", final)
    return results


def set_as_recorded(cfg: CfgNode, record: WeightsRecord) -> None:
    """Network and pixels as the weights know them, whatever the config says."""
    cfg.INPUT.FORMAT = record.pixel_format
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = record.pixel_mean, record.pixel_std
    for field, key in ARCHITECTURE_KEYS.items():
        if field in record.architecture:
            cfg.MODEL.RESNETS[key] = record.architecture[field]


def _check_classes(path: str, tensors: dict, record: WeightsRecord, val: Dataset) -> None:
    """Raises InputError where weights and data set have other classes or no head at all."""
    if "linear.weight" not in tensors:
        raise InputError(
            path,
            f"holds {record.kind} weights without a classification head",
            "give weights with one",
        )
    outputs = len(tensors["linear.weight"])
    if outputs != len(val.classes):
        found = f"has {len(val.classes)} classes, {path} has {outputs}"
    elif record.class_names and record.class_names != val.classes:
        found = (
            f"has classes {val.classes[:3]} ..., {path} was trained on {record.class_names[:3]} ..."
        )
    else:
        return
    raise InputError(val.root, found, "give the same classes")


def evaluate_only(cfg: CfgNode) -> dict:
    """Score ``MODEL.WEIGHTS`` on the validation folder; writes results.json.

    Raises:
        InputError: no weights are named, or their classes are not the data set's (files of other
            programs name none: then their number must agree).
    """
    if not cfg.MODEL.WEIGHTS:
        raise InputError(
            "MODEL.WEIGHTS",
            "is empty, and --eval-only needs trained weights",
            "add MODEL.WEIGHTS path/to/model_final.safetensors",
        )
    tensors, record = read_weights(cfg.MODEL.WEIGHTS)
    set_as_recorded(cfg, record)
    val = sets.open_split(cfg, "val")
    _check_classes(cfg.MODEL.WEIGHTS, tensors, record, val)
    model = build_classifier(cfg, len(val.classes))
    logger.info("%s: %s", cfg.MODEL.WEIGHTS, load_all(model.trunk, tensors, cfg.MODEL.WEIGHTS))
    if not folder_of(cfg, "run.json").exists():  # the record of a training run stays
        record_run(cfg)
    results = evaluate(cfg, model, val)
    if comm.is_main_process():
        write_json(folder_of(cfg, "results.json"), results)
    return results
