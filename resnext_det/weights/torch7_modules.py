"""The ResNeXt paper's own weights: a Torch7 network, walked through, in our names.

The networks are those of ResNeXt's ``models/resnext.lua`` (bottlenecks ``resnet`` and
``resnext_C``, ImageNet and CIFAR) and of fb.resnet.torch's ``models/resnet.lua`` with bottlenecks.
The released ResNeXt files nest a block's path as {{conv, BN, ReLU, conv, BN, ReLU}, conv, BN};
today's ``resnext.lua`` writes the eight in one row. Only the order counts here.

Every setting of every layer is compared with what stands at its place in our network: a network
of another kind would otherwise often fit in all shapes and be silently wrong.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import InputError
from .norms import EPS, FOLDED
from .torch7 import TorchObject, read_torch7, short
from .torch7_layers import (
    BLOCK,
    CONV,
    DROPPED,
    IDENTITY,
    KNOWN_OTHERS,
    MAX_POOL,
    MEND,
    NETWORK,
    NORM,
    PATH,
    RELU,
    SEQUENCE,
    USED,
    Layer,
)


def torch7_weights(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """All weights of a Torch7 ResNeXt or ResNet file, in our names.

    Returns:
        The tensors (float32, CPU, contiguous): ``stem.conv1.weight``, ``stem.conv1.norm.weight``,
        ``.bias``, ``.running_mean``, ``.running_var``, ``res2.0.conv1.weight`` and so on,
        ``linear.weight``, ``linear.bias``. And the arrays that were not taken over as they are:
        "class.field" -> the reason, with the number of layers.

        ``running_std`` of older files, (var + eps)**-0.5, becomes running_var. A convolution's
        bias is subtracted from the running_mean behind it, which is the same function.

    Raises:
        InputError: the file cannot be read (see `read_torch7`), or its network differs from
            ours in any layer, setting or shape, or holds an array of unknown use.
    """
    walk = _Walk(Path(path))
    walk.network(read_torch7(path))
    tensors = {name: torch.from_numpy(array) for name, array in walk.arrays.items()}
    return tensors, {field: f"{why} ({n} layers)" for (field, why), n in walk.dropped.items()}


class _Walk:
    """Goes through the layers in order and keeps their arrays by our names."""

    def __init__(self, file: Path):
        self.file = file
        self.arrays: dict[str, np.ndarray] = {}
        self.dropped: Counter[tuple[str, str]] = Counter()
        self._groups = self._width = 0  # C and C * d, which the first 3x3 sets for all others
        self._entered: set[int] = set()  # ids of layers
        self._searched: set[int] = set()  # ids of tables without arrays
        self._bytes_left = 0

    # ---- the network, from the outside in ----

    def network(self, found: Any) -> None:
        self._bytes_left = self.file.stat().st_size
        if not isinstance(found, TorchObject) or found.class_name != "nn.Sequential":
            raise InputError(self.file, f"holds {short(found)}, not an nn.Sequential", MEND)
        top = self._enter(Layer(self.file, "", found))
        layers = self._children(top)
        layout = "ImageNet" if MAX_POOL in [layer.kind for layer in layers] else "CIFAR"
        conv, norm, _, *rest = self._match(layers, NETWORK[layout], top)
        kernel, stride = (7, 2) if layout == "ImageNet" else (3, 1)
        channels = conv.whole("nOutputPlane")
        self._conv_norm("stem.conv1", conv, norm, kernel, stride, 3, channels)
        if layout == "ImageNet":
            rest.pop(0).demand(kW=3, kH=3, dW=2, dH=2, padW=1, padH=1, ceil_mode=False)
        *stages, pool, _, linear = rest
        for number, stage in enumerate(stages):
            channels = self._stage(number, stage, channels)
        self._mean_pool(pool)
        self._linear(linear, channels)

    def _stage(self, number: int, stage: Layer, channels: int) -> int:
        """Channels double from stage to stage, and are four times the stem's in the first."""
        outputs = channels * (2 if number else 4)
        for block, layer in enumerate(self._children(stage)):
            stride = 2 if number and not block else 1
            self._block(f"res{number + 2}.{block}", layer, channels, outputs, stride, 2**number)
            channels = outputs
        return channels

    def _block(
        self, name: str, block: Layer, inputs: int, outputs: int, stride: int, times: int
    ) -> None:
        """Fig. 3(c): 1x1, grouped 3x3 with the stride, 1x1, beside the shortcut."""
        branches, _, _ = self._match(self._children(block), BLOCK, block)
        parts = self._children(branches)
        if len(parts) != 2:
            branches.fault(f"has {len(parts)} branches, but a path and a shortcut are due")
        path, shortcut = parts
        conv1, norm1, _, conv2, norm2, _, conv3, norm3 = self._match(self._row(path), PATH, path)
        self._groups = self._groups or conv2.whole("groups")
        self._width = self._width or conv2.whole("nOutputPlane")
        width = self._width * times
        self._conv_norm(f"{name}.conv1", conv1, norm1, 1, 1, inputs, width)
        self._conv_norm(f"{name}.conv2", conv2, norm2, 3, stride, width, width, self._groups)
        self._conv_norm(f"{name}.conv3", conv3, norm3, 1, 1, width, outputs)
        if inputs == outputs:
            self._match([shortcut], (IDENTITY,), shortcut)
        else:
            conv, norm = self._match(self._row(shortcut), (CONV, NORM), shortcut)
            self._conv_norm(f"{name}.shortcut", conv, norm, 1, stride, inputs, outputs)

    def _match(self, layers: list[Layer], kinds: tuple, owner: Layer) -> list[Layer]:
        """The layers, if they are of these kinds in this order."""
        for layer, due in zip(layers, kinds, strict=False):
            if layer.kind != due:
                other = f"not the {due} that is due here"
                layer.fault(KNOWN_OTHERS.get((due, layer.kind), other))
        if len(layers) != len(kinds):
            owner.fault(f"has {len(layers)} layers, but {len(kinds)} are due")
        return layers

    # ---- the tree of modules ----

    def _children(self, layer: Layer) -> list[Layer]:
        modules = layer.field("modules")
        if not isinstance(modules, list) or not all(isinstance(m, TorchObject) for m in modules):
            layer.fault(f"its modules are {short(modules)}, not a list of layers")
        prefix = f"{layer.place}." if layer.place else ""
        children = [Layer(self.file, f"{prefix}{i}", m) for i, m in enumerate(modules, start=1)]
        return [self._enter(child) for child in children]

    def _row(self, layer: Layer) -> list[Layer]:
        """The layer, or what it and the sequences in it hold, in the order of running."""
        row, waiting = [], [layer]
        while waiting:
            layer = waiting.pop()
            if layer.kind == SEQUENCE:
                waiting += reversed(self._children(layer))
            else:
                row.append(layer)
        return row

    def _enter(self, layer: Layer) -> Layer:
        """Account for every field of a layer, which is met for the first time."""
        if id(layer.object) in self._entered:  # our networks share no weights
            layer.fault("stands at two places of the network")
        self._entered.add(id(layer.object))
        if layer.kind is None:
            layer.fault("its class is none of those that these networks are made of")
        for name, value in layer.object.fields.items():
            if name in USED.get(layer.kind, ()):
                continue
            if name not in DROPPED:
                self._demand_no_array(layer, name)
            elif value.size if isinstance(value, np.ndarray) else value:
                self.dropped[f"{layer.object.class_name}.{name}", DROPPED[name]] += 1
        if layer.kind == RELU:
            layer.demand(threshold=0, val=0)
        return layer

    def _demand_no_array(self, layer: Layer, name: str) -> None:
        """Refuse a field that holds an array, at any depth; each table is searched once."""
        waiting = [layer.field(name)]
        while waiting:
            value = waiting.pop()
            if isinstance(value, np.ndarray) and value.size:
                layer.fault(f"its field {short(name)} holds an array of unknown use")
            inside = value.fields if isinstance(value, TorchObject) else value
            if isinstance(inside, dict | list) and id(inside) not in self._searched:
                self._searched.add(id(inside))
                waiting += inside.values() if isinstance(inside, dict) else inside

    # ---- layers with weights ----

    def _conv_norm(
        self,
        name: str,
        conv: Layer,
        norm: Layer,
        kernel: int,
        stride: int,
        inputs: int,
        outputs: int,
        groups: int = 1,
    ) -> None:
        """A convolution of these settings, padded to keep the size, and its normalisation."""
        old = "padding" in conv.object.fields  # one number for both axes, which goes first in nn
        conv.demand(nInputPlane=inputs, nOutputPlane=outputs, groups=groups)
        conv.demand(kW=kernel, kH=kernel, dW=stride, dH=stride)
        conv.demand(**dict.fromkeys(("padding",) if old else ("padW", "padH"), kernel // 2))
        if inputs % groups:
            conv.fault(f"{inputs} channels do not make {groups} groups")
        shape = (outputs, inputs // groups, kernel, kernel)
        flat = len(conv.sizes("weight")) == 2  # nn.SpatialConvolutionMM
        weight = self._array(conv, "weight", (outputs, shape[1] * kernel**2) if flat else shape)
        self._keep(conv, f"{name}.weight", weight.reshape(shape))
        self._norm(f"{name}.norm", norm, outputs, self._bias(conv, outputs))

    def _bias(self, conv: Layer, channels: int) -> np.ndarray | None:
        if conv.field("bias") is None:
            return None
        self.dropped[f"{conv.object.class_name}.bias", FOLDED] += 1
        return self._array(conv, "bias", (channels,))

    def _norm(self, name: str, norm: Layer, channels: int, bias: np.ndarray | None) -> None:
        eps = norm.field("eps")
        if not isinstance(eps, float) or not abs(eps - EPS) <= 1e-9:
            norm.fault(f"eps is {short(eps)}, but {EPS} is due here")
        mean = self._array(norm, "running_mean", (channels,))
        if bias is not None:
            mean = mean.astype(np.float64) - bias
        variance = self._variance(norm, channels, eps)
        if not (variance >= 0).all():
            norm.fault("its running variance is negative or no number")
        for field in ("weight", "bias"):
            self._keep(norm, f"{name}.{field}", self._array(norm, field, (channels,)))
        self._keep(norm, f"{name}.running_mean", mean)
        self._keep(norm, f"{name}.running_var", variance)

    def _variance(self, norm: Layer, channels: int, eps: float) -> np.ndarray:
        """nn's BatchNormalization.lua (``read``) turns version 1's running_std around like this."""
        if norm.field("running_std") is None:
            return self._array(norm, "running_var", (channels,))
        if norm.field("running_var") is not None:
            norm.fault("it has both running_var and running_std")
        std = self._array(norm, "running_std", (channels,)).astype(np.float64)
        with np.errstate(divide="ignore", over="ignore"):
            variance = std**-2 - eps
        # A variance of 0, whose std is rounded to float32, comes back as 1e-12 beside it.
        return np.where((variance < 0) & (variance > -1e-6 * EPS), 0, variance)

    def _mean_pool(self, pool: Layer) -> None:
        """7x7 at 224 pixels, so that it is the mean over all positions, as in our networks."""
        pool.demand(kH=pool.whole("kW"), padW=0, padH=0)
        if pool.object.class_name == "nn.SpatialAveragePooling":
            pool.demand(divide=True)  # without it, nn gives the sum

    def _linear(self, linear: Layer, channels: int) -> None:
        classes = (linear.sizes("weight") or (1,))[0]
        self._keep(linear, "linear.weight", self._array(linear, "weight", (classes, channels)))
        self._keep(linear, "linear.bias", self._array(linear, "bias", (classes,)))

    def _array(self, layer: Layer, field: str, shape: tuple[int, ...]) -> np.ndarray:
        found = layer.field(field)
        if not isinstance(found, np.ndarray) or found.dtype.kind != "f" or found.shape != shape:
            layer.fault(f"{field} is {short(found)}, but floats {shape} are due here")
        # Weights do not overlap, so all of them are no larger than the file.
        self._bytes_left -= found.nbytes
        if self._bytes_left < 0:
            layer.fault(f"{field} is made of numbers that stand for other weights too")
        return found

    def _keep(self, layer: Layer, name: str, array: np.ndarray) -> None:
        with np.errstate(over="ignore"):  # float64 beyond float32 becomes inf
            kept = np.array(array, dtype=np.float32, order="C")
        if not np.isfinite(kept).all():
            layer.fault(f"{name.rsplit('.', 1)[-1]} holds numbers that are not finite")
        self.arrays[name] = kept
