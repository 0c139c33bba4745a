"""Every config key of ours, with its default, unit and source; reading and checking configs.

One config system serves every tool: Detectron2's ``CfgNode`` (YAML with ``_BASE_`` and
``KEY VALUE`` overrides). ``get_cfg()`` is Detectron2's own defaults plus the keys below.
"""

import difflib
import logging
import re
from ast import literal_eval
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.config import get_cfg as get_detectron2_cfg

from .errors import InputError

logger = logging.getLogger(__name__)

NETWORKS = ("rpn", "fast_rcnn")
PRECISIONS = ("fp32", "bf16", "auto")

# Pixel statistics of the ImageNet recipe (RGB, 0..255), which the paper's own models,
# torchvision's and timm's share. Detectron2's default (BGR, std 1) fits only MSRA's files.
IMAGENET_MEAN = (123.675, 116.280, 103.530)
IMAGENET_STD = (58.395, 57.120, 57.375)


def _add_model_keys(cfg: CfgNode) -> None:
    cfg.INPUT.FORMAT = "RGB"
    cfg.MODEL.PIXEL_MEAN = list(IMAGENET_MEAN)
    cfg.MODEL.PIXEL_STD = list(IMAGENET_STD)
    # ResNeXt keeps the stride in the 3x3 (paper, Table 1; facebookresearch/ResNeXt resnext.lua).
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    # Scales the stem, every block's output and the bottleneck width; 1.0 is the paper's network.
    cfg.MODEL.RESNETS.WIDTH_MULTIPLIER = 1.0
    # Arithmetic of trunk, RPN convolution and res5: "fp32", "bf16", or "auto" (bf16 where the
    # processor has instructions for it). Pooling, losses and boxes are always fp32.
    cfg.MODEL.PRECISION = "fp32"
    # Memory layout of images and feature maps inside the trunk.
    cfg.MODEL.CHANNELS_LAST = True
    # Patterns (fnmatch) of parameters that may be missing from MODEL.WEIGHTS.
    cfg.MODEL.WEIGHTS_ALLOW_MISSING = ()


def _add_solver_keys(cfg: CfgNode) -> None:
    # Classification counts in epochs; > 0 overrides MAX_ITER and STEPS once the set is known.
    cfg.SOLVER.MAX_EPOCHS = 0.0
    cfg.SOLVER.EPOCH_STEPS = ()
    # How many of the newest checkpoints stay on disk in each stage's folder.
    cfg.SOLVER.CHECKPOINTS_TO_KEEP = 2
    # Each network has its own solver (paper, Appendix B). IMS_PER_BATCH is over all processes.
    for stage, ims, lr in (("RPN", 16, 0.02), ("FAST_RCNN", 8, 0.005)):
        node = CfgNode()
        node.IMS_PER_BATCH = ims
        node.BASE_LR = lr
        node.STEPS = (120000,)
        node.MAX_ITER = 180000
        cfg.SOLVER[stage] = node


def _add_data_keys(cfg: CfgNode) -> None:
    # Data sets of the user's own: [[name, COCO json, image folder], ...]; DATASETS.TRAIN and
    # TEST then list the names. Paths are relative to the working directory.
    cfg.DATASETS.COCO_JSON = []
    # Leave boxes without area out instead of refusing the file (COCO's train2017 holds two).
    cfg.DATASETS.DROP_EMPTY_BOXES = False
    # ImageNet-style folder for classification: ROOT/train/<class>/*, ROOT/val/<class>/*.
    cfg.DATA = CfgNode()
    cfg.DATA.ROOT = "datasets/imagenet"
    # Side of the square training and test crop, and of the short side before a test crop; pixels.
    cfg.DATA.CROP_SIZE = 224
    cfg.DATA.RESIZE_SIZE = 256
    # Share of the image's area that a training crop covers at least (0..1).
    cfg.DATA.MIN_CROP_AREA = 0.08
    cfg.DATA.TEST_BATCH_SIZE = 100


def _add_proposal_keys(cfg: CfgNode) -> None:
    # Proposals for the training images are made in test mode, without a limit before NMS,
    # 2000 kept (py-faster-rcnn, tools/train_faster_rcnn_alt_opt.py). A limit of 0 means none.
    cfg.PROPOSALS = CfgNode()
    cfg.PROPOSALS.PRE_NMS_TOPK = 0
    cfg.PROPOSALS.POST_NMS_TOPK = 2000
    # Proposals an image that average recall is measured on at most (AR@1000).
    cfg.TEST.PROPOSALS_TOPK = 1000
    # Images a process evaluates at once; they are padded to the largest of the batch.
    cfg.TEST.IMS_PER_BATCH = 1


