"""Guard Table 1 and 2 of the paper: the family's names, sizes and widths."""

import pytest
import torch
from fvcore.nn import FlopCountAnalysis

from resnext_det.errors import InputError
from resnext_det.models import BLOCKS_PER_STAGE, Architecture, build_resnext

# Batch norm's scale and shift and the 1000-class head's bias counted.
PARAMETERS = {
    (50, 1, 64): 25_557_032,
    (50, 2, 40): 25_425_000,
    (50, 4, 24): 25_292_968,
    (50, 8, 14): 25_603_016,
    (50, 32, 4): 25_028_904,
    (101, 1, 64): 44_549_160,
    (101, 32, 4): 44_177_704,
    (101, 1, 100): 85_611_336,
    (101, 2, 64): 84_198_184,
    (101, 64, 4): 83_455_272,
    (101, 32, 8): 88_791_336,
    (152, 32, 8): 122_372_392,
}


def build_on_meta(*numbers, **others):
    """Shapes without memory: a large network in milliseconds."""
    with torch.device("meta"):
        return build_resnext(*numbers, num_classes=1000, **others)


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("numbers", PARAMETERS, ids=lambda numbers: Architecture(*numbers).name)
def test_parameters(numbers):
    assert count(build_on_meta(*numbers)) == PARAMETERS[numbers]


@pytest.mark.parametrize("numbers, expected", [((50, 1, 64), 4.089), ((50, 32, 4), 4.230)])
def test_multiply_adds(numbers, expected):
    """Convolutions and head at 224 x 224, in units of 1e9; the paper rounds both to about 4.1."""
    network = build_resnext(*numbers, num_classes=1000).eval()
    counted = FlopCountAnalysis(network, torch.zeros(1, 3, 224, 224))
    counted.unsupported_ops_warnings(False)
    by_operator = counted.by_operator()
    assert (by_operator["conv"] + by_operator["linear"]) / 1e9 == pytest.approx(expected, abs=0.005)


def test_stride_place_changes_no_size():
    assert count(build_on_meta(50, 32, 4, stride_in_1x1=True)) == PARAMETERS[50, 32, 4]


@pytest.mark.parametrize(
    "numbers, name",
    [
        ((50, 32, 4), "X50_32x4d"),
        ((50, 1, 64), "R50_1x64d"),
        ((101, 64, 4), "X101_64x4d"),
        ((14, 8, 16, 0.5), "X14_8x16d_w0.5"),
    ],
)
def test_names(numbers, name):
    assert Architecture(*numbers).name == name


def test_depth_counts_the_layers():
    """Three convolutions a block, the stem's and the head."""
    for depth, blocks in BLOCKS_PER_STAGE.items():
        assert depth == 3 * sum(blocks) + 2


@pytest.mark.parametrize(
    "architecture, out, bottleneck, stem",
    [
        (Architecture(50, 32, 4), [256, 512, 1024, 2048], [128, 256, 512, 1024], 64),
        (Architecture(50, 1, 64), [256, 512, 1024, 2048], [64, 128, 256, 512], 64),
        (Architecture(14, 8, 16, 0.5), [128, 256, 512, 1024], [64, 128, 256, 512], 32),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_widths(architecture, out, bottleneck, stem):
    """What the numbers promise, and what is built."""
    stages = range(2, 6)
    assert [architecture.out_channels(stage) for stage in stages] == out
    assert [architecture.bottleneck_channels(stage) for stage in stages] == bottleneck
    assert architecture.stem_channels == stem
    network = build_on_meta(**architecture.as_dict())
    assert network.stem.conv1.out_channels == stem
    for stage, channels, inner in zip(network.stages, out, bottleneck, strict=True):
        for block in stage:
            assert block.conv2.groups == architecture.cardinality
            assert (block.conv2.in_channels, block.conv2.out_channels) == (inner, inner)
            assert block.conv3.out_channels == channels
    assert network.architecture == architecture


def test_dict_gives_the_architecture_back():
    """It travels so in a weights file."""
    first = Architecture(26, 4, 8, 0.5, True)
    assert Architecture(**first.as_dict()) == first


@pytest.mark.parametrize(
    "numbers, words",
    [
        ({"depth": 51}, ["DEPTH is 51", "14, 26, 50, 101, 152"]),
        ({"cardinality": 0}, ["NUM_GROUPS x WIDTH_PER_GROUP is 0 x 4", "1 or more"]),
        ({"bottleneck_width": -1}, ["32 x -1", "1 or more"]),
        ({"width_multiplier": 0.3}, ["WIDTH_MULTIPLIER 0.3", "WIDTH_PER_GROUP 4 is 1.2", "whole"]),
        (
            {"width_multiplier": 1 / 128, "bottleneck_width": 128},
            ["WIDTH_MULTIPLIER 0.0078125", "the stem's width 64 is 0.5", "whole"],
        ),
        ({"width_multiplier": 0.0}, ["WIDTH_MULTIPLIER 0.0", "whole"]),
    ],
)
def test_refusals(numbers, words):
    with pytest.raises(InputError) as refused:
        Architecture(**numbers)
    assert str(refused.value).startswith("MODEL.RESNETS: ")
    for word in words:
        assert word in str(refused.value)
