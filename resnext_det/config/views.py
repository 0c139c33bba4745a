"""A config seen as something else: a trunk's arguments, one network's config, a flat dict."""

import difflib
import functools
from typing import Any

from detectron2.config import CfgNode
from detectron2.config import get_cfg as get_detectron2_cfg

from ..errors import InputError

# Keys of Detectron2's MODEL.RESNETS that the trunk follows. All its others must keep their
# defaults, since the trunk would not do what they ask for.
FOLLOWED = ("DEPTH", "OUT_FEATURES", "NUM_GROUPS", "WIDTH_PER_GROUP", "STRIDE_IN_1X1", "NORM")
INSTEAD = {
    "RES2_OUT_CHANNELS": "WIDTH_MULTIPLIER scales stem and stages together",
    "STEM_OUT_CHANNELS": "WIDTH_MULTIPLIER scales stem and stages together",
}
NETWORKS = ("rpn", "fast_rcnn")
TRAINED = (*NETWORKS, "joint")  # "joint": both heads on one trunk


def architecture_arguments(cfg: CfgNode) -> dict[str, Any]:
    """MODEL.RESNETS as the fields of ``models.Architecture``.

    A config without our keys (a plain Detectron2 one) gets their defaults. NUM_GROUPS 1 and
    WIDTH_PER_GROUP 64 are Detectron2's in both: a ResNet, where ``models.build_resnext`` without
    arguments is 32x4d.

    Raises:
        InputError: a key of Detectron2's that the trunk does not follow has another value than
            its default.
    """
    keys = cfg.MODEL.RESNETS
    _check_ignored(keys)
    return {
        "depth": keys.DEPTH,
        "cardinality": keys.NUM_GROUPS,
        "bottleneck_width": keys.WIDTH_PER_GROUP,
        "width_multiplier": keys.get("WIDTH_MULTIPLIER", 1.0),
        "stride_in_1x1": keys.STRIDE_IN_1X1,
        "shortcut": keys.get("SHORTCUT", True),
    }


@functools.cache
def _defaults() -> CfgNode:
    return get_detectron2_cfg().MODEL.RESNETS


def _check_ignored(keys: CfgNode) -> None:
    for key, default in _defaults().items():
        if key in FOLLOWED or _plain(keys.get(key, default)) == _plain(default):
            continue
        instead = f" ({INSTEAD[key]})" if key in INSTEAD else ""
        raise InputError(
            "MODEL.RESNETS",
            f"{key} is {keys[key]!r}, which this package's networks do not follow",
            f"set it to {default!r}{instead}, or take Detectron2's own network, "
            'MODEL.BACKBONE.NAME "build_resnet_backbone"',
        )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def trunk_arguments(cfg: CfgNode) -> dict[str, Any]:
    """MODEL.RESNETS as the keyword arguments of ``models.build_resnext``.

    Without our keys they are that function's own defaults; `get_cfg` sets CHANNELS_LAST, FUSE
    and REGROUP for speed.

    Raises:
        InputError: as `architecture_arguments`.
    """
    return {
        **architecture_arguments(cfg),
        "form": cfg.MODEL.RESNETS.get("FORM", "c"),
        "norm": cfg.MODEL.RESNETS.NORM,
        "channels_last": cfg.MODEL.get("CHANNELS_LAST", False),
        "fuse": cfg.MODEL.get("FUSE", False),
        "regroup": cfg.MODEL.get("REGROUP", "off"),
        "recompute": cfg.MODEL.get("RECOMPUTE", False),
    }


def protocol_of(cfg: CfgNode) -> dict[str, Any]:
    """How DATA looks at a test image, as results.json records it; sizes in pixels.

    {"protocol": "single" or "ten_crop", "crop": 224, "resize": 256}, without "resize" where
    images are not resized (DATA.PAD > 0); or {"protocol": "dense", "crop": 224, "scales": [..]},
    where the crop is training's, which the head's window follows.
    """
    data = cfg.DATA
    found = {"protocol": data.TEST_PROTOCOL, "crop": data.CROP_SIZE}
    if data.TEST_PROTOCOL == "dense":
        return {**found, "scales": list(data.TEST_SCALES)}
    return found if data.PAD else {**found, "resize": data.RESIZE_SIZE}


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
            cfg.MODEL.PROPOSAL_GENERATOR.NAME = "BoundedRPN"
    else:
        cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
        cfg.MODEL.LOAD_PROPOSALS = True
        cfg.MODEL.PROPOSAL_GENERATOR.NAME = "PrecomputedProposals"
    cfg.freeze()
    return cfg


def set_key(cfg: CfgNode, key: str, value: Any) -> None:
    """Set a leaf by its whole name: "MODEL.DEVICE"."""
    *groups, leaf = key.split(".")
    for group in groups:
        cfg = cfg[group]
    cfg[leaf] = value


def nearest_key(cfg: CfgNode, key: str) -> str:
    """The key of ``cfg`` that a misspelt one was probably meant to be."""
    keys = list(flatten(cfg))
    # A key put into the wrong group keeps its last part, so that is compared first.
    same_leaf = [k for k in keys if k.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
    return max(same_leaf or keys, key=lambda other: _likeness(key, other))


def _likeness(key: str, other: str) -> float:
    """The last part counts twice: MODEL.DEPHT is nearer to MODEL.RESNETS.DEPTH than to WEIGHTS."""
    pairs = [(key, other), *[(key.rsplit(".", 1)[-1], other.rsplit(".", 1)[-1])] * 2]
    return sum(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)
