"""Guard the paper's numbers: as its running text quotes them, and by the family's names."""

import pytest

from resnext_det import paper
from resnext_det.models import Architecture


def names_in(table):
    return [name for name in table if name not in paper.OTHERS]


def tables():
    return {
        name: value
        for name, value in vars(paper).items()
        if name.isupper() and isinstance(value, dict)
    }


def test_tables_are_there():
    assert {f"TABLE_{number}" for number in range(1, 9)} | {"SHORTCUTS"} <= set(tables())


@pytest.mark.parametrize("table", tables())
def test_rows_are_members(table):
    for name in names_in(tables()[table]):
        if isinstance(name, str):
            assert Architecture.from_name(name).name == name


@pytest.mark.parametrize(
    "worse, better, points",
    [
        (paper.TABLE_3["R50_1x64d"], paper.TABLE_3["X50_32x4d"], 1.7),
        (paper.TABLE_3["R101_1x64d"], paper.TABLE_3["X101_32x4d"], 0.8),
        (paper.TABLE_6["R50_1x64d"][0].top1, paper.TABLE_6["X50_32x4d"][0].top1, 3.2),
        (paper.TABLE_6["R101_1x64d"][0].top1, paper.TABLE_6["X101_32x4d"][0].top1, 2.3),
        (paper.TABLE_8["X50_32x4d"].ap50, paper.TABLE_8["R50_1x64d"].ap50, 2.1),
        (paper.TABLE_8["X50_32x4d"].ap, paper.TABLE_8["R50_1x64d"].ap, 1.0),
    ],
)
def test_differences_of_the_running_text(worse, better, points):
    """Sec. 5.1, 5.2 and 5.4 quote them in words."""
    assert round(worse - better, 1) == points


@pytest.mark.parametrize("name", ["R50_1x64d", "X50_32x4d", "R101_1x64d", "X101_32x4d"])
def test_a_number_that_two_tables_print(name):
    """Table 3's again: in the table of shortcuts the 50 layers, in Table 4 the 101."""
    again = paper.SHORTCUTS[name] if "50_" in name else paper.TABLE_4[name].top1
    assert again == paper.TABLE_3[name]


@pytest.mark.parametrize("name", ["R101_1x64d", "R200_1x64d", "X101_64x4d"])
def test_table_5_repeats_table_4(name):
    assert paper.TABLE_5[name].at_224 == paper.TABLE_4[name]


def test_what_removing_shortcuts_costs():
    """Sec. 5.1: 3.9 points for ResNeXt-50."""
    cost = paper.SHORTCUTS["X50_32x4d_noshortcut"] - paper.SHORTCUTS["X50_32x4d"]
    assert round(cost, 1) == 3.9


@pytest.mark.parametrize("name", paper.TABLE_1)
def test_table_1_is_what_is_built(name):
    member = Architecture.from_name(name)
    for index, (stage, row) in enumerate(paper.TABLE_1[name].stages.items()):
        number = int(stage.removeprefix("res"))
        inner = member.bottleneck_channels(number)
        assert row.channels == (inner, inner, member.out_channels(number))
        assert row.kernels == (1, 3, 1) and row.output == 224 // 2**number
        assert (row.cardinality, row.blocks) == (member.cardinality, member.blocks_per_stage[index])


def test_table_4_has_a_complexity_for_every_row():
    """Two references, four models of twice their complexity."""
    assert list(paper.TABLE_4_COMPLEXITY) == list(paper.TABLE_4)
    assert sorted(paper.TABLE_4_COMPLEXITY.values()) == [1, 1, 2, 2, 2, 2]


@pytest.mark.parametrize("cardinality", paper.TABLE_2)
def test_table_2_multiplies(cardinality):
    row = paper.TABLE_2[cardinality]
    assert row.bottleneck_channels == cardinality * row.bottleneck_width
