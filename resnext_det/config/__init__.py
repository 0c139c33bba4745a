"""One config system for every tool: Detectron2's ``CfgNode``, YAML with ``_BASE_``, overrides.

``get_cfg()`` is Detectron2's own defaults plus the keys of ``keys.py``.
"""

from .checks import check_cfg, check_detection_solver, check_keys, check_sizes
from .keys import IMAGENET_MEAN, IMAGENET_STD, get_cfg
from .reading import cfg_from_text, load_cfg, override, stored_for_test
from .views import (
    NETWORKS,
    TRAINED,
    architecture_arguments,
    flatten,
    protocol_of,
    set_key,
    stage_cfg,
    trunk_arguments,
)

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "NETWORKS",
    "TRAINED",
    "architecture_arguments",
    "cfg_from_text",
    "check_cfg",
    "check_detection_solver",
    "check_keys",
    "check_sizes",
    "flatten",
    "get_cfg",
    "load_cfg",
    "override",
    "protocol_of",
    "set_key",
    "stage_cfg",
    "stored_for_test",
    "trunk_arguments",
]
