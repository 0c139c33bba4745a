"""ResNeXt classification and Faster R-CNN with non-shared features, on Detectron2.

Importing this package registers everything with Detectron2.
"""

from . import compat, detection
from .config import get_cfg, load_cfg
from .errors import InputError
from .models import Architecture, build_resnext

__version__ = "0.1.0"
__all__ = [
    "Architecture",
    "InputError",
    "build_resnext",
    "compat",
    "detection",
    "get_cfg",
    "load_cfg",
]
