"""Guard ResNet-200: the layers of fb.resnet.torch's preresnet.lua, written out here once more."""

import math

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import FrozenBatchNorm2d
from torch import nn

from resnext_det.errors import InputError
from resnext_det.models import Architecture, PreactivationBlock, build_resnext, build_stage
from resnext_det.models.preactivation import NormReLU

STAGES = ["stem", "res2", "res3", "res4", "res5"]
BLOCKS = (3, 24, 36, 3)
SMALL = {"depth": 200, "cardinality": 1, "bottleneck_width": 64, "width_multiplier": 1 / 16}
GROUPED = {**SMALL, "cardinality": 4, "bottleneck_width": 16}


def randomise(network, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if name.endswith(("running_mean", "bias")):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
        elif name.endswith("running_var") or (name.endswith("weight") and tensor.dim() == 1):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return network


def make_images(size=(33, 47), dtype=torch.float64):
    torch.manual_seed(1)
    return torch.randn(2, 3, *size, dtype=dtype)


class Reference:
    """The network in torch functions, from its tensors and the facts alone."""

    def __init__(self, state, groups, is_training):
        self.state, self.groups, self.is_training = state, groups, is_training

    def norm(self, x, name):
        mean, var, weight, bias = (
            self.state[f"{name}.{part}"].clone()
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, var, weight, bias, training=self.is_training)

    def conv(self, x, name, **others):
        return F.conv2d(x, self.state[f"{name}.weight"], **others)

    def block(self, x, name, place, stride=1):
        """place: "first of all", "first of stage", "later"."""
        y = x if place == "first of all" else self.norm(x, f"{name}.norm1").relu()
        shortcut = x
        if place != "later":
            shortcut = self.conv(y, f"{name}.shortcut", stride=stride)
        y = self.norm(self.conv(y, f"{name}.conv1"), f"{name}.norm2").relu()
        y = self.conv(y, f"{name}.conv2", stride=stride, padding=1, groups=self.groups)
        y = self.norm(y, f"{name}.norm3").relu()
        return self.conv(y, f"{name}.conv3") + shortcut

    def network(self, x):
        x = self.norm(self.conv(x, "stem.conv1", stride=2, padding=3), "stem.conv1.norm").relu()
        outputs = {"stem": F.max_pool2d(x, 3, 2, 1)}
        x = outputs["stem"]
        for stage, blocks in enumerate(BLOCKS, start=2):
            for number in range(blocks):
                first = "first of all" if stage == 2 else "first of stage"
                place = "later" if number else first
                stride = 2 if place == "first of stage" else 1
                x = self.block(x, f"res{stage}.{number}", place, stride)
            outputs[f"res{stage}"] = x
        outputs["res5"] = x = self.norm(x, f"res5.{BLOCKS[-1]}.norm").relu()
        state = self.state
        outputs["linear"] = x.mean((2, 3)) @ state["linear.weight"].T + state["linear.bias"]
        return outputs


# ---- the network ----


@pytest.mark.parametrize("is_training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("numbers", [SMALL, GROUPED], ids=["R200", "X200"])
@torch.no_grad()
def test_network_equals_the_written_out_one(numbers, is_training):
    torch.manual_seed(0)
    network = build_resnext(**numbers, num_classes=7, out_features=[*STAGES, "linear"])
    randomise(network.double()).train(is_training)
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    expected = Reference(state, numbers["cardinality"], is_training).network(make_images())
    found = network(make_images())
    assert list(found) == list(expected)
    for name in expected:
        assert expected[name].std() > 1e-3, name
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [(64, 96), (33, 1), (95, 31)], ids=str)
def test_output_shape_equals_forward(size):
    network = build_resnext(**SMALL, out_features=STAGES).eval()
    promised = network.output_shape()
    with torch.no_grad():
        outputs = network(make_images(size, torch.float32))
    assert [promised[name].stride for name in STAGES] == [4, 4, 8, 16, 32]
    for name in STAGES:
        cells = [math.ceil(side / promised[name].stride) for side in size]
        assert list(outputs[name].shape) == [2, promised[name].channels, *cells]


def test_parameters_of_the_paper():
    with torch.device("meta"):
        network = build_resnext(200, 1, 64, num_classes=1000)
    assert sum(parameter.numel() for parameter in network.parameters()) == 64_666_152
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 200 - 1 + 4  # all layers but the head, and four projections


def test_which_blocks_have_which_norms():
    """No norm1 in the first of all; none on projections; one norm behind the last stage only."""
    names = set(build_resnext(**SMALL).state_dict())
    assert not [name for name in names if name.startswith("res2.0.norm1.")]
    for stage, blocks in enumerate(BLOCKS, start=2):
        for number in range(blocks):
            has_norm1 = f"res{stage}.{number}.norm1.weight" in names
            assert has_norm1 == ((stage, number) != (2, 0))
            assert (f"res{stage}.{number}.shortcut.weight" in names) == (number == 0)
    assert not [name for name in names if "shortcut.norm" in name]
    assert [name for name in names if ".norm.weight" in name and "stem" not in name] == [
        "res5.3.norm.weight"
    ]


def test_only_the_last_feature_is_activated():
    network = build_resnext(**SMALL, out_features=STAGES).train()
    outputs = network(make_images(dtype=torch.float32))
    lowest = {name: outputs[name].min().item() for name in STAGES}
    assert lowest["stem"] == lowest["res5"] == 0
    assert max(lowest[name] for name in ("res2", "res3", "res4")) < 0


def test_head_of_a_detector_continues_the_trunk():
    """res4 of a C4 trunk, then res5 by itself, is the whole network."""
    torch.manual_seed(0)
    whole = randomise(build_resnext(**SMALL, out_features=["res4", "res5"])).eval()
    head = nn.Sequential(*build_stage(whole.architecture, 5, "BN")).eval()
    head.load_state_dict(whole.res5.state_dict(), strict=True)
    assert isinstance(head[-1], NormReLU)
    with torch.no_grad():
        outputs = whole(make_images(dtype=torch.float32))
        assert torch.equal(head(outputs["res4"]), outputs["res5"])


def test_other_stages_end_without_norm():
    for stage in (2, 3, 4):
        assert isinstance(build_stage(Architecture(**SMALL), stage, "BN")[-1], PreactivationBlock)


def test_freezing_reaches_the_last_norm():
    network = build_resnext(**SMALL, num_classes=3, freeze_at=5)
    trained = [name for name, p in network.named_parameters() if p.requires_grad]
    assert trained == ["linear.weight", "linear.bias"]
    assert isinstance(network.res5[-1].norm, FrozenBatchNorm2d)


@pytest.mark.parametrize("numbers", [SMALL, GROUPED], ids=["R200", "X200"])
def test_every_parameter_has_a_gradient(numbers):
    torch.manual_seed(0)
    network = build_resnext(**numbers, num_classes=7)
    images = make_images((65, 65), torch.float32)
    network(images)["linear"].square().sum().backward()
    for name, parameter in network.named_parameters():
        assert torch.isfinite(parameter.grad).all() and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("precision, within", [("fp32", 1e-4), ("bf16", 0.2)])
@torch.no_grad()
def test_channels_last_and_bf16(precision, within):
    torch.manual_seed(0)
    plain = randomise(build_resnext(**GROUPED, out_features=["res2", "res5"])).eval()
    other = build_resnext(
        **GROUPED, out_features=["res2", "res5"], precision=precision, channels_last=True
    ).eval()
    other.load_state_dict(plain.state_dict())
    expected, found = (net(make_images((64, 64), torch.float32)) for net in (plain, other))
    for name in expected:
        assert found[name].dtype == torch.float32
        assert found[name].is_contiguous(memory_format=torch.channels_last)
        error = (found[name] - expected[name]).square().mean().sqrt() / expected[name].std()
        assert error < within, name


# ---- one block ----


def make_block(activation, norm="BN", in_channels=12, stride=1):
    torch.manual_seed(0)
    block = PreactivationBlock(
        in_channels,
        20,
        bottleneck_channels=8,
        num_groups=2,
        stride=stride,
        norm=norm,
        activation=activation,
    )
    return randomise(block)


@pytest.mark.parametrize("activation", ["both", "path", "none"])
@pytest.mark.parametrize("in_channels", [12, 20])
def test_block_without_norm(activation, in_channels):
    """norm "": the same places of the ReLU, and the input is not overwritten."""
    block = make_block(activation, "", in_channels).double()
    x = torch.randn(2, in_channels, 9, 7).double()
    before, y = x.clone(), x if activation == "none" else x.clamp(min=0)
    split = y if activation == "both" else x
    expected = split if block.shortcut is None else F.conv2d(split, block.shortcut.weight)
    y = F.conv2d(y, block.conv1.weight).clamp(min=0)
    y = F.conv2d(y, block.conv2.weight, padding=1, groups=2).clamp(min=0)
    expected = expected + F.conv2d(y, block.conv3.weight)
    torch.testing.assert_close(block(x), expected, atol=1e-12, rtol=0)
    assert torch.equal(x, before)


def test_norm_relu_without_norm_keeps_its_input():
    x = torch.tensor([-1.0, 2.0]).reshape(1, 2, 1, 1)
    assert NormReLU(2, norm="")(x).flatten().tolist() == [0, 2]
    assert x.flatten().tolist() == [-1, 2]


@pytest.mark.parametrize("norm", ["BN", "FrozenBN", "GN", "LN"])
def test_every_norm(norm):
    block = PreactivationBlock(32, 64, bottleneck_channels=32, stride=2, norm=norm)
    output = block(torch.randn(2, 32, 9, 7))
    assert output.shape == (2, 64, 5, 4) and output.min() < 0
    output.sum().backward()
    for name, parameter in block.named_parameters():
        assert parameter.grad is not None, name


@pytest.mark.parametrize("form", ["a", "b"])
@pytest.mark.parametrize(
    "build",
    [
        lambda form: build_resnext(**SMALL, form=form),
        lambda form: build_stage(Architecture(**SMALL), 4, "BN", form),
        lambda form: PreactivationBlock(8, 8, bottleneck_channels=4, form=form),
    ],
    ids=["network", "stage", "block"],
)
def test_other_forms_are_refused(build, form):
    with pytest.raises(InputError) as refused:
        build(form)
    for word in (f"MODEL.RESNETS: FORM is '{form}'", "pre-activation", "DEPTH 200", 'FORM "c"'):
        assert word in str(refused.value)


def test_unknown_activation():
    with pytest.raises(InputError, match="PreactivationBlock: activation is 'pre'; .*both"):
        make_block("pre")
