"""What the stages of a run leave in OUTPUT_DIR, and whether what is there fits the config.

Each stage leaves one file that says it is finished, written last: rpn/model_final.safetensors,
proposals/train.safetensors, fast_rcnn/model_final.safetensors, model_final.safetensors (the joined
detector) and results.json. With PROPOSALS.FILES or PROPOSALS.ONLINE there is no stage of
proposals; a network with shared features (SharedRCNN) has the one stage joint/.
"""

import json
from pathlib import Path

from detectron2.config import CfgNode

from ..config import TRAINED, cfg_from_text, flatten, stage_cfg
from ..data.proposals import ProposalFile, open_proposals
from ..engine.batch import follow_batch
from ..errors import InputError
from ..weights import fingerprint, read_record, read_weights
from .loaders import load_records
from .proposals import limits_of

FINAL = "model_final.safetensors"
STAGES = ("rpn", "proposals", "fast_rcnn", "joint", "eval")
ONLINE_RECORD = "proposals.json"  # in fast_rcnn/: of which RPN PROPOSALS.ONLINE made them
# Keys that change where and how fast a stage runs or what is measured, but not what it trains.
FREE_KEYS = (
    "OUTPUT_DIR",
    "MODEL.DEVICE",
    "MODEL.FUSE",
    "MODEL.REGROUP",
    "MODEL.RECOMPUTE",
    "MODEL.COMPILE",
    "DETERMINISTIC",
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
    "rpn": ("SOLVER.FAST_RCNN.", "SOLVER.JOINT.", "MODEL.ROI_", "PROPOSALS."),
    "fast_rcnn": ("SOLVER.RPN.", "SOLVER.JOINT.", "MODEL.RPN.", "MODEL.ANCHOR_GENERATOR."),
    "joint": ("SOLVER.RPN.", "SOLVER.FAST_RCNN.", "PROPOSALS."),
}


def stage_file(cfg: CfgNode, stage: str) -> Path:
    """The file whose presence says that a stage is finished."""
    names = {
        "rpn": f"rpn/{FINAL}",
        "proposals": "proposals/train.safetensors",
        "fast_rcnn": f"fast_rcnn/{FINAL}",
        "joint": f"joint/{FINAL}",
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
    """The stages of a whole run, in their order.

    Raises:
        InputError: a META_ARCHITECTURE that is none of ours.
    """
    name = cfg.MODEL.META_ARCHITECTURE
    if name == "SharedRCNN":
        return ("joint", "eval")
    if name != "NonSharedRCNN":
        raise InputError(
            "config",
            f"MODEL.META_ARCHITECTURE is {name!r}",
            "set it to NonSharedRCNN (two networks) or SharedRCNN (shared features)",
        )
    stored = proposal_source(cfg) == "stage"
    return ("rpn", *["proposals"] * stored, "fast_rcnn", "eval")


def needs(cfg: CfgNode, stage: str) -> tuple[str, ...]:
    """The stages whose files a stage reads. Proposals may also come from elsewhere."""
    proposals = {"stage": ("proposals",), "files": (), "online": ("rpn",)}[proposal_source(cfg)]
    if cfg.TEST.EVAL_PERIOD > 0:
        proposals = ("rpn", *proposals)  # AP needs it
    return {
        "rpn": (),
        "proposals": ("rpn",),
        "fast_rcnn": proposals,
        "joint": (),
        "eval": tuple(name for name in stages_of(cfg) if name in TRAINED),
    }[stage]


def check_sources(cfg: CfgNode, stages: tuple[str, ...]) -> None:
    """Check PROPOSALS.* before hours are spent on the RPN.

    Raises:
        InputError: keys that exclude each other or the stage asked for, or files of
            PROPOSALS.FILES that are missing, damaged or lack a training image.
    """
    for stage in stages:
        if stage not in stages_of(cfg) and stage != "proposals":
            raise InputError(
                "command line",
                f"{cfg.MODEL.META_ARCHITECTURE} has no stage {stage}",
                f"choose --stage among {', '.join(stages_of(cfg))}",
            )
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
            later = stages_of(cfg)[stages_of(cfg).index(stage) : -1]
            folders = " and ".join(str(stage_file(cfg, name).parent) for name in later)
            raise InputError(
                path,
                f"was trained with {key} {then.get(key)!r}, the config now says {value!r}",
                f"choose another OUTPUT_DIR, or remove {folders} to train again",
            )
    if stage == "fast_rcnn" and cfg.PROPOSALS.ONLINE:
        check_online(cfg)


def proposals_made_with(cfg: CfgNode) -> dict[str, str]:
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
    for key, value in proposals_made_with(cfg).items():
        if then.get(key, value) != value:
            raise InputError(
                path,
                f"was made with {key} {then[key]}, which now is {value}",
                f"remove {folders} to redo them",
            )


def check_online(cfg: CfgNode) -> None:
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
