"""The paper's order, a function a stage: RPN, proposals, Fast R-CNN, joining, evaluation.

Each stage leaves one file in OUTPUT_DIR that says it is finished, written last:
rpn/model_final.safetensors, proposals/train.safetensors, fast_rcnn/model_final.safetensors,
model_final.safetensors (the joined detector) and results.json. With PROPOSALS.FILES or
PROPOSALS.ONLINE there is no stage of proposals.
"""

import functools
import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils import comm
from torch import nn

from ..config import cfg_from_text, flatten, stage_cfg
from ..data.proposals import ProposalFile, open_proposals
from ..engine.batch import follow_batch
from ..engine.run import write_json
from ..engine.seeding import seed_all
from ..engine.trainer import Trainer
from ..errors import InputError
from ..weights import (
    fingerprint,
    load_weights,
    read_record,
    read_weights,
    save_weights,
)
from .detector import load_detector, record_of
from .evaluation import evaluate
from .loaders import build_train_loader, load_records
from .online import OnlineLoader
from .proposals import build_rpn, dump_proposals, limits_of, proposal_cfg

logger = logging.getLogger(__name__)

FINAL = "model_final.safetensors"
STAGES = ("rpn", "proposals", "fast_rcnn", "eval")
ONLINE_RECORD = "proposals.json"  # in fast_rcnn/: of which RPN PROPOSALS.ONLINE made them
# Keys that change where and how fast a stage runs or what is measured, but not what it trains.
FREE_KEYS = (
    "OUTPUT_DIR",
    "MODEL.DEVICE",
    "DATALOADER.NUM_WORKERS",
    "TEST.",
    "DATASETS.TEST",
    "SOLVER.CHECKPOINT",
    "VIS_PERIOD",
    "MODEL.RPN.PRE_NMS_TOPK_TEST",
    "MODEL.RPN.POST_NMS_TOPK_TEST",
    "MODEL.ROI_HEADS.NMS_THRESH_TEST",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST",
)
# Keys of the other network, which a stage does not see.
OTHERS_KEYS = {
    "rpn": ("SOLVER.FAST_RCNN.", "MODEL.ROI_", "PROPOSALS."),
    "fast_rcnn": ("SOLVER.RPN.", "MODEL.RPN.", "MODEL.ANCHOR_GENERATOR."),
}


def stage_file(cfg: CfgNode, stage: str) -> Path:
    """The file whose presence says that a stage is finished."""
    names = {
        "rpn": f"rpn/{FINAL}",
        "proposals": "proposals/train.safetensors",
        "fast_rcnn": f"fast_rcnn/{FINAL}",
        "join": FINAL,
        "eval": "results.json",
    }
    return Path(cfg.OUTPUT_DIR, names[stage])


def proposal_source(cfg: CfgNode) -> str:
    """Where Fast R-CNN's proposals come from: "stage" (proposals/), "files" or "online".

    Raises:
        InputError: PROPOSALS.FILES and PROPOSALS.ONLINE are both set.
    """
    if cfg.PROPOSALS.FILES and cfg.PROPOSALS.ONLINE:
        raise InputError(
            "config",
            f"PROPOSALS.ONLINE is True and PROPOSALS.FILES names {len(cfg.PROPOSALS.FILES)}",
            "set one of them",
        )
    if cfg.PROPOSALS.ONLINE:
        return "online"
    return "files" if cfg.PROPOSALS.FILES else "stage"


def stages_of(cfg: CfgNode) -> tuple[str, ...]:
    """The stages of a whole run, in their order."""
    stored = proposal_source(cfg) == "stage"
    return tuple(stage for stage in STAGES if stored or stage != "proposals")


def needs(cfg: CfgNode, stage: str) -> tuple[str, ...]:
    """The stages whose files a stage reads. Proposals may also come from elsewhere."""
    proposals = {"stage": ("proposals",), "files": (), "online": ("rpn",)}[proposal_source(cfg)]
    return {
        "rpn": (),
        "proposals": ("rpn",),
        "fast_rcnn": proposals,
        "eval": ("rpn", "fast_rcnn"),
    }[stage]


def check_sources(cfg: CfgNode, stages: tuple[str, ...]) -> None:
    """Check PROPOSALS.* before hours are spent on the RPN.

    Raises:
        InputError: keys that exclude each other or the stage asked for, or files of
            PROPOSALS.FILES that are missing, damaged or lack a training image.
    """
    source = proposal_source(cfg)
    if source != "stage" and "proposals" in stages:
        key = {"files": "PROPOSALS.FILES", "online": "PROPOSALS.ONLINE"}[source]
        raise InputError(
            "config", f"{key} is set, so that stage proposals is not used", f"leave {key} away"
        )
    if source == "files" and "fast_rcnn" in stages and not stage_file(cfg, "fast_rcnn").exists():
        stored = open_proposals(cfg.PROPOSALS.FILES)
        stored.check_covers([record["image_id"] for record in load_records(cfg)])


def network_cfg(cfg: CfgNode, stage: str) -> CfgNode:
    """The config of one network's training, in a folder of its own below OUTPUT_DIR."""
    own = stage_cfg(cfg, stage)
    own.defrost()
    own.OUTPUT_DIR = str(Path(cfg.OUTPUT_DIR, stage))
    own = follow_batch(own)
    own.defrost()
    own.SOLVER.STEPS = tuple(s for s in own.SOLVER.STEPS if s < own.SOLVER.MAX_ITER)
    own.freeze()
    return own


