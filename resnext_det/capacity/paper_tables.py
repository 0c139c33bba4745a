"""The paper's tables: each of its numbers in a column beside ours."""

import functools

from .. import paper
from ..errors import InputError
from ..models.complexity import eq4_parameters
from .layers import layers_table
from .networks import totals_of, width_table
from .table import (
    CARDINALITY,
    EQ4,
    EQ4_MULTIPLY_ADDS,
    EXACT_GIGA,
    GROUP_WIDTH,
    MILLIONS,
    MODEL,
    MULTIPLY_ADDS,
    PARAMETERS,
    THOUSANDS,
    TOP1,
    TOP5,
    WHOLE,
    WIDTH,
    Column,
    Table,
    fixed,
    giga,
)


def sizes_of_table_1() -> Table:
    """Parameters and multiply-adds of ResNet-50 and ResNeXt-50."""
    sizes = {name: totals_of(name) for name in paper.TABLE_1}
    printed, exact = paper.TABLE_1["R50_1x64d"].parameters, sizes["R50_1x64d"].parameters
    return Table(
        title="Table 1, sizes",
        columns=(MODEL, PARAMETERS, Column("paper parameters", MILLIONS))
        + (MULTIPLY_ADDS, Column("paper FLOPs", giga)),
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
        ((_, width, channels, parameters, multiply_adds),) = width_table(cardinality, budget).rows
        rows.append(
            (cardinality, width, printed.bottleneck_width, channels, printed.bottleneck_channels)
            + (parameters, paper.TABLE_2_PARAMETERS, multiply_adds, paper.TABLE_2_FLOPS)
        )
    return Table(
        title="Table 2, cardinality and width of one template of res2",
        columns=(CARDINALITY, WIDTH, Column("paper d", WHOLE))
        + (GROUP_WIDTH, Column("paper width", WHOLE))
        + (EQ4, Column("paper, about", THOUSANDS))
        + (EQ4_MULTIPLY_ADDS, Column("paper FLOPs, about", giga)),
        rows=tuple(rows),
        notes=(
            f"d is the width whose Eq. 4 value is nearest to that of C = 1, {budget:,}. "
            "Eq. 4 leaves out norms and shortcut.",
        ),
    )


def _depth(name: str) -> int:
    """50 for "X50_32x4d"."""
    return int(name.split("_")[0][1:])


def table_3() -> Table:
    """Cardinality against width at preserved complexity, 50 and 101 layers."""
    sizes = {name: totals_of(name) for name in paper.TABLE_3}
    return Table(
        title="Table 3, preserved complexity, 224 x 224 pixels, 1,000 classes",
        columns=(MODEL, PARAMETERS, MULTIPLY_ADDS, Column("paper FLOPs, about", giga), TOP1),
        rows=tuple(
            (name, size.parameters, size.multiply_adds)
            + (paper.TABLE_3_FLOPS[_depth(name)], paper.TABLE_3[name])
            for name, size in sizes.items()
        ),
        notes=tuple(_spread(depth, sizes) for depth in paper.TABLE_3_FLOPS),
    )


def _spread(depth: int, sizes: dict) -> str:
    """What one number of the paper stands for, a sentence."""
    found = {name: size.multiply_adds for name, size in sizes.items() if _depth(name) == depth}
    least, most = (pick(found, key=found.get) for pick in (min, max))
    return (
        f"The paper has one number for all with {depth} layers; they lie between "
        f"{EXACT_GIGA(found[least])} ({least}) and {EXACT_GIGA(found[most])} ({most})."
    )


def table_4() -> Table:
    """Deeper, wider, or of more cardinality, at about twice ResNet-101's complexity."""
    single = totals_of("R101_1x64d").multiply_adds
    about = {1: paper.TABLE_3_FLOPS[101], 2: paper.TABLE_4_FLOPS}
    rows = []
    for name, errors in paper.TABLE_4.items():
        size, times = totals_of(name), paper.TABLE_4_COMPLEXITY[name]
        rows.append(
            (name, size.parameters, size.multiply_adds, about[times])
            + (size.multiply_adds / single, times, *errors)
        )
    return Table(
        title="Table 4, twice the complexity, 224 x 224 pixels, 1,000 classes",
        columns=(MODEL, PARAMETERS, MULTIPLY_ADDS, Column("paper FLOPs, about", giga))
        + (Column("x R101_1x64d", fixed(2)), Column("paper, x", WHOLE), TOP1, TOP5),
        rows=tuple(rows),
        notes=(
            f"The paper's {giga(about[2])} is of its text (Sec. 5.1); the {giga(about[1])} of the "
            "first two stands with Table 3.",
        ),
    )


def table_7() -> Table:
    """CIFAR's networks; the Wide ResNet is no member of the family and not counted."""
    rows = []
    for name, printed in paper.TABLE_7.items():
        few, many, multiply_adds = None, None, None
        if name not in paper.OTHERS:
            size = totals_of(name, 10)
            few, multiply_adds = size.parameters, size.multiply_adds
            many = totals_of(name, 100).parameters
        errors = (printed.cifar10, printed.cifar100)
        rows.append((name, few, printed.parameters, many, multiply_adds, *errors))
    exact, cut = totals_of("X29_16x64d").parameters, paper.TABLE_7["X29_16x64d"].parameters
    return Table(
        title="Table 7, CIFAR, 32 x 32 pixels; multiply-adds for 10 classes",
        columns=(MODEL, Column("parameters, 10 classes", WHOLE))
        + (Column("paper parameters", MILLIONS), Column("100 classes", WHOLE), MULTIPLY_ADDS)
        + tuple(Column(f"paper CIFAR-{k} error, %", fixed(2)) for k in (10, 100)),
        rows=tuple(rows),
        notes=(
            f"The paper's {MILLIONS(cut)} is {WHOLE(exact)}, which rounds to {MILLIONS(exact)}. "
            "Its errors are means of 10 runs.",
        ),
    )


TABLES = {
    1: (*(functools.partial(layers_table, name) for name in paper.TABLE_1), sizes_of_table_1),
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
