"""Guard Appendix A: the three-stage networks for CIFAR, their layers and sizes."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resnext_det.errors import InputError
from resnext_det.models import Architecture, build_resnext, build_stage

STAGES = ["stem", "res2", "res3", "res4"]
SMALL = {"depth": 29, "cardinality": 4, "bottleneck_width": 16, "width_multiplier": 0.125}
TINY = {**SMALL, "depth": 20}


def build(name, **others):
    return build_resnext(**Architecture.from_name(name).as_dict(), **others)


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def make_images(side=32, dtype=torch.float32):
    torch.manual_seed(1)
    return torch.randn(2, 3, side, side, dtype=dtype)


# ---- sizes ----


@pytest.mark.parametrize(
    "name, num_classes, parameters",
    [
        ("X29_8x64d", 10, 34_426_698),
        ("X29_8x64d", 100, 34_518_948),
        ("X29_16x64d", 10, 68_155_210),
        ("X29_16x64d", 100, 68_247_460),
    ],
)
def test_parameters_of_table_7(name, num_classes, parameters):
    with torch.device("meta"):
        assert count(build(name, num_classes=num_classes)) == parameters


@pytest.mark.parametrize(
    "name, millions",
    [
        ("R29_1x64d", 4.91),
        ("X29_2x64d", 9.13),
        ("X29_4x64d", 17.56),
        ("X29_8x64d", 34.43),
        ("X29_16x64d", 68.16),
        ("R29_1x128d", 13.78),
        ("R29_1x192d", 27.28),
        ("R29_1x256d", 45.43),
    ],
)
def test_parameters_of_figure_7(name, millions):
    with torch.device("meta"):
        assert round(count(build(name, num_classes=10)) / 1e6, 2) == millions


@pytest.mark.parametrize("depth, blocks", [(11, 1), (20, 2), (29, 3), (38, 4), (56, 6)])
def test_depth_is_nine_n_plus_two(depth, blocks):
    with torch.device("meta"):
        network = build_resnext(**{**SMALL, "depth": depth}, num_classes=10)
    assert depth == 9 * blocks + 2
    assert [len(stage) for stage in network.stages] == [blocks] * 3
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == depth - 1 + 3  # all layers but the head, and three projections


def test_widths_of_the_paper():
    """8x64d: group convolutions of 512, 1024, 2048 channels; outputs 256, 512, 1024."""
    with torch.device("meta"):
        network = build("X29_8x64d")
    assert network.stem.conv1.out_channels == 64
    for stage, inner, out in zip(network.stages, [512, 1024, 2048], [256, 512, 1024], strict=True):
        for block in stage:
            assert (block.conv2.in_channels, block.conv2.groups) == (inner, 8)
            assert (block.conv2.out_channels, block.conv3.out_channels) == (inner, out)
        assert [block.shortcut is not None for block in stage] == [True, False, False]


# ---- layers ----


@torch.no_grad()
def written_out(state, x, cardinality, blocks):
    """resnext.lua's CIFAR network in torch functions, evaluation mode."""

    def layer(x, name, **others):
        norm = (state[f"{name}.norm.{part}"] for part in ("running_mean", "running_var"))
        affine = (state[f"{name}.norm.{part}"] for part in ("weight", "bias"))
        return F.batch_norm(F.conv2d(x, state[f"{name}.weight"], **others), *norm, *affine)

    outputs = {"stem": layer(x, "stem.conv1", padding=1).relu()}
    x = outputs["stem"]
    for stage in (2, 3, 4):
        for number in range(blocks):
            name, stride = f"res{stage}.{number}", 2 if stage > 2 and number == 0 else 1
            y = layer(x, f"{name}.conv1").relu()
            y = layer(y, f"{name}.conv2", stride=stride, padding=1, groups=cardinality).relu()
            shortcut = x if number else layer(x, f"{name}.shortcut", stride=stride)
            x = (layer(y, f"{name}.conv3") + shortcut).relu()
        outputs[f"res{stage}"] = x
    pooled = F.avg_pool2d(x, 8).flatten(1)
    outputs["linear"] = F.linear(pooled, state["linear.weight"], state["linear.bias"])
    return outputs