def check_unchanged(cfg: CfgNode, stage: str) -> None:
    """Raises InputError where a finished network was trained with other settings than now."""
    path = stage_file(cfg, stage)
    then = flatten(cfg_from_text(read_record(path).config, str(path)))
    now = flatten(cfg_from_text(network_cfg(cfg, stage).dump(), "config"))
    for key, value in now.items():
        if not key.startswith((*FREE_KEYS, *OTHERS_KEYS[stage])) and then.get(key) != value:
            later = STAGES[STAGES.index(stage) : -1]
            folders = " and ".join(str(stage_file(cfg, name).parent) for name in later)
            raise InputError(
                path,
                f"was trained with {key} {then.get(key)!r}, the config now says {value!r}",
                f"choose another OUTPUT_DIR, or remove {folders} to train again",
            )
    if stage == "fast_rcnn" and cfg.PROPOSALS.ONLINE:
        _check_online(cfg)


def _proposals_made_with(cfg: CfgNode) -> dict[str, str]:
    """What proposals depend on; the RPN by the sum of its weights, where it is there."""
    rpn = stage_file(cfg, "rpn")
    made_with = limits_of(cfg)
    if rpn.exists():
        made_with["rpn_sha256"] = fingerprint(read_weights(rpn)[0])
    return made_with


def check_proposals(cfg: CfgNode) -> None:
    """Raises InputError where stored proposals were made by another RPN or with other limits.

    A file of the user's own says nothing of them and is taken as it is.
    """
    path = stage_file(cfg, "proposals")
    folders = f"{path.parent} and {stage_file(cfg, 'fast_rcnn').parent}"
    _check_made_with(cfg, path, ProposalFile(path).metadata, folders)


def _check_made_with(cfg: CfgNode, path: Path, then: dict[str, str], folders: str) -> None:
    for key, value in _proposals_made_with(cfg).items():
        if then.get(key, value) != value:
            raise InputError(
                path,
                f"was made with {key} {then[key]}, which now is {value}",
                f"remove {folders} to redo them",
            )


def _check_online(cfg: CfgNode) -> None:
    """Raises InputError where Fast R-CNN was, or was begun to be, trained beside another RPN."""
    path = stage_file(cfg, "fast_rcnn").parent / ONLINE_RECORD
    if path.exists():
        _check_made_with(cfg, path, json.loads(path.read_text()), str(path.parent))


def check_unused(cfg: CfgNode, stage: str) -> None:
    """Raises InputError where a stage that is to start anew has left something already."""
    final = stage_file(cfg, stage)
    found = [final] if final.exists() else sorted(final.parent.glob("model_*.pth"))
    if stage != "eval" and found:
        raise InputError(
            found[0],
            f"is of an earlier run of stage {stage}",
            f"add --resume to go on with it, or remove {final.parent} to start anew",
        )


def _initial_model(cfg: CfgNode, stage: str) -> nn.Module:
    """A network with fresh heads and the classification weights in its trunk."""
    seed_all(cfg.SEED, 2, ("rpn", "fast_rcnn").index(stage))
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
        stage: "rpn" or "fast_rcnn"; the latter takes its proposals from `proposal_source`.
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
    loader = _loader(cfg, own, stage)
    model = _initial_model(own, stage)
    Trainer(own, model, loader).fit(resume)
    if comm.is_main_process():
        save_weights(
            stage_file(cfg, stage), model.state_dict(), record_of(own, stage, own.DATASETS.TRAIN[0])
        )
    comm.synchronize()


def _loader(cfg: CfgNode, own: CfgNode, stage: str) -> Callable[[int], Iterable]:
    """For `Trainer`: from the iteration to begin at to the batches."""
    if stage == "rpn":
        return functools.partial(build_train_loader, own)
    source = proposal_source(cfg)
    if source == "online":
        rpn, rpn_cfg = _trained_rpn(cfg)
        _check_online(cfg)
        if comm.is_main_process():
            write_json(Path(own.OUTPUT_DIR, ONLINE_RECORD), _proposals_made_with(cfg))
        return functools.partial(OnlineLoader, own, rpn=rpn, rpn_cfg=rpn_cfg)
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
        _proposals_made_with(cfg),
    )
    logger.info("proposals: %s", stage_file(cfg, "proposals"))


def join(cfg: CfgNode) -> None:
    """Both networks into one file, all that evaluation and prediction need."""
    parts = {stage: read_weights(stage_file(cfg, stage))[0] for stage in ("rpn", "fast_rcnn")}
    tensors = {
        f"{stage}.{key}": value for stage, part in parts.items() for key, value in part.items()
    }
    record = record_of(cfg, "detector", cfg.DATASETS.TRAIN[0])
    save_weights(stage_file(cfg, "join"), tensors, record)
    logger.info("joined detector: %s", stage_file(cfg, "join"))


def evaluate_detector(cfg: CfgNode, weights: str | Path) -> tuple[dict, nn.Module]:
    """AP and average recall on DATASETS.TEST; writes results.json on the main process.

    With several data sets, results.json holds one entry a set, by name.
    """
    model, cfg = load_detector(weights, cfg)
    results = {name: evaluate(cfg, model, name) for name in cfg.DATASETS.TEST}
    if comm.is_main_process():
        only = len(results) == 1
        write_json(stage_file(cfg, "eval"), next(iter(results.values())) if only else results)
    return results, model