def get_cfg() -> CfgNode:
    """Detectron2's default config plus the keys of this package.

    Differs from Detectron2's defaults in four keys, so that they fit ResNeXt weights:
    ``INPUT.FORMAT``, ``MODEL.PIXEL_MEAN``, ``MODEL.PIXEL_STD``, ``MODEL.RESNETS.STRIDE_IN_1X1``.
    """
    cfg = get_detectron2_cfg()
    _add_model_keys(cfg)
    _add_solver_keys(cfg)
    _add_data_keys(cfg)
    _add_proposal_keys(cfg)
    return cfg


def trunk_arguments(cfg: CfgNode) -> dict[str, Any]:
    """MODEL.RESNETS as the keyword arguments of ``models.build_resnext``.

    A config without our keys (a plain Detectron2 one) gets their defaults.
    """
    keys = cfg.MODEL.RESNETS
    return {
        "depth": keys.DEPTH,
        "cardinality": keys.NUM_GROUPS,
        "bottleneck_width": keys.WIDTH_PER_GROUP,
        "width_multiplier": keys.get("WIDTH_MULTIPLIER", 1.0),
        "stride_in_1x1": keys.STRIDE_IN_1X1,
        "norm": keys.NORM,
        "channels_last": cfg.MODEL.get("CHANNELS_LAST", False),
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


def _nearest_key(cfg: CfgNode, key: str) -> str:
    keys = list(flatten(cfg))
    # A key put into the wrong group keeps its last part, so that is compared first.
    same_leaf = [k for k in keys if k.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
    near = difflib.get_close_matches(key, same_leaf or keys, n=1, cutoff=0.0)
    return near[0]


def _merge_error(cfg: CfgNode, source: str, error: Exception) -> InputError:
    if isinstance(error, TypeError | AttributeError):
        return InputError(
            source, "is not a mapping of config keys to values", 'write lines of "KEY: value"'
        )
    text = str(error.args[0]) if error.args else str(error)
    if "Non-existent" in text:
        key = text.split(":")[-1].strip().split(" ")[-1]
        return InputError(
            source, f"there is no config key {key}", f"did you mean {_nearest_key(cfg, key)}?"
        )
    text = " ".join(text.split())
    mismatch = re.match(r".* vs\. (.*)\) for config key: (\S+)$", text)
    if mismatch:  # yacs prints all keys of a group
        value, key = mismatch.groups()
        default = repr(flatten(cfg)[key]) if key in flatten(cfg) else "a group of keys"
        text = f"{key} is {value}, its default is {default}"
    return InputError(source, text, "give the key a value of its own type")


def _as_declared(declared: Any, value: Any) -> Any:
    """What users mean: a whole number for a real one, one value for a sequence of one.

    Text is first read as a Python literal, as Detectron2 does: YAML has no tuples.
    """
    if isinstance(value, str) and not isinstance(declared, str):
        try:
            value = literal_eval(value)
        except (ValueError, SyntaxError):
            pass  # a plain word, such as the name of a data set
    if isinstance(declared, float) and type(value) is int:
        return float(value)
    if isinstance(declared, tuple | list) and not isinstance(value, tuple | list):
        return type(declared)([value])
    return value


def _coerce(cfg: CfgNode, declared: CfgNode) -> None:
    for key, value in cfg.items():
        if isinstance(value, CfgNode):
            if isinstance(declared.get(key), CfgNode):
                _coerce(value, declared[key])
        elif key in declared:
            cfg[key] = _as_declared(declared[key], value)


def _merge_override(cfg: CfgNode, key: str, text: str) -> None:
    declared = flatten(cfg)
    if key not in declared:
        raise InputError(
            "command line",
            f"there is no config key {key}",
            f"did you mean {_nearest_key(cfg, key)}?",
        )
    try:
        cfg.merge_from_list([key, _as_declared(declared[key], text)])
    except (KeyError, AssertionError, ValueError) as error:
        raise InputError(
            "command line",
            f"{key} is {text!r}, its default is {declared[key]!r}",
            "give a value of the same type",
        ) from error


def load_cfg(config_file: str | Path | None, opts: list[str] = ()) -> CfgNode:
    """Defaults, then a YAML file (with ``_BASE_``), then ``KEY VALUE`` overrides.

    Raises:
        InputError: missing or unreadable file, unknown key (with the nearest real one),
            wrong type, an override without a value, a YAML tag that would run code.
    """
    cfg = get_cfg()
    if config_file:
        _merge_file(cfg, str(config_file))
    override(cfg, opts)
    check_cfg(cfg, str(config_file or "command line"))
    return cfg


def override(cfg: CfgNode, opts: list[str]) -> None:
    """Merge ``KEY VALUE`` pairs from a command line. Raises InputError as `load_cfg`."""
    if len(opts) % 2:
        raise InputError(
            "command line",
            f"the override {opts[-1]} has no value",
            "write overrides as KEY VALUE pairs",
        )
    for key, text in zip(opts[::2], opts[1::2], strict=True):
        _merge_override(cfg, key, text)


def _merge_file(cfg: CfgNode, path: str) -> None:
    if not Path(path).is_file():
        raise InputError(
            path,
            "the config file does not exist",
            "give a path to a YAML file, for instance configs/imagenet/X50_32x4d.yaml",
        )
    try:
        given = CfgNode(CfgNode.load_yaml_with_base(path, allow_unsafe=False))
        _coerce(given, cfg)
        cfg.merge_from_other_cfg(given)
    except (yaml.YAMLError, OSError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(
            path, f"not readable as a YAML config ({' '.join(str(error).split())})", "mend the file"
        ) from error
    except (KeyError, AssertionError, ValueError, TypeError, AttributeError) as error:
        raise _merge_error(cfg, path, error) from error


def cfg_from_text(text: str, source: str) -> CfgNode:
    """A config from the YAML text that travels in a weights file's record."""
    cfg = get_cfg()
    try:
        cfg.merge_from_other_cfg(CfgNode(yaml.safe_load(text)))
    except (KeyError, AssertionError, ValueError, TypeError, AttributeError) as error:
        raise _merge_error(cfg, f"{source} (its stored config)", error) from error
    except yaml.YAMLError as error:
        raise InputError(source, "its stored config is not YAML", "give --config-file") from error
    return cfg


def _check_choice(source: str, key: str, value: Any, choices: tuple) -> None:
    if value not in choices:
        raise InputError(
            source, f'{key} is "{value}"', f"set it to one of {', '.join(map(str, choices))}"
        )


def check_cfg(cfg: CfgNode, source: str) -> None:
    """Checks across keys that would otherwise fail after hours. Raises InputError."""
    _check_choice(source, "MODEL.PRECISION", cfg.MODEL.PRECISION, PRECISIONS)
    _check_choice(source, "INPUT.FORMAT", cfg.INPUT.FORMAT, ("RGB", "BGR"))
    if cfg.SOLVER.AMP.ENABLED:
        raise InputError(source, "SOLVER.AMP.ENABLED is True", 'set MODEL.PRECISION "bf16" instead')
    for entry in cfg.DATASETS.COCO_JSON:
        if not (isinstance(entry, list | tuple) and len(entry) == 3):
            raise InputError(
                source,
                f"DATASETS.COCO_JSON holds {entry!r}",
                "write each entry as [name, json file, image folder]",
            )
    for key, value in flatten(cfg.SOLVER, "SOLVER.").items():
        if key.endswith(("IMS_PER_BATCH", "MAX_ITER")) and value < 1:
            raise InputError(source, f"{key} is {value}", "set it to 1 or more")


def stage_cfg(cfg: CfgNode, stage: str) -> CfgNode:
    """The config of one network: ``SOLVER.RPN`` or ``SOLVER.FAST_RCNN`` put into ``SOLVER``.

    Args:
        stage: "rpn" (a Detectron2 ``ProposalNetwork``) or "fast_rcnn" (a Detectron2
            ``GeneralizedRCNN`` on stored proposals).
    """
    assert stage in NETWORKS, stage
    cfg = cfg.clone()
    cfg.defrost()
    for key, value in cfg.SOLVER[stage.upper()].items():
        cfg.SOLVER[key] = value
    if stage == "rpn":
        cfg.MODEL.META_ARCHITECTURE = "ProposalNetwork"
        cfg.MODEL.LOAD_PROPOSALS = False
    else:
        cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
        cfg.MODEL.LOAD_PROPOSALS = True
        cfg.MODEL.PROPOSAL_GENERATOR.NAME = "PrecomputedProposals"
    cfg.freeze()
    return cfg
