"""A function a stage, in the paper's order: RPN, proposals, Fast R-CNN, joining, evaluation.

Or, for the baseline whose networks share their features: joint training, evaluation.
"""

import functools
import logging
from collections.abc import Callable, Iterable
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils import comm
from torch import nn

from ..config import TRAINED
from ..data.proposals import open_proposals
from ..engine.batch import images_per_process
from ..engine.checkpoint import RunCheckpointer
from ..engine.run import write_json
from ..engine.seeding import seed_all
from ..engine.trainer import Trainer
from ..weights import load_weights, read_record, read_weights, save_weights
from .class_match import Renumbered, matching
from .detector import load_detector, record_of
from .evaluation import evaluate
from .loaders import build_train_loader
from .meta_arch import keep_for_recall
from .online import OnlineLoader
from .proposals import build_rpn, dump_proposals, proposal_cfg
from .stage_files import (
    ONLINE_RECORD,
    check_online,
    check_proposals,
    network_cfg,
    proposal_source,
    proposals_made_with,
    stage_file,
    stages_of,
)
from .watch import BEST, Watch

logger = logging.getLogger(__name__)


def _initial_model(cfg: CfgNode, stage: str) -> nn.Module:
    """A network with fresh heads and the classification weights in its trunk."""
    seed_all(cfg.SEED, 2, TRAINED.index(stage))
    model = build_model(cfg)
    if cfg.MODEL.WEIGHTS:
        load_weights(model, cfg.MODEL.WEIGHTS, cfg.MODEL.WEIGHTS_ALLOW_MISSING)
    else:
        logger.warning("MODEL.WEIGHTS is empty: the %s network starts from random weights", stage)
    return model


def train_network(cfg: CfgNode, stage: str, resume: bool) -> None:
    """One training step of the scheme, from the classification weights to its final file.

    Args:
        cfg: the whole run's config.
        stage: "rpn", "fast_rcnn", which takes its proposals from `proposal_source`, or "joint".
    """
    own = network_cfg(cfg, stage)
    logger.info(
        "stage %s: %d iterations of %d images, learning rate %g, divided at %s",
        stage,
        own.SOLVER.MAX_ITER,
        own.SOLVER.IMS_PER_BATCH,
        own.SOLVER.BASE_LR,
        list(own.SOLVER.STEPS),
    )
    if own.MODEL.RESNETS.NORM == "BN" and images_per_process(own) == 1:
        logger.warning(
            "MODEL.RESNETS.NORM is BN, and a process sees one image at a time: its statistics are "
            "poor; FrozenBN keeps those of the weights"
        )
    loader = _loader(cfg, own, stage)
    model = _initial_model(own, stage)
    watch = _watch(cfg, own, model, stage)
    period = own.TEST.EVAL_PERIOD if watch else 0
    trainer = Trainer(
        own,
        model,
        loader,
        evaluate=watch,
        eval_period=period,
        best=BEST[stage],
        solver=f"SOLVER.{stage.upper()}",
    )
    trainer.fit(resume)
    if own.SOLVER.FINAL_WEIGHTS == "best":
        trainer.load_best()
    if comm.is_main_process():
        kind = "detector" if stage == "joint" else stage
        record = record_of(own, kind, own.DATASETS.TRAIN[0])
        save_weights(stage_file(cfg, stage), model.state_dict(), record)
    comm.synchronize()


def _watch(cfg: CfgNode, own: CfgNode, model: nn.Module, stage: str) -> Watch | None:
    if own.TEST.EVAL_PERIOD < 1:
        return None
    rpn = None
    if stage == "fast_rcnn":
        path = stage_file(cfg, "rpn")
        rpn = build_rpn(keep_for_recall(network_cfg(cfg, "rpn")), read_weights(path)[0], path)
    return Watch(own, model, stage, rpn)


