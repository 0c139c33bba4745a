"""One network stage by stage, counted on the meta device, and the width that Eq. 4 gives."""

import functools
import math

import torch

from ..errors import InputError
from ..models import Architecture, build_resnext
from ..models.architecture import LARGEST
from ..models.complexity import (
    StageCount,
    Totals,
    add_up,
    check_whole,
    count,
    eq4_parameters,
    solve_width,
)
from ..models.resnext import ResNeXt
from .table import (
    CARDINALITY,
    EQ4,
    EQ4_MULTIPLY_ADDS,
    GROUP_WIDTH,
    MULTIPLY_ADDS,
    PARAMETERS,
    RES2_SIDE,
    WHOLE,
    WIDTH,
    Column,
    Table,
    side,
)


def model_table(name: str, image_size: int | None = None, num_classes: int | None = None) -> Table:
    """Every stage of the member of that name, its head among them, and their sum.

    Args:
        image_size: height and width in pixels; None means 224, or 32 for CIFAR's networks.
        num_classes: None means 1000, or 10 for CIFAR's networks.

    Raises:
        InputError: a malformed name, an image smaller than the trunk's stride, numbers that
            are not whole and positive, or too large to be counted.
    """
    member = Architecture.from_name(name)
    if image_size is None:
        image_size = 32 if member.is_cifar else 224
    if num_classes is None:
        num_classes = 10 if member.is_cifar else 1000
    check_whole("image size", image_size, most=LARGEST)
    check_whole("number of classes", num_classes, most=LARGEST**2)
    stages = stages_of(member, image_size, num_classes)
    total = add_up(stages)
    sums = ("total", None, None, None, total.parameters, total.multiply_adds, total.activations)
    return Table(
        title=f"{name}: {image_size} x {image_size} pixels, classes: {num_classes}",
        columns=(Column("stage"), Column("output", side), Column("channels", WHOLE))
        + (Column("blocks", WHOLE), PARAMETERS, MULTIPLY_ADDS, Column("activations", WHOLE)),
        rows=(*(_stage_row(stage) for stage in stages), sums),
        notes=(
            "For one image: multiply-adds of convolutions and the linear layer, and elements of "
            "their outputs (activations). Norms, ReLU, pooling and additions are not counted.",
        ),
    )


def _stage_row(stage: StageCount) -> tuple:
    return (
        (stage.name, stage.output, stage.channels)
        + (stage.blocks or None,)
        + (stage.parameters, stage.multiply_adds, stage.activations)
    )


def on_meta(member: Architecture, num_classes: int) -> ResNeXt:
    """The network with a head; its tensors have shapes and no memory."""
    with torch.device("meta"):
        return build_resnext(**member.as_dict(), num_classes=num_classes)


@functools.cache
def stages_of(member: Architecture, image_size: int, num_classes: int) -> tuple[StageCount, ...]:
    """What each stage has. Raises InputError as `model_table`."""
    _check_countable(member, image_size, num_classes)
    network = on_meta(member, num_classes)
    blocks = [network.stem, *(block for stage in network.stages for block in stage)]
    least = math.prod(block.stride for block in blocks)
    if image_size < least:
        raise InputError(
            "image size",
            f"found {image_size} pixels, and {member.name} has a stride of {least}",
            f"give {least} or more",
        )
    return tuple(count(network, image_size))


def _check_countable(member: Architecture, image_size: int, num_classes: int) -> None:
    """A tensor of 2^60 elements or more is nothing that torch could describe."""
    last = member.stages[-1]
    inner, out = member.bottleneck_channels(last), member.out_channels(last)
    weights = (9 * inner * inner // member.cardinality, inner * out, out * out, out * num_classes)
    if max(*weights, max(inner, out) * image_size**2) >= 2**60:
        raise InputError(
            "architecture name",
            f"{member.name} at {image_size} pixels and {num_classes} classes is too large to count",
            "give smaller numbers",
        )


def totals_of(name: str, num_classes: int | None = None) -> Totals:
    """At the paper's image size; classes as for `model_table`."""
    member = Architecture.from_name(name)
    size, classes = (32, 10) if member.is_cifar else (224, 1000)
    return add_up(stages_of(member, size, num_classes or classes))


def width_table(cardinality: int, budget: int) -> Table:
    """The d that Table 2's rule gives; arguments and errors as `solve_width`."""
    width = solve_width(cardinality, budget)
    parameters = eq4_parameters(cardinality, width)
    row = (cardinality, width, cardinality * width, parameters, parameters * RES2_SIDE**2)
    return Table(
        title=f"Width for C = {cardinality}: Eq. 4 nearest to {budget:,} parameters",
        columns=(CARDINALITY, WIDTH, GROUP_WIDTH, EQ4, EQ4_MULTIPLY_ADDS),
        rows=(row,),
    )
