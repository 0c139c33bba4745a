"""What Torch7's layers are called, what of them is used, and one layer with its place."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ..errors import InputError
from .torch7 import TorchObject, short

CONV, NORM, RELU = "convolution", "batch normalisation", "ReLU"
MAX_POOL, MEAN_POOL, VIEW, LINEAR = "max pooling", "average pooling", "view", "linear layer"
SEQUENCE, BRANCHES, SUM, JOIN = "sequence", "table of branches", "sum", "join of branches"
IDENTITY = "identity"
KINDS = {
    "nn.SpatialConvolution": CONV,
    "nn.SpatialConvolutionMM": CONV,
    "nn.SpatialBatchNormalization": NORM,
    "nn.ReLU": RELU,
    "nn.SpatialMaxPooling": MAX_POOL,
    "nn.SpatialAveragePooling": MEAN_POOL,
    "nn.View": VIEW,
    "nn.Reshape": VIEW,
    "nn.Linear": LINEAR,
    "nn.Sequential": SEQUENCE,
    "nn.ConcatTable": BRANCHES,
    "nn.CAddTable": SUM,
    "nn.JoinTable": JOIN,
    "nn.Identity": IDENTITY,
}
IN_CUDNN = (CONV, NORM, RELU, MAX_POOL, MEAN_POOL)
KINDS |= {f"cudnn.{name[3:]}": kind for name, kind in KINDS.items() if kind in IN_CUDNN}
NETWORK = {
    "ImageNet": (CONV, NORM, RELU, MAX_POOL, *[SEQUENCE] * 4, MEAN_POOL, VIEW, LINEAR),
    "CIFAR": (CONV, NORM, RELU, *[SEQUENCE] * 3, MEAN_POOL, VIEW, LINEAR),
}
BLOCK = (BRANCHES, SUM, RELU)
PATH = (CONV, NORM, RELU, CONV, NORM, RELU, CONV, NORM)
# (what is due at a place, what stands there) in networks that are known but cannot be taken.
PREACTIVATION = "this is a pre-activation network (ResNet-200), which is not converted"
KNOWN_OTHERS = {
    (RELU, NORM): "the last batch normalisation stands after the sum (fb.resnet.torch's ResNet-50),"
    " which the network here cannot express",
    (CONV, BRANCHES): "the block is form B of the paper (a branch for each path), which is not"
    " converted",
    (CONV, NORM): PREACTIVATION,
    (BRANCHES, NORM): PREACTIVATION,
    (MEAN_POOL, NORM): PREACTIVATION,
}

# Where arrays may stand: those that are converted, and those that say nothing about the network.
USED = {
    CONV: ("weight", "bias"),
    NORM: ("weight", "bias", "running_mean", "running_var", "running_std"),
    LINEAR: ("weight", "bias"),
    SEQUENCE: ("modules",),
    BRANCHES: ("modules",),
}
GRADIENTS = "gradient buffer"
BUFFERS = "buffer of the last batch"
SIZES = "sizes of the last batch"
DROPPED = {
    **dict.fromkeys(
        ("gradWeight", "gradBias", "gradInput", "fgradInput", "_gradOutput"), GRADIENTS
    ),
    **dict.fromkeys(("output", "_input", "finput", "indices", "addBuffer"), BUFFERS),
    **dict.fromkeys(("save_mean", "save_std", "buffer", "buffer2", "centered"), BUFFERS),
    **dict.fromkeys(("std", "normalized", "input_slice", "output_slice", "scaleT"), BUFFERS),
    **dict.fromkeys(("iSize", "oSize", "size", "batchsize"), SIZES),
}
# What Torch7 takes where a field of an older file is missing.
DEFAULTS = {"dW": 1, "dH": 1, "padW": 0, "padH": 0, "groups": 1, "threshold": 0, "val": 0}
DEFAULTS |= {"ceil_mode": False, "divide": False}

MEND = "give one of the paper's networks (ResNeXt's models/resnext.lua, resnext_C or resnet)"


@dataclass(frozen=True)
class Layer:
    """One module. Its place is as Torch7 counts: "6.1.2" is ``net:get(6):get(1):get(2)``."""

    file: Path
    place: str
    object: TorchObject

    @property
    def kind(self) -> str | None:
        return KINDS.get(self.object.class_name)

    def fault(self, found: str) -> NoReturn:
        where = f"layer {self.place}" if self.place else "the network"
        raise InputError(self.file, f"{where} ({self.object.class_name}): {found}", MEND)

    def field(self, name: str) -> Any:
        return self.object.fields.get(name, DEFAULTS.get(name))

    def sizes(self, name: str) -> tuple[int, ...]:
        found = self.field(name)
        return found.shape if isinstance(found, np.ndarray) else ()

    def demand(self, **settings: float) -> None:
        """Refuse the layer where a field has another value than the one given."""
        for name, due in settings.items():
            found = self.field(name)
            if not isinstance(found, int | float) or found != due:
                self.fault(f"{name} is {short(found)}, but {due} is due here")

    def whole(self, name: str) -> int:
        """A field that must be a whole number of 1 or more."""
        found = self.field(name)
        if isinstance(found, bool) or not isinstance(found, int) or found < 1:
            self.fault(f"{name} is {short(found)}, no whole number of 1 or more")
        return found
