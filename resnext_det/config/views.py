"""A config seen as something else: a trunk's arguments, one network's config, a flat dict."""

from typing import Any

from detectron2.config import CfgNode

NETWORKS = ("rpn", "fast_rcnn")
TRAINED = (*NETWORKS, "joint")  # "joint": both heads on one trunk


def architecture_arguments(cfg: CfgNode) -> dict[str, Any]:
    """MODEL.RESNETS as the fields of ``models.Architecture``.

    A config without our keys (a plain Detectron2 one) gets their defaults.
    """
    keys = cfg.MODEL.RESNETS
    return {
        "depth": keys.DEPTH,
        "cardinality": keys.NUM_GROUPS,
        "bottleneck_width": keys.WIDTH_PER_GROUP,
        "width_multiplier": keys.get("WIDTH_MULTIPLIER", 1.0),
        "stride_in_1x1": keys.STRIDE_IN_1X1,
        "shortcut": keys.get("SHORTCUT", True),
    }


def trunk_arguments(cfg: CfgNode) -> dict[str, Any]:
    """MODEL.RESNETS as the keyword arguments of ``models.build_resnext``."""
    return {
        **architecture_arguments(cfg),
        "form": cfg.MODEL.RESNETS.get("FORM", "c"),
        "norm": cfg.MODEL.RESNETS.NORM,
        "channels_last": cfg.MODEL.get("CHANNELS_LAST", False),
        "fuse": cfg.MODEL.get("FUSE", False),
        "regroup": cfg.MODEL.get("REGROUP", "off"),
    }


def flatten(cfg: CfgNode, prefix: str = "") -> dict[str, Any]:
    """All leaves as {"MODEL.DEVICE": "cpu", ...}."""
    leaves = {}
    for key, value in cfg.items():
        if isinstance(value, CfgNode):
            leaves.update(flatten(value, f"{prefix}{key}."))
        else:
            leaves[prefix + key] = value
    return leaves


def stage_cfg(cfg: CfgNode, stage: str) -> CfgNode:
    """The config of one network: ``SOLVER.RPN`` or ``SOLVER.FAST_RCNN`` put into ``SOLVER``.

    Args:
        stage: "rpn" (a Detectron2 ``ProposalNetwork``), "fast_rcnn" (a Detectron2
            ``GeneralizedRCNN`` on stored proposals) or "joint" (``detection.SharedRCNN``).
    """
    assert stage in TRAINED, stage
    cfg = cfg.clone()
    cfg.defrost()
    for key, value in cfg.SOLVER[stage.upper()].items():
        cfg.SOLVER[key] = value
    if stage == "rpn":
        cfg.MODEL.META_ARCHITECTURE = "ProposalNetwork"
        cfg.MODEL.LOAD_PROPOSALS = False
    elif stage == "joint":
        cfg.MODEL.LOAD_PROPOSALS = False
        if cfg.MODEL.PROPOSAL_GENERATOR.NAME == "NonSharedRPN":  # which makes no boxes in training
            cfg.MODEL.PROPOSAL_GENERATOR.NAME = "RPN"
    else:
        cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
        cfg.MODEL.LOAD_PROPOSALS = True
        cfg.MODEL.PROPOSAL_GENERATOR.NAME = "PrecomputedProposals"
    cfg.freeze()
    return cfg
