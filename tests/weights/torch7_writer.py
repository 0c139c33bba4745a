"""Writes Torch7 files for tests: any value in the binary format, and whole networks in it.

The format as torch7's own ``File:writeObject`` and the ``write`` of tensors and storages have it;
the networks as ResNeXt's ``models/resnext.lua`` builds and its ``checkpoints.lua`` saves them:
outputs emptied, parameters and gradients in one storage each, ``getParameters``'s doing.
"""

import struct
from dataclasses import dataclass

import numpy as np

from resnext_det.weights.torch7 import TorchObject

KINDS = {"u1": "Byte", "i4": "Int", "i8": "Long", "f2": "Half", "f4": "Float", "f8": "Double"}


def kind_of(array):
    return KINDS[array.dtype.str[1:]]


@dataclass(eq=False)
class Storage:
    array: np.ndarray
    kind: str | None = None  # where it is not the array's own, as "Cuda"

    @property
    def class_name(self):
        return f"torch.{self.kind or kind_of(self.array)}Storage"


@dataclass(eq=False)
class Tensor:
    """Sizes and strides in elements; the offset as Lua has it, the first element is 1."""

    storage: Storage | None
    sizes: tuple
    strides: tuple
    offset: int = 1
    kind: str = "Float"


@dataclass(eq=False)
class Function:
    """Lua bytecode. ``tag`` 8 is today's, 7 and 6 are of older files."""

    code: bytes
    upvalues: object
    tag: int = 8


