"""Guard the family's names, numbers and widths (paper, Tables 1, 2 and 4)."""

import itertools
import json
import math

import pytest
import torch

from resnext_det.errors import InputError
from resnext_det.models import BLOCKS_PER_STAGE, Architecture, build_resnext


def build_on_meta(*numbers, **others):
    """Shapes without memory: a large network in milliseconds."""
    with torch.device("meta"):
        return build_resnext(*numbers, num_classes=1000, **others)


def refusal(call, *arguments, **keywords):
    with pytest.raises(InputError) as refused:
        call(*arguments, **keywords)
    assert "\n" not in str(refused.value)
    return str(refused.value)


# ---- names ----


@pytest.mark.parametrize(
    "numbers, name",
    [
        ((50, 32, 4), "X50_32x4d"),
        ((50, 1, 64), "R50_1x64d"),
        ((101, 64, 4), "X101_64x4d"),
        ((101, 1, 100), "R101_1x100d"),
        ((200, 1, 64), "R200_1x64d"),
        ((29, 8, 64), "X29_8x64d"),
        ((14, 8, 16, 0.5), "X14_8x16d_w0.5"),
        ((14, 8, 16, 0.25, True), "X14_8x16d_w0.25_stride1x1"),
        ((50, 32, 4, 1.0, False, False), "X50_32x4d_noshortcut"),
        ((26, 1, 64, 2, True, False), "R26_1x64d_w2_stride1x1_noshortcut"),
        ((26, 1, 64, 1.328125), "R26_1x64d_w1.328125"),  # seven digits, exact in binary
    ],
)
def test_names(numbers, name):
    assert Architecture(*numbers).name == name
    assert Architecture.from_name(name) == Architecture(*numbers)


def test_every_member_is_named_both_ways():
    members = set()
    for numbers in itertools.product(
        BLOCKS_PER_STAGE, (1, 2, 32), (64, 192), (1.0, 1 / 64, 0.25, 85 / 64), *[(False, True)] * 2
    ):
        if numbers[0] == 200 and numbers[4:] != (False, True):
            continue  # refused, see below
        member = Architecture(*numbers)
        assert Architecture.from_name(member.name) == member
        members.add(member.name)
    assert len(members) == ((len(BLOCKS_PER_STAGE) - 1) * 4 + 1) * 3 * 2 * 4


@pytest.mark.parametrize(
    "name, right",
    [
        ("X50_1x64d", "R50_1x64d"),
        ("R50_32x4d", "X50_32x4d"),
        ("R29_8x64d_w0.5", "X29_8x64d_w0.5"),
        ("X50_32x4d_w1", "X50_32x4d"),
        ("X050_32x4d", "X50_32x4d"),
        ("X50_32x4d_w0.50", "X50_32x4d_w0.5"),
    ],
)
def test_other_spellings_are_refused(name, right):
    assert refusal(Architecture.from_name, name) == (
        f'architecture name: found "{name}"; write "{right}"'
    )


@pytest.mark.parametrize(
    "name, ours",
    [
        ("resnext101_64x4d", "X101_64x4d"),
        ("resnext50_32x4d.a1_in1k", "X50_32x4d"),
        ("resnet152", "R152_1x64d"),
        ("wide_resnet50_2", "for instance"),
    ],
)
def test_names_of_torchvision_and_timm(name, ours):
    assert ours in refusal(Architecture.from_name, name)


@pytest.mark.parametrize(
    "name",
    [
        "", "resnext50", "X50", "X50_32x4", "x50_32x4d", "X50_32x4d ", "X50_32x4d\n", "X50-32x4d",
        "X50_-1x4d", "X50_32x4d_w", "X50_32x4d_wnan", "X50_32x4d_w1e-2",
        "X50_32x4d_noshortcut_w0.5", "X٥٠_32x4d", "X50_32x" + "9" * 5000 + "d", None, 50,
    ],
)  # fmt: skip
def test_malformed_names(name):
    text = refusal(Architecture.from_name, name)
    assert text.startswith("architecture name: ") and len(text) < 300
    for word in (repr(name)[:40], '"X50_32x4d"'):
        assert word in text


@pytest.mark.parametrize(
    "name, words",
    [
        ("X51_32x4d", ["DEPTH is 51", "14, 26, 50, 101, 152, 200", "20, 29, 38, 56 (CIFAR)"]),
        ("X50_0x4d", ["is 0 x 4", "1 or more"]),
        ("X50_32x0d", ["is 32 x 0", "1 or more"]),
        ("X50_99999999x4d", ["is 99999999 x 4", "65536 at most"]),
        ("X50_32x4d_w0.3", ["WIDTH_MULTIPLIER 0.3 times WIDTH_PER_GROUP 4 is 1.2", "whole"]),
        ("R200_1x64d_stride1x1", ["STRIDE_IN_1X1 is True at DEPTH 200", "STRIDE_IN_1X1 False"]),
        ("R200_1x64d_noshortcut", ["SHORTCUT is False at DEPTH 200", "SHORTCUT True"]),
    ],
)
def test_names_of_no_member(name, words):
    text = refusal(Architecture.from_name, name)
    assert text.startswith(f'architecture name: "{name}": ')
    for word in words:
        assert word in text


# ---- numbers ----


@pytest.mark.parametrize(
    "depth, stages, is_cifar, is_preactivation",
    [
        (50, (2, 3, 4, 5), False, False),
        (200, (2, 3, 4, 5), False, True),
        (29, (2, 3, 4), True, False),
    ],
)
def test_kinds(depth, stages, is_cifar, is_preactivation):
    member = Architecture(depth, 8, 64)
    assert member.stages == stages
    assert (member.is_cifar, member.is_preactivation) == (is_cifar, is_preactivation)


