"""ImageNet-style training: from class folders to ``model_final.safetensors``."""

import functools
import logging
import math

import torch
from detectron2.config import CfgNode
from detectron2.data.samplers import InferenceSampler
from detectron2.evaluation import inference_on_dataset
from detectron2.utils import comm
from torchvision.datasets import ImageFolder

from ..compat import describe_environment
from ..data import images
from ..engine.batch import images_per_process
from ..engine.run import folder_of, record_run, write_json
from ..engine.sampler import ResumableBatches, one_thread, training_loader
from ..engine.seeding import seed_all
from ..engine.trainer import Trainer
from ..errors import InputError
from ..weights import WeightsRecord, load_weights, read_record, save_weights
from .classifier import Classifier, build_classifier
from .evaluator import ErrorEvaluator

logger = logging.getLogger(__name__)


def with_epochs(cfg: CfgNode, num_images: int) -> CfgNode:
    """MAX_EPOCHS and EPOCH_STEPS turned into MAX_ITER and STEPS for a set of this size."""
    cfg = cfg.clone()
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


def build_train_loader(cfg: CfgNode, data: ImageFolder, start: int):
    """Batches {"image", "label"} of this process, from iteration ``start`` on."""
    batches = ResumableBatches(len(data), images_per_process(cfg), cfg.SEED, start=start)
    return training_loader(
        data.__getitem__, batches, collate=images.collate, num_workers=cfg.DATALOADER.NUM_WORKERS
    )


def build_test_loader(cfg: CfgNode, data: ImageFolder) -> torch.utils.data.DataLoader:
    """This process's share of the validation images, in order, none twice."""
    return torch.utils.data.DataLoader(
        data,
        cfg.DATA.TEST_BATCH_SIZE,
        sampler=InferenceSampler(len(data)),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=images.collate,
        worker_init_fn=one_thread,
    )


def _share_statistics(model: torch.nn.Module) -> None:
    """Every process has BN statistics of its own; the main one's are saved, so they are scored."""
    if comm.get_world_size() > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, 0)


def evaluate(cfg: CfgNode, model: torch.nn.Module, data: ImageFolder) -> dict:
    """{"classification": {"top1_error", "top5_error"}} in percent, single centre crop."""
    _share_statistics(model)
    results = inference_on_dataset(model, build_test_loader(cfg, data), ErrorEvaluator())
    errors = results["classification"]
    logger.info(
        "top-1 error %.2f %%, top-5 error %.2f %% on %d images (crop %d)",
        errors["top1_error"],
        errors["top5_error"],
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


def _data(cfg: CfgNode) -> tuple[ImageFolder, ImageFolder]:
    train = images.class_folder(cfg, "train", images.training_transform(cfg))
    val = images.class_folder(cfg, "val", images.test_transform(cfg))
    images.check_same_classes(train, val)
    return train, val


def train(cfg: CfgNode, resume: bool) -> dict:
    """The whole classification step; writes model_final.safetensors and results.json.

    Returns:
        {"classification": {"top1_error": .., "top5_error": ..}}, percent.
    """
    final = folder_of(cfg, "model_final.safetensors")
    train_data, val_data = _data(cfg)
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


def evaluate_only(cfg: CfgNode) -> dict:
    """Score ``MODEL.WEIGHTS`` on the validation folder; writes results.json.

    Raises:
        InputError: no weights are named, or their classes are not the folder's.
    """
    if not cfg.MODEL.WEIGHTS:
        raise InputError(
            "MODEL.WEIGHTS",
            "is empty, and --eval-only needs trained weights",
            "add MODEL.WEIGHTS path/to/model_final.safetensors",
        )
    stored = read_record(cfg.MODEL.WEIGHTS)  # pixels as the weights know them
    cfg.INPUT.FORMAT = stored.pixel_format
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = stored.pixel_mean, stored.pixel_std
    val = images.class_folder(cfg, "val", images.test_transform(cfg))
    model = build_classifier(cfg, len(val.classes))
    record = load_weights(model.trunk, cfg.MODEL.WEIGHTS)
    if record.class_names != val.classes:
        raise InputError(
            val.root,
            f"has classes {val.classes[:3]} ..., {cfg.MODEL.WEIGHTS} was "
            f"trained on {record.class_names[:3]} ...",
            "give the same classes",
        )
    results = evaluate(cfg, model, val)
    if comm.is_main_process():
        write_json(folder_of(cfg, "results.json"), results)
    return results