def tensor(array):
    """A whole array with a storage of its own."""
    array = np.ascontiguousarray(array)
    strides = tuple(by // array.itemsize for by in array.strides)
    return Tensor(Storage(array.ravel()), array.shape, strides, kind=kind_of(array))


def empty():
    """What ``clearState`` leaves of an output."""
    return Tensor(None, (), ())


class Torch7Writer:
    """``write`` values one after the other; ``data`` is the file, ``raw`` the spans of numbers."""

    def __init__(self, version="V 1"):
        self.data, self.raw = bytearray(), []
        self.version = version
        self.written = {}  # id -> (index, the object itself, which keeps its id)

    def int(self, value):
        self.data += struct.pack("<i", value)

    def longs(self, *values):
        self.data += struct.pack(f"<{len(values)}q", *values)

    def string(self, text):
        text = text.encode("latin-1") if isinstance(text, str) else text
        self.int(len(text))
        self.data += text

    def write(self, value):
        if value is None:
            self.int(0)
        elif isinstance(value, bool):
            self.int(5)
            self.int(value)
        elif isinstance(value, int | float):
            self.int(1)
            self.data += struct.pack("<d", value)
        elif isinstance(value, str):
            self.int(2)
            self.string(value)
        elif isinstance(value, dict | list):
            self.once(3, value, self.table)
        elif isinstance(value, Function):
            self.once(value.tag, value, self.function)
        else:
            self.once(4, value, self.torch)

    def once(self, tag, value, write):
        self.int(tag)
        if tag == 6:
            write(value)
            return
        known = id(value) in self.written
        index = self.written.setdefault(id(value), (len(self.written) + 1, value))[0]
        self.int(index)
        if not known:
            write(value)

    def table(self, table):
        pairs = table if isinstance(table, dict) else dict(enumerate(table, start=1))
        self.int(len(pairs))
        for key, value in pairs.items():
            self.write(key)
            self.write(value)

    def function(self, function):
        self.string(function.code)
        self.write(function.upvalues)

    def torch(self, value):
        if self.version:
            self.string(self.version)
        if isinstance(value, Tensor):
            self.string(f"torch.{value.kind}Tensor")
            self.int(len(value.sizes))
            self.longs(*value.sizes, *value.strides, value.offset)
            self.write(value.storage)
        elif isinstance(value, Storage):
            self.string(value.class_name)
            self.longs(value.array.size)
            start = len(self.data)
            self.data += value.array.tobytes()
            self.raw.append((start, len(self.data)))
        else:
            self.string(value.class_name)
            self.write(value.fields)


def torch7_bytes(value, version="V 1"):
    writer = Torch7Writer(version)
    writer.write(value)
    return bytes(writer.data)


# ---- networks ----


class NetworkWriter:
    """A ResNeXt of `build_resnext` as the tree of Lua modules that stands in a file.

    Args:
        model: a ``ResNeXt`` with a head, of batch normalisations; a stem of stride 1 is CIFAR's.
        layout: "released" (a path nests its first six layers) or "flat" (eight in a row).
        package: "cudnn" or "nn", whose convolutions, normalisations, ReLUs and pools are meant,
            or "mixed", nn's normalisations among cudnn's others as in resnext.lua.
        running_std: as before version 2 of nn.BatchNormalization.
        gradients: gradient buffers, which released files have.
    """

    def __init__(
        self, model, layout="released", package="mixed", running_std=False, gradients=True
    ):
        self.values = {k: v.detach().numpy() for k, v in model.state_dict().items()}
        self.model, self.layout, self.package = model, layout, package
        self.running_std, self.gradients = running_std, gradients
        count = sum(v.size for v in self.values.values())
        self.parameters = Storage(np.zeros(count, np.float32))
        self.gradient = Storage(np.random.default_rng(0).normal(size=count).astype(np.float32))
        self.taken = 0

    def module(self, class_name, **fields):
        fields = {"_type": "torch.FloatTensor", "output": empty(), "gradInput": empty(), **fields}
        return TorchObject(class_name, {"train": False, **fields})

    def own(self, name, **fields):
        mixed = "nn" if "Normalization" in name else "cudnn"
        return self.module(f"{mixed if self.package == 'mixed' else self.package}.{name}", **fields)

    def sequence(self, *modules):
        return self.module("nn.Sequential", modules=list(modules))

    def learned(self, **arrays):
        """weight and bias, and their gradients, at the same place of the two storages."""
        fields = {}
        for name, array in arrays.items():
            start, self.taken = self.taken, self.taken + array.size
            self.parameters.array[start : self.taken] = array.ravel()
            strides = tuple(by // array.itemsize for by in array.strides)
            fields[name] = Tensor(self.parameters, array.shape, strides, start + 1)
            if self.gradients:
                gradient = Tensor(self.gradient, array.shape, strides, start + 1)
                fields[f"grad{name.capitalize()}"] = gradient
        return fields

    def conv_norm(self, name, layer):
        weight = self.values[f"{name}.weight"]
        conv = self.own(
            "SpatialConvolution",
            nInputPlane=layer.in_channels,
            nOutputPlane=layer.out_channels,
            kW=layer.kernel_size[1],
            kH=layer.kernel_size[0],
            dW=layer.stride[1],
            dH=layer.stride[0],
            padW=layer.padding[1],
            padH=layer.padding[0],
            groups=layer.groups,
            iSize=Storage(np.array([256, 3, 224, 224])),
            **self.learned(weight=weight),
        )
        return conv, self.norm(f"{name}.norm", layer.norm.eps)

    def norm(self, name, eps):
        mean, variance = (self.values[f"{name}.running_{k}"] for k in ("mean", "var"))
        statistics = {"running_mean": tensor(mean), "running_var": tensor(variance)}
        if self.running_std:
            del statistics["running_var"]
            statistics["running_std"] = tensor((variance.astype(np.float64) + eps) ** -0.5)
        weight, bias = self.values[f"{name}.weight"], self.values[f"{name}.bias"]
        return self.own(
            "SpatialBatchNormalization",
            eps=eps,
            momentum=0.1,
            affine=True,
            save_mean=empty(),
            **statistics,
            **self.learned(weight=weight, bias=bias),
        )

    def relu(self):
        return self.own("ReLU", inplace=True)

    def block(self, name, block):
        first = (*self.conv_norm(f"{name}.conv1", block.conv1), self.relu())
        second = (*self.conv_norm(f"{name}.conv2", block.conv2), self.relu())
        third = self.conv_norm(f"{name}.conv3", block.conv3)
        if self.layout == "released":
            path = self.sequence(self.sequence(*first, *second), *third)
        else:
            path = self.sequence(*first, *second, *third)
        shortcut = self.module("nn.Identity")
        if block.shortcut is not None:
            shortcut = self.sequence(*self.conv_norm(f"{name}.shortcut", block.shortcut))
        branches = self.module("nn.ConcatTable", modules=[path, shortcut])
        add = self.module("nn.CAddTable", inplace=True, gradInput={})
        return self.sequence(branches, add, self.relu())

    def network(self):
        stem = [*self.conv_norm("stem.conv1", self.model.stem.conv1), self.relu()]
        if self.model.stem.stride > 1:
            pool = dict(kW=3, kH=3, dW=2, dH=2, padW=1, padH=1, ceil_mode=False)
            stem.append(self.module("nn.SpatialMaxPooling", **pool))
        stages = [
            self.sequence(
                *(self.block(f"{n}.{i}", b) for i, b in enumerate(getattr(self.model, n)))
            )
            for n in self.model.stage_names
        ]
        mean = dict(kW=7, kH=7, dW=1, dH=1, padW=0, padH=0, ceil_mode=False, divide=True)
        weight, bias = self.values["linear.weight"], self.values["linear.bias"]
        sizes = Storage(np.array([weight.shape[1]]))
        return self.sequence(
            *stem,
            *stages,
            self.own("SpatialAveragePooling", **mean),
            self.module("nn.View", size=sizes, numElements=weight.shape[1], numInputDims=3),
            self.module("nn.Linear", **self.learned(weight=weight, bias=bias)),
        )
