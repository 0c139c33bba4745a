"""Which keys of a config change what comes out of a run, and where two runs differ."""

import fnmatch
import json
from typing import Any

from detectron2.config import CfgNode

from ..config import flatten

# Keys that classification reads; detection reads all but `_NOT_DETECTION`.
_CLASSIFICATION = ("INPUT.FORMAT", "MODEL.PIXEL_*", "MODEL.PRECISION", "MODEL.RESNETS.*")
_CLASSIFICATION += ("MODEL.WEIGHTS", "DATA.*", "SOLVER.*")
_NOT_DETECTION = ("DATA.*", "MODEL.*KEYPOINT*", "MODEL.*MASK*", "MODEL.*CASCADE*", "MODEL.FPN.*")
_NOT_DETECTION += ("MODEL.SEM_SEG*", "MODEL.PANOPTIC*", "MODEL.RETINANET*", "TEST.KEYPOINT*")
# Keys that say where things are, how fast, how often and what is shown, or which of several equal
# runs it is. Names of data sets are here too: the numbers of images and classes are compared.
_FREE = ("VERSION", "OUTPUT_DIR", "SEED", "VIS_PERIOD", "CUDNN_BENCHMARK", "GLOBAL.*")
_FREE += ("FLOAT32_PRECISION", "MODEL.DEVICE", "MODEL.CHANNELS_LAST", "MODEL.RESNETS.FORM")
_FREE += ("MODEL.FUSE", "MODEL.REGROUP", "MODEL.RECOMPUTE", "MODEL.COMPILE", "DETERMINISTIC")
_FREE += ("DATA.ROOT", "DATA.*_LIST", "DATA.VAL_ROOT", "DATA.TEST_BATCH_SIZE")
_FREE += ("DATASETS.TRAIN", "DATASETS.TEST", "DATASETS.COCO_JSON", "DATALOADER.NUM_WORKERS")
_FREE += ("MODEL.ROI_HEADS.NUM_CLASSES",)
_FREE += ("SOLVER.CHECKPOINT*", "SOLVER*.REFERENCE_BATCH", "SOLVER*.REFERENCE_KEEPS")
_FREE += ("TEST.EVAL_PERIOD", "TEST.EXPECTED_RESULTS", "TEST.IMS_PER_BATCH")
# What an evaluation of finished weights depends on; the network's own keys come with the weights.
_OF_THE_TEST = ("DATA.CROP_SIZE", "DATA.RESIZE_SIZE", "DATA.INTERPOLATION", "DATA.TEST_PROTOCOL")
_OF_THE_TEST += ("DATA.TEST_SCALES", "DATA.EVAL_CLASSES", "INPUT.*TEST", "TEST.*", "MODEL.*TEST*")


def task_of(cfg: CfgNode) -> str:
    """ "detection" or "classification"."""
    return "detection" if cfg.DATASETS.TRAIN else "classification"


def _is_one_of(key: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)


def settings_of(cfg: CfgNode) -> dict[str, Any]:
    """The keys of ``cfg`` that change what comes out, as JSON keeps them (tuples are lists)."""
    leaves = flatten(cfg)
    if task_of(cfg) == "classification":
        kept = {key for key in leaves if _is_one_of(key, _CLASSIFICATION)}
        others = ("SOLVER.RPN.*", "SOLVER.FAST_RCNN.*", "SOLVER.JOINT.*")
        kept -= {key for key in leaves if _is_one_of(key, others)}
        if cfg.SOLVER.MAX_EPOCHS > 0:  # both follow from the epochs and the number of images
            kept -= {"SOLVER.MAX_ITER", "SOLVER.STEPS"}
    else:
        kept = {key for key in leaves if not _is_one_of(key, _NOT_DETECTION)}
    kept = sorted(key for key in kept if not _is_one_of(key, _FREE))
    return json.loads(json.dumps({key: leaves[key] for key in kept}))


def differences(
    ours: dict[str, Any], theirs: dict[str, Any], *, of_the_test: bool = False
) -> dict[str, tuple]:
    """{key: (ours, theirs)} where two results of `settings_of` differ.

    A key that one of them lacks is not compared: it belongs to another release of Detectron2.

    Args:
        of_the_test: compare only what an evaluation of finished weights depends on.
    """
    return {
        key: (value, theirs[key])
        for key, value in ours.items()
        if key in theirs and value != theirs[key]
        if not of_the_test or _is_one_of(key, _OF_THE_TEST)
    }
