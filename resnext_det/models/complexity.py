"""Parameters, multiply-adds and activations of every stage, and the paper's Eq. 4.

Counted on the meta device: shapes are followed, nothing is computed and no memory is taken,
so that the largest member takes a fraction of a second. PyTorch's FlopCounterMode sees the
operators as they run; fvcore's analyses, which trace, cannot follow convolutions of meta
tensors and give equal numbers on real ones (tests/models/test_complexity.py).
"""

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..errors import InputError
from .architecture import LARGEST, RES2_CHANNELS
from .resnext import ResNeXt

aten = torch.ops.aten


@dataclass(frozen=True)
class Totals:
    """Of a whole network and one image; see `StageCount` for what is counted."""

    parameters: int
    multiply_adds: int
    activations: int


@dataclass(frozen=True)
class StageCount:
    """One stage and one image.

    Args:
        name: "stem", "res2".."res5" (CIFAR: ..."res4") or "linear".
        output: (height, width) of the stage's output; (1, 1) for "linear".
        channels: of the stage's output; the number of classes for "linear".
        blocks: residual blocks; 0 for "stem" and "linear".
        parameters: learned numbers: weights, the head's bias, scale and shift of norms. A
            FrozenBN has none: its scale and shift are buffers.
        multiply_adds: of convolutions and linear layers. Norms, ReLU, pooling and additions are
            not counted, as in the paper ("FLOPs", Sec. 3.1).
        activations: elements of the outputs of convolutions and linear layers.
    """

    name: str
    output: tuple[int, int]
    channels: int
    blocks: int
    parameters: int
    multiply_adds: int
    activations: int


def count(network: ResNeXt, image_size: int | tuple[int, int]) -> list[StageCount]:
    """Every stage of ``network``, in order, as it evaluates one image; it is left as it is.

    Args:
        network: any member, on any device, in any form and mode; without a head there is no
            row "linear", and stages that are not built have none either.
        image_size: height and width in pixels, or one number for both; whole, 1 or more.

    Raises:
        InputError: another ``image_size``.
    """
    sides = image_size if isinstance(image_size, tuple) else (image_size, image_size)
    for side in sides:
        check_whole("image size", side, most=LARGEST)
    network = _on_meta(network)
    blocks = (0, *network.architecture.blocks_per_stage)
    parts = [("stem", network.stem), *zip(network.stage_names, network.stages, strict=True)]
    features = torch.empty(1, network.stem.in_channels, *sides, device="meta")
    counts = []
    for (name, part), depth in zip(parts, blocks, strict=False):  # stages may be left out
        stage, features = _count_part(name, part, features, depth)
        counts.append(stage)
    if network.num_classes is not None:
        head = nn.Sequential(network.avgpool, nn.Flatten(), network.linear)
        counts.append(_count_part("linear", head, features, 0)[0])
    return counts


def add_up(stages: Iterable[StageCount]) -> Totals:
    """The sums over ``stages``."""
    stages = list(stages)
    return Totals(
        parameters=sum(stage.parameters for stage in stages),
        multiply_adds=sum(stage.multiply_adds for stage in stages),
        activations=sum(stage.activations for stage in stages),
    )


def totals(network: ResNeXt, image_size: int | tuple[int, int]) -> Totals:
    """The sums over `count`, with its arguments and errors."""
    return add_up(count(network, image_size))


def _on_meta(network: ResNeXt) -> ResNeXt:
    """A copy in evaluation mode; its tensors have shapes and no memory."""
    shapes: dict[int, Any] = {id(buffer): buffer.to("meta") for buffer in network.buffers()}
    for weight in network.parameters():
        shapes[id(weight)] = nn.Parameter(weight.detach().to("meta"), weight.requires_grad)
    return copy.deepcopy(network, shapes).eval()


def _outputs(*inputs: Any, out_shape: Any = None, **others: Any) -> int:
    """For FlopCounterMode: elements of an operator's output, in place of its FLOPs."""
    return math.prod(out_shape)


_ACTIVATIONS = {aten.convolution: _outputs, aten.addmm: _outputs, aten.mm: _outputs}


@torch.no_grad()
def _count_part(
    name: str, part: nn.Module, features: torch.Tensor, blocks: int
) -> tuple[StageCount, torch.Tensor]:
    """The row of one part, and its output for the next one."""
    flops = FlopCounterMode(display=False)  # counts no other operator that occurs here
    activations = FlopCounterMode(display=False, custom_mapping=_ACTIVATIONS)
    with flops, activations:
        features = part(features)
    shape = (*features.shape, 1, 1)
    stage = StageCount(
        name=name,
        output=(shape[2], shape[3]),
        channels=shape[1],
        blocks=blocks,
        parameters=sum(weight.numel() for weight in part.parameters()),
        multiply_adds=flops.get_total_flops() // 2,  # FlopCounterMode counts each as two
        activations=activations.get_total_flops(),
    )
    return stage, features


def eq4_parameters(cardinality: int, width: int, in_channels: int = RES2_CHANNELS) -> int:
    """Parameters of one template without norms and shortcut (paper, Eq. 4).

    Args:
        cardinality: C, the number of paths.
        width: d, the channels of one path.
        in_channels: of the template's input and output, 256 in res2.
    """
    return cardinality * (in_channels * width + 3 * 3 * width * width + width * in_channels)


def solve_width(cardinality: int, budget: int, in_channels: int = RES2_CHANNELS) -> int:
    """The d whose Eq. 4 value is nearest to ``budget`` parameters (paper, Table 2).

    Of two that are equally near it is the smaller.

    Raises:
        InputError: a number that is not whole and positive, or a budget below Eq. 4's value
            at d = 1.
    """
    check_whole("cardinality", cardinality, most=LARGEST)
    check_whole("budget", budget)
    least = eq4_parameters(cardinality, 1, in_channels)
    if budget < least:
        raise InputError(
            "budget",
            f"found {budget} parameters, and {cardinality} paths of width 1 have {least} (Eq. 4)",
            f"give {least} or more, or a smaller cardinality",
        )
    # 9 d^2 + 2 in d = budget / C, solved for d and rounded down, in whole numbers throughout.
    below = (math.isqrt(in_channels**2 + 9 * budget // cardinality) - in_channels) // 9
    return min(
        (below, below + 1),
        key=lambda width: abs(eq4_parameters(cardinality, width, in_channels) - budget),
    )


def check_whole(name: str, value: Any, most: int | None = None) -> None:
    """Raises InputError, naming ``name``, where ``value`` is no whole number in 1..``most``."""
    if type(value) is not int or value < 1 or (most is not None and value > most):
        bound = "" if most is None else f", {most} at most"
        raise InputError(name, f"found {value!r:.40}", f"give a whole number, 1 or more{bound}")