@pytest.mark.parametrize("depth", BLOCKS_PER_STAGE)
def test_stride_and_res5(depth):
    """What the numbers promise, and what is built."""
    member = Architecture(depth)
    network = build_on_meta(depth, out_features=["stem", f"res{member.stages[-1]}"])
    strides = [shape.stride for shape in network.output_shape().values()]
    assert strides == [member.stem_stride, member.stride]
    assert strides == ([1, 4] if member.is_cifar else [4, 32])
    assert member.has_res5 == hasattr(network, "res5") == (not member.is_cifar)


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
        (Architecture(200, 1, 64), [256, 512, 1024, 2048], [64, 128, 256, 512], 64),
        (Architecture(29, 8, 64), [256, 512, 1024], [512, 1024, 2048], 64),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_widths(architecture, out, bottleneck, stem):
    """What the numbers promise, and what is built."""
    stages = architecture.stages
    assert [architecture.out_channels(stage) for stage in stages] == out
    assert [architecture.bottleneck_channels(stage) for stage in stages] == bottleneck
    assert architecture.stem_channels == stem
    network = build_on_meta(**architecture.as_dict())
    assert network.stem.conv1.out_channels == stem
    for stage, channels, inner in zip(network.stages, out, bottleneck, strict=True):
        blocks = [block for block in stage if hasattr(block, "conv2")]
        assert len(blocks) == architecture.blocks_per_stage[network.stages.index(stage)]
        for block in blocks:
            assert block.conv2.groups == architecture.cardinality
            assert (block.conv2.in_channels, block.conv2.out_channels) == (inner, inner)
            assert block.conv3.out_channels == channels
    assert network.architecture == architecture


def test_dict_gives_the_architecture_back():
    """It travels so in a weights file."""
    first = Architecture(26, 4, 8, 0.5, True, False)
    assert Architecture(**json.loads(json.dumps(first.as_dict()))) == first
    assert build_on_meta(**first.as_dict()).architecture == first


def test_dict_of_an_older_file_has_shortcuts():
    older = Architecture(26, 4, 8).as_dict()
    del older["shortcut"]
    assert Architecture(**older).shortcut is True


@pytest.mark.parametrize(
    "values, words",
    [
        ({"depth": True}, ["DEPTH is True", "whole number"]),
        ({"depth": 50.0}, ["DEPTH is 50.0", "whole number"]),
        ({"depth": [50]}, ["DEPTH is [50]", "whole number"]),
        ({"cardinality": "32"}, ["NUM_GROUPS is '32'", "whole number"]),
        ({"bottleneck_width": None}, ["WIDTH_PER_GROUP is None", "whole number"]),
        ({"width_multiplier": True}, ["WIDTH_MULTIPLIER is True", "a number"]),
        ({"width_multiplier": "1"}, ["WIDTH_MULTIPLIER is '1'", "a number"]),
        ({"stride_in_1x1": 0}, ["STRIDE_IN_1X1 is 0", "true or false"]),
        ({"shortcut": "False"}, ["SHORTCUT is 'False'", "true or false"]),
    ],
    ids=str,
)
def test_values_of_another_type(values, words):
    """A record from a file of unknown origin."""
    text = refusal(Architecture, **values)
    assert text.startswith("MODEL.RESNETS: ")
    for word in words:
        assert word in text


@pytest.mark.parametrize(
    "numbers, words",
    [
        ({"depth": 51}, ["DEPTH is 51", "14, 26, 50, 101, 152, 200 (ImageNet)"]),
        ({"depth": 110}, ["DEPTH is 110", "20, 29, 38, 56 (CIFAR)"]),
        ({"cardinality": 0}, ["NUM_GROUPS x WIDTH_PER_GROUP is 0 x 4", "1 or more"]),
        ({"bottleneck_width": -1}, ["32 x -1", "1 or more"]),
        ({"width_multiplier": 0.3}, ["WIDTH_MULTIPLIER 0.3", "WIDTH_PER_GROUP 4 is 1.2", "whole"]),
        (
            {"width_multiplier": 1 / 128, "bottleneck_width": 128},
            ["WIDTH_MULTIPLIER 0.0078125", "the stem's width 64 is 0.5", "whole"],
        ),
        ({"width_multiplier": 0.0}, ["WIDTH_MULTIPLIER 0.0", "whole"]),
        ({"width_multiplier": -1.0}, ["WIDTH_MULTIPLIER -1.0", "whole"]),
        ({"width_multiplier": math.nan}, ["WIDTH_MULTIPLIER nan", "whole"]),
        ({"width_multiplier": math.inf}, ["WIDTH_MULTIPLIER inf", "whole"]),
        ({"width_multiplier": 1e308}, ["WIDTH_MULTIPLIER 1e+308", "whole"]),
        ({"cardinality": 65537}, ["65537 x 4", "65536 at most"]),
        ({"depth": 200, "stride_in_1x1": True}, ["STRIDE_IN_1X1", "pre-activation"]),
        ({"depth": 200, "shortcut": False}, ["SHORTCUT", "pre-activation"]),
    ],
)
def test_refusals(numbers, words):
    text = refusal(Architecture, **numbers)
    assert text.startswith("MODEL.RESNETS: ")
    for word in words:
        assert word in text


@pytest.mark.parametrize("stage", [1, 6])
def test_stages_that_are_not_there(stage):
    for widths in (Architecture().out_channels, Architecture().bottleneck_channels):
        assert refusal(widths, stage) == (
            f"MODEL.RESNETS: X50_32x4d has no res{stage}; name one of res2, res3, res4, res5"
        )
