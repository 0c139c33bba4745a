"""Tables of capacity: what a network has, beside what the paper prints (Tables 1-4 and 7).

Everything of ours is counted from the networks themselves, on the meta device.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tabulate import tabulate

from . import paper
from .errors import InputError
from .models import Architecture, build_resnext
from .models.architecture import LARGEST
from .models.complexity import (
    StageCount,
    Totals,
    add_up,
    check_whole,
    count,
    eq4_parameters,
    solve_width,
)

NOTHING = "-"  # where a number does not exist
RES2_SIDE = 56  # of res2's output for a 224 x 224 image, for which Table 2 counts


@dataclass(frozen=True)
class Column:
    """A header (with the unit), and how a value of the column is written."""

    header: str
    show: Callable[[Any], str] = str


@dataclass(frozen=True)
class Table:
    """Plain values and how to write them; ``None`` stands for a number that does not exist."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple, ...]
    notes: tuple[str, ...] = ()

    def text(self) -> str:
        """Title, Markdown table and notes, with an empty line between any two."""
        cells = [
            [
                NOTHING if value is None else column.show(value)
                for column, value in zip(self.columns, row, strict=True)
            ]
            for row in self.rows
        ]
        body = tabulate(
            cells,
            [column.header for column in self.columns],
            tablefmt="github",
            disable_numparse=True,
            colalign=["left" if column.show is str else "right" for column in self.columns],
        )
        return "\n\n".join([self.title, body, *self.notes])

    def as_dict(self) -> dict:
        """For JSON: {"title", "rows": [{header: value}], "notes"}, values not rounded."""
        headers = [column.header for column in self.columns]
        rows = [dict(zip(headers, row, strict=True)) for row in self.rows]
        return {"title": self.title, "rows": rows, "notes": list(self.notes)}


def _fixed(digits: int, scale: float = 1, unit: str = "") -> Callable[[float], str]:
    return lambda value: f"{value / scale:.{digits}f}{unit}"


