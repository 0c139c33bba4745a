"""ResNeXt classification and Faster R-CNN with non-shared features, on Detectron2.

Importing this package registers everything with Detectron2.
"""

from .errors import hear_interrupts  # isort: skip

hear_interrupts()  # the imports below take seconds

from . import compat, detection  # noqa: E402
from .config import get_cfg, load_cfg  # noqa: E402
from .errors import InputError  # noqa: E402
from .models import Architecture, build_resnext  # noqa: E402

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
