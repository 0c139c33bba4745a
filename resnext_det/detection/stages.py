"""The paper's order, a function a stage: RPN, proposals, Fast R-CNN, joining, evaluation.

Each stage leaves one file in OUTPUT_DIR that says it is finished, written last:
rpn/model_final.safetensors, proposals/train.safetensors, fast_rcnn/model_final.safetensors,
model_final.safetensors (the joined detector) and results.json.
"""

import functools
import logging
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils import comm
from torch import nn

from ..config import cfg_from_text, flatten, stage_cfg
from ..data.proposals import ProposalFile
from ..engine.batch import follow_batch
from ..engine.run import write_json
from ..engine.seeding import seed_all
from ..engine.trainer import Trainer
from ..errors import InputError
from ..weights import (
    fingerprint,
    load_all,
    load_weights,
    read_record,
    read_weights,
    save_weights,
)
from .detector import load_detector, record_of
from .evaluation import evaluate
from .loaders import build_train_loader
from .proposals import dump_proposals, proposal_cfg

logger = logging.getLogger(__name__)

FINAL = "model_final.safetensors"
STAGES = ("rpn", "proposals", "fast_rcnn", "eval")
# What each stage reads from the others. Proposals may also come from elsewhere.
NEEDS = {
    "rpn": (),
    "proposals": ("rpn",),
    "fast_rcnn": ("proposals",),
    "eval": ("rpn", "fast_rcnn"),
}
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


def _proposals_made_with(cfg: CfgNode) -> dict[str, str]:
    """What stored proposals depend on; the RPN by the sum of its weights, where it is there."""
    rpn = stage_file(cfg, "rpn")
    made_with = {f"PROPOSALS.{key}": str(value) for key, value in cfg.PROPOSALS.items()}
    if rpn.exists():
        made_with["rpn_sha256"] = fingerprint(read_weights(rpn)[0])
    return made_with


def check_proposals(cfg: CfgNode) -> None:
    """Raises InputError where stored proposals were made by another RPN or with other limits.

    A file of the user's own says nothing of them and is taken as it is.
    """
    path = stage_file(cfg, "proposals")
    then = ProposalFile(path).metadata
    for key, value in _proposals_made_with(cfg).items():
        if then.get(key, value) != value:
            raise InputError(
                path,
                f"was made with {key} {then[key]}, which now is {value}",
                f"remove {path.parent} and {stage_file(cfg, 'fast_rcnn').parent} to redo them",
            )


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
        stage: "rpn" or "fast_rcnn"; the latter reads the proposal file.
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
    stored = ProposalFile(stage_file(cfg, "proposals")) if stage == "fast_rcnn" else None
    model = _initial_model(own, stage)
    loader = functools.partial(build_train_loader, own, proposals=stored)
    Trainer(own, model, loader).fit(resume)
    if comm.is_main_process():
        save_weights(
            stage_file(cfg, stage), model.state_dict(), record_of(own, stage, own.DATASETS.TRAIN[0])
        )
    comm.synchronize()


def make_proposals(cfg: CfgNode) -> None:
    """The trained RPN's boxes for all training images."""
    path = stage_file(cfg, "rpn")
    own = proposal_cfg(network_cfg(cfg, "rpn"))
    model = build_model(own)
    tensors, _ = read_weights(path)
    load_all(model, tensors, path)
    dump_proposals(
        own,
        model,
        list(own.DATASETS.TRAIN),
        stage_file(cfg, "proposals"),
        _proposals_made_with(cfg),
    )


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