def _side(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


WHOLE = "{:,}".format
MILLIONS, GIGA, EXACT_GIGA = _fixed(1, 1e6, " M"), _fixed(1, 1e9, " G"), _fixed(3, 1e9, " G")
MODEL = Column("model")
PARAMETERS, MULTIPLY_ADDS = Column("parameters", WHOLE), Column("multiply-adds", WHOLE)
TOP1, TOP5 = (Column(f"paper top-{k} error, %", _fixed(1)) for k in (1, 5))
WIDTHS = (Column("C", WHOLE), Column("d", WHOLE), Column("width C x d", WHOLE))
EQ4, EQ4_MULTIPLY_ADDS = (
    Column("parameters (Eq. 4)", WHOLE),
    Column(f"multiply-adds at {RES2_SIDE} x {RES2_SIDE}", WHOLE),
)


# ---- one network ----


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
    stages = _stages(member, image_size, num_classes)
    total = add_up(stages)
    sums = ("total", None, None, None, total.parameters, total.multiply_adds, total.activations)
    return Table(
        title=f"{name}: {image_size} x {image_size} pixels, classes: {num_classes}",
        columns=(Column("stage"), Column("output", _side), Column("channels", WHOLE))
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


@functools.cache
def _stages(member: Architecture, image_size: int, num_classes: int) -> tuple[StageCount, ...]:
    _check_countable(member, image_size, num_classes)
    with torch.device("meta"):
        network = build_resnext(**member.as_dict(), num_classes=num_classes)
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


def _totals(name: str, num_classes: int | None = None) -> Totals:
    """At the paper's image size; classes as for `model_table`."""
    member = Architecture.from_name(name)
    size, classes = (32, 10) if member.is_cifar else (224, 1000)
    return add_up(_stages(member, size, num_classes or classes))


def width_table(cardinality: int, budget: int) -> Table:
    """The d that Table 2's rule gives; arguments and errors as `solve_width`."""
    width = solve_width(cardinality, budget)
    parameters = eq4_parameters(cardinality, width)
    row = (cardinality, width, cardinality * width, parameters, parameters * RES2_SIDE**2)
    return Table(
        title=f"Width for C = {cardinality}: Eq. 4 nearest to {budget:,} parameters",
        columns=(*WIDTHS, EQ4, EQ4_MULTIPLY_ADDS),
        rows=(row,),
    )


# ---- the paper's tables ----


def layers_of_table_1() -> Table:
    """ResNet-50 beside ResNeXt-50, stage by stage."""
    first, second = (Architecture.from_name(name) for name in paper.TABLE_1)
    stem = f"7x7, {first.stem_channels}, stride 2; 3x3 max pool, stride 2"
    head = "average pool, 1000-d linear, softmax"
    layers = {"stem": (stem, stem)}
    for stage in first.stages:
        layers[f"res{stage}"] = (_template(first, stage), _template(second, stage))
    layers["linear"] = (head, head)
    outputs = {stage.name: stage.output for stage in _stages(first, 224, 1000)}
    return Table(
        title="Table 1, layers at 224 x 224 pixels",
        columns=(Column("stage"), Column("output", _side), Column(first.name), Column(second.name)),
        rows=tuple((name, outputs[name], *pair) for name, pair in layers.items()),
        notes=("res2..res5 are the paper's conv2..conv5; it lists the max pooling under conv2.",),
    )


def _template(member: Architecture, stage: int) -> str:
    """ "[1x1, 128; 3x3, 128, C=32; 1x1, 256] x 3", nearly as Table 1 writes it."""
    inner, out = member.bottleneck_channels(stage), member.out_channels(stage)
    paths = f", C={member.cardinality}" * (member.cardinality > 1)
    block = f"[1x1, {inner}; 3x3, {inner}{paths}; 1x1, {out}]"
    return f"{block} x {member.blocks_per_stage[stage - 2]}"


def sizes_of_table_1() -> Table:
    """Parameters and multiply-adds of the same two."""
    sizes = {name: _totals(name) for name in paper.TABLE_1}
    printed, exact = paper.TABLE_1["R50_1x64d"].parameters, sizes["R50_1x64d"].parameters
    return Table(
        title="Table 1, sizes",
        columns=(MODEL, PARAMETERS, Column("paper parameters", MILLIONS))
        + (MULTIPLY_ADDS, Column("paper FLOPs", GIGA)),
        rows=tuple(
            (name, size.parameters, column.parameters, size.multiply_adds, column.flops)
            for (name, size), column in zip(sizes.items(), paper.TABLE_1.values(), strict=True)
        ),
        notes=(
            f"The paper's {MILLIONS(printed)} is {WHOLE(exact)}, which rounds to "
            f"{MILLIONS(exact)}. Its FLOPs are multiply-adds.",
        ),
    )


def table_2() -> Table:
    """C against d at an equal number of parameters of one template of res2."""
    budget = eq4_parameters(1, paper.TABLE_2[1].bottleneck_width)
    rows = []
    for cardinality, printed in paper.TABLE_2.items():
        ((*widths, parameters, multiply_adds),) = width_table(cardinality, budget).rows
        about = (paper.TABLE_2_PARAMETERS, multiply_adds, paper.TABLE_2_FLOPS)
        rows.append((*widths, *printed, parameters, *about))
    return Table(
        title="Table 2, cardinality and width of one template of res2",
        columns=(*WIDTHS, Column("paper d", WHOLE), Column("paper width", WHOLE))
        + (EQ4, Column("paper, about", _fixed(0, 1e3, " k")))
        + (EQ4_MULTIPLY_ADDS, Column("paper FLOPs, about", _fixed(2, 1e9, " G"))),
        rows=tuple(rows),
        notes=(
            f"d is the width whose Eq. 4 value is nearest to that of C = 1, {budget:,}. "
            "Eq. 4 leaves out norms and shortcut.",
        ),
    )


def table_3() -> Table:
    """Cardinality against width at preserved complexity, 50 and 101 layers."""
    sizes = {name: _totals(name) for name in paper.TABLE_3}
    return Table(
        title="Table 3, preserved complexity, 224 x 224 pixels, 1,000 classes",
        columns=(MODEL, PARAMETERS, MULTIPLY_ADDS, TOP1),
        rows=tuple(
            (name, size.parameters, size.multiply_adds, paper.TABLE_3[name])
            for name, size in sizes.items()
        ),
        notes=tuple(
            f"The paper writes about {GIGA(about)} for all with {depth} layers: "
            f"R{depth}_1x64d has {EXACT_GIGA(sizes[f'R{depth}_1x64d'].multiply_adds)}, "
            f"X{depth}_32x4d {EXACT_GIGA(sizes[f'X{depth}_32x4d'].multiply_adds)}."
            for depth, about in paper.TABLE_3_FLOPS.items()
        ),
    )


def table_4() -> Table:
    """Deeper, wider, or of more cardinality, at about twice ResNet-101's complexity."""
    single = _totals("R101_1x64d").multiply_adds
    rows = []
    for name, errors in paper.TABLE_4.items():
        size = _totals(name)
        ratio = size.multiply_adds / single
        rows.append((name, size.parameters, size.multiply_adds, ratio, *errors))
    return Table(
        title="Table 4, twice the complexity, 224 x 224 pixels, 1,000 classes",
        columns=(MODEL, PARAMETERS, MULTIPLY_ADDS, Column("x R101_1x64d", _fixed(2)), TOP1, TOP5),
        rows=tuple(rows),
        notes=(f"The paper writes about {paper.TABLE_4_FLOPS / 1e9:.0f} G for all of the last 4.",),
    )


def table_7() -> Table:
    """CIFAR's networks; the Wide ResNet is no member of the family and not counted."""
    rows = []
    for name, printed in paper.TABLE_7.items():
        ours = (None, None, None)
        if name not in paper.OTHERS:
            few, many = _totals(name, 10), _totals(name, 100)
            ours = (few.parameters, many.parameters, few.multiply_adds)
        rows.append((name, *ours, *printed))
    exact, cut = _totals("X29_16x64d").parameters, paper.TABLE_7["X29_16x64d"].parameters
    return Table(
        title="Table 7, CIFAR, 32 x 32 pixels; multiply-adds for 10 classes",
        columns=(MODEL, Column("parameters, 10 classes", WHOLE), Column("100 classes", WHOLE))
        + (MULTIPLY_ADDS, Column("paper parameters", MILLIONS))
        + tuple(Column(f"paper CIFAR-{k} error, %", _fixed(2)) for k in (10, 100)),
        rows=tuple(rows),
        notes=(
            f"The paper's {MILLIONS(cut)} is {WHOLE(exact)}, which rounds to {MILLIONS(exact)}. "
            "Its errors are means of 10 runs.",
        ),
    )


TABLES = {
    1: (layers_of_table_1, sizes_of_table_1),
    2: (table_2,),
    3: (table_3,),
    4: (table_4,),
    7: (table_7,),
}


def paper_table(number: int) -> list[Table]:
    """Our numbers beside those of the paper's table of that number, a key of `TABLES`.

    Raises:
        InputError: another number.
    """
    if number not in TABLES:
        choices = ", ".join(map(str, TABLES))
        raise InputError("table", f"found {number!r:.40}", f"choose one of {choices}")
    return [build() for build in TABLES[number]]