@pytest.mark.parametrize("form", ["a", "b", "c"])
@torch.no_grad()
def test_network_equals_the_written_out_one(form):
    torch.manual_seed(0)
    network = build_resnext(**SMALL, num_classes=10, out_features=[*STAGES, "linear"], form=form)
    for name, tensor in network.double().state_dict().items():
        if name.endswith("running_var") or (name.endswith("weight") and tensor.dim() == 1):
            tensor.uniform_(0.5, 1.5)
        elif name.endswith(("running_mean", "bias")):
            tensor.normal_(0, 0.1)
    images = make_images(dtype=torch.float64)
    expected = written_out(network.state_dict(), images, SMALL["cardinality"], blocks=3)
    found = network.eval()(images)
    assert list(found) == list(expected)
    for name in expected:
        assert expected[name].std() > 1e-2, name
        torch.testing.assert_close(found[name], expected[name], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("side", [32, 33, 1])
def test_output_shape_equals_forward(side):
    network = build_resnext(**TINY, num_classes=10, out_features=[*STAGES, "linear"]).eval()
    promised = network.output_shape()
    with torch.no_grad():
        outputs = network(make_images(side))
    assert [promised[name].stride for name in STAGES] == [1, 1, 2, 4]
    assert [promised[name].channels for name in STAGES] == [8, 32, 64, 128]
    for name in STAGES:
        cells = math.ceil(side / promised[name].stride)
        assert outputs[name].shape == (2, promised[name].channels, cells, cells)
    assert outputs["linear"].shape == (2, 10)


def test_names_of_the_stem():
    names = [name for name in build_resnext(**TINY).state_dict() if name.startswith("stem.")]
    assert names[:3] == ["stem.conv1.weight", "stem.conv1.norm.weight", "stem.conv1.norm.bias"]


def test_last_layer_is_the_default_output():
    assert list(build_resnext(**TINY).output_shape()) == ["res4"]


@pytest.mark.parametrize("stride_in_1x1", [False, True])
@pytest.mark.parametrize("shortcut", [False, True])
def test_every_parameter_has_a_gradient(shortcut, stride_in_1x1):
    torch.manual_seed(0)
    others = {"shortcut": shortcut, "stride_in_1x1": stride_in_1x1}
    network = build_resnext(**TINY, **others, num_classes=7)
    network(make_images())["linear"].square().sum().backward()
    for name, parameter in network.named_parameters():
        assert torch.isfinite(parameter.grad).all() and parameter.grad.abs().sum() > 0, name


def test_frozen_stem():
    network = build_resnext(**TINY, num_classes=7, freeze_at=1)
    network(make_images())["linear"].sum().backward()
    frozen = {name for name, p in network.named_parameters() if p.grad is None}
    assert not frozen - {"stem.conv1.weight"}
    assert not network.stem.conv1.weight.requires_grad


@pytest.mark.parametrize(
    "refused, words",
    [
        (
            lambda: build_resnext(**TINY, out_features=["res5"]),
            ["OUT_FEATURES", "res2, res3, res4"],
        ),
        (
            lambda: build_stage(Architecture(**TINY), 5, "BN"),
            ["X20_4x16d_w0.125 has no res5", "res4"],
        ),
        (lambda: build_stage(Architecture(**TINY), 1, "BN"), ["has no res1", "res2"]),
    ],
    ids=["feature", "stage 5", "stage 1"],
)
def test_there_is_no_res5(refused, words):
    with pytest.raises(InputError) as error:
        refused()
    assert str(error.value).startswith("MODEL.RESNETS: ")
    for word in words:
        assert word in str(error.value)