def _loader(cfg: CfgNode, own: CfgNode, stage: str) -> Callable[[int], Iterable]:
    """For `Trainer`: from the iteration to begin at to the batches."""
    if stage != "fast_rcnn":
        return functools.partial(build_train_loader, own)
    source = proposal_source(cfg)
    if source == "online":
        rpn, rpn_cfg = _trained_rpn(cfg)
        check_online(cfg)
        if comm.is_main_process():
            write_json(Path(own.OUTPUT_DIR, ONLINE_RECORD), proposals_made_with(cfg))
        return functools.partial(OnlineLoader, own, rpn=rpn, rpn_cfg=rpn_cfg)
    if source == "stage":
        check_proposals(cfg)
    stored = open_proposals(
        cfg.PROPOSALS.FILES if source == "files" else [stage_file(cfg, "proposals")]
    )
    logger.info("proposals: %s", stored.path)
    return functools.partial(build_train_loader, own, proposals=stored)


def _trained_rpn(cfg: CfgNode) -> tuple[nn.Module, CfgNode]:
    """The run's RPN in evaluation mode, and its config, for making training proposals."""
    path = stage_file(cfg, "rpn")
    own = proposal_cfg(network_cfg(cfg, "rpn"))
    return build_rpn(own, read_weights(path)[0], path), own


def make_proposals(cfg: CfgNode) -> None:
    """The trained RPN's boxes for all training images."""
    model, own = _trained_rpn(cfg)
    dump_proposals(
        own,
        model,
        list(own.DATASETS.TRAIN),
        stage_file(cfg, "proposals"),
        proposals_made_with(cfg),
    )
    logger.info("proposals: %s", stage_file(cfg, "proposals"))


def join(cfg: CfgNode) -> None:
    """Both networks into one file, all that evaluation and prediction need.

    Where the last network's best weights are not its final ones, model_best.safetensors holds the
    detector with those.
    """
    trained = [stage for stage in stages_of(cfg) if stage in TRAINED]
    parts = {stage: read_weights(stage_file(cfg, stage))[0] for stage in trained}
    record = record_of(cfg, "detector", cfg.DATASETS.TRAIN[0])
    save_weights(stage_file(cfg, "join"), _joined(parts), record)
    logger.info("joined detector: %s", stage_file(cfg, "join"))
    best = stage_file(cfg, trained[-1]).with_name("model_best.pth")
    if best.exists() and cfg.SOLVER.FINAL_WEIGHTS != "best":
        parts[trained[-1]] = RunCheckpointer.read(best)["model"]
        path = Path(cfg.OUTPUT_DIR, "model_best.safetensors")
        save_weights(path, _joined(parts), record)
        logger.info("detector with the best %s: %s", BEST[trained[-1]], path)


def _joined(parts: dict[str, dict]) -> dict:
    if "joint" in parts:
        return parts["joint"]
    return {f"{stage}.{key}": value for stage, part in parts.items() for key, value in part.items()}


def evaluate_detector(cfg: CfgNode, weights: str | Path) -> tuple[dict, nn.Module]:
    """AP and average recall on DATASETS.TEST; writes results.json on the main process.

    With several data sets, results.json holds one entry a set, by name. Classes are matched by
    their names (`class_match`).

    Returns:
        The results by data set, and the detector as it speaks of the first data set's classes.
    """
    model, cfg = load_detector(weights, cfg)
    models = {name: _for(model, cfg, weights, name) for name in cfg.DATASETS.TEST}
    results = {name: evaluate(cfg, own, name) for name, own in models.items()}
    if comm.is_main_process():
        only = len(results) == 1
        write_json(stage_file(cfg, "eval"), next(iter(results.values())) if only else results)
    return results, next(iter(models.values()))


def _for(model: nn.Module, cfg: CfgNode, weights: str | Path, name: str) -> nn.Module:
    """The detector with the class numbers of a data set."""
    numbers = matching(read_record(weights), weights, name, tuple(cfg.TEST.CLASSES))
    if numbers is None:
        return model
    left_out = sum(number < 0 for number in numbers)
    logger.info(
        "%s: %d classes matched by name; %d others of the detector's are left out",
        name,
        len(numbers) - left_out,
        left_out,
    )
    return Renumbered(model, numbers).to(model.device).eval()
