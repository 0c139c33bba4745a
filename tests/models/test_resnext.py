"""Guard the trunk: the network of torchvision and of Detectron2, number for number."""

import math

import pytest
import torch
import torchvision
from detectron2.config import get_cfg as plain_cfg
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torch import nn

from resnext_det.errors import InputError
from resnext_det.models import build_resnext, precision

STAGES = ["stem", "res2", "res3", "res4", "res5"]
TINY = {"depth": 14, "cardinality": 4, "bottleneck_width": 8, "width_multiplier": 0.25}
SMALL = {"depth": 26, "cardinality": 8, "bottleneck_width": 8, "width_multiplier": 0.5}


def randomise(network, seed=0):
    """Batch norm statistics and head away from their plain start, or much would go unseen."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if name.endswith(("running_mean", "bias")):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
        elif name.endswith("running_var") or (name.endswith("weight") and tensor.dim() == 1):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return network


def make_images(height=65, width=97, count=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, height, width, generator=generator)


@torch.no_grad()
def outputs_of(network, images):
    return network.eval()(images)


# ---- shape and stride ----


@pytest.mark.parametrize("stride_in_1x1", [False, True])
@pytest.mark.parametrize("size", [(64, 64), (65, 97), (33, 1), (95, 127)], ids=str)
def test_output_shape_equals_forward(size, stride_in_1x1):
    network = build_resnext(
        **TINY, stride_in_1x1=stride_in_1x1, out_features=[*STAGES, "linear"], num_classes=7
    )
    outputs, promised = outputs_of(network, make_images(*size)), network.output_shape()
    assert list(outputs) == list(promised) == [*STAGES, "linear"]
    assert [promised[name].stride for name in STAGES] == [4, 4, 8, 16, 32]
    for name in STAGES:
        cells = tuple(math.ceil(side / promised[name].stride) for side in size)
        assert outputs[name].shape == (2, promised[name].channels, *cells)
    assert outputs["linear"].shape == (2, promised["linear"].channels) == (2, 7)


def test_features_and_logits_together():
    """With a head, the stages behind the last feature stay: the head needs them."""
    alone = randomise(build_resnext(**TINY, num_classes=7))
    both = build_resnext(**TINY, num_classes=7, out_features=["res3", "linear"])
    both.load_state_dict(alone.state_dict())
    outputs = outputs_of(both, make_images())
    assert list(outputs) == ["res3", "linear"]
    assert torch.equal(outputs["linear"], outputs_of(alone, make_images())["linear"])


def test_stages_behind_the_last_feature_are_not_built():
    network = build_resnext(**TINY, out_features=["res3", "res4"])
    parts = dict.fromkeys(name.split(".")[0] for name in network.state_dict())
    assert list(parts) == ["stem", "res2", "res3", "res4"]


def test_last_layer_is_the_default_output():
    assert list(build_resnext(**TINY).output_shape()) == ["res5"]
    assert list(build_resnext(**TINY, num_classes=2).output_shape()) == ["linear"]


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"out_features": ["res9"]}, ["OUT_FEATURES", "res9", "res2, res3, res4, res5"]),
        ({"out_features": ["res9"], "num_classes": 2}, ["res9", "res5, linear"]),
        ({"out_features": ["linear"]}, ["OUT_FEATURES", "linear"]),  # there is no head
        ({"out_features": []}, ["OUT_FEATURES is []", "one or more"]),
        ({"precision": "fp16"}, ["PRECISION", "fp16", "bf16"]),
        ({"precision": "auto"}, ["PRECISION", "auto", "bf16"]),
        ({"depth": 51}, ["DEPTH", "51", "50, 101, 152"]),
    ],
    ids=str,
)
def test_refusals(arguments, words):
    with pytest.raises(InputError) as refused:
        build_resnext(**{**TINY, **arguments})
    for word in words:
        assert word in str(refused.value)


# ---- parity with peers ----

RENAMES = [
    ("layer1.", "res2."), ("layer2.", "res3."), ("layer3.", "res4."), ("layer4.", "res5."),
    ("downsample.0.", "shortcut."), ("downsample.1.", "shortcut.norm."),
    ("bn1.", "conv1.norm."), ("bn2.", "conv2.norm."), ("bn3.", "conv3.norm."),
    ("fc.", "linear."),
]  # fmt: skip


def from_torchvision(name):
    for theirs, ours in RENAMES:
        name = name.replace(theirs, ours)
    return f"stem.{name}" if name.startswith("conv1.") else name


@torch.no_grad()
def torchvision_outputs(network, x):
    outputs = {"stem": network.maxpool(network.relu(network.bn1(network.conv1(x))))}
    for ours, theirs in zip(STAGES[1:], ("layer1", "layer2", "layer3", "layer4"), strict=True):
        outputs[ours] = getattr(network, theirs)(list(outputs.values())[-1])
    outputs["linear"] = network.fc(torch.flatten(network.avgpool(outputs["res5"]), 1))
    return outputs


@pytest.mark.parametrize(
    "name, numbers", [("resnext50_32x4d", (50, 32, 4)), ("resnet50", (50, 1, 64))]
)
def test_parity_with_torchvision(name, numbers):
    """Random weights and statistics: every stage's output is equal, to the last bit."""
    torch.manual_seed(0)
    theirs = randomise(getattr(torchvision.models, name)(num_classes=10)).eval()
    ours = build_resnext(*numbers, num_classes=10, out_features=[*STAGES, "linear"])
    renamed = {from_torchvision(key): value for key, value in theirs.state_dict().items()}
    ours.load_state_dict(renamed, strict=True)
    expected, found = torchvision_outputs(theirs, make_images()), outputs_of(ours, make_images())
    assert list(found) == list(expected)
    for stage in expected:
        assert found[stage].std() > 1e-3  # or equality would mean little
        assert (found[stage] - expected[stage]).abs().max() == 0, stage


@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
@pytest.mark.parametrize("stride_in_1x1", [False, True])
def test_parity_with_detectron2(norm, stride_in_1x1):
    """The same keys give Detectron2's own backbone: names, frozen parts and numbers."""
    cfg = plain_cfg()
    cfg.MODEL.RESNETS.NUM_GROUPS, cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 32, 4
    cfg.MODEL.RESNETS.NORM, cfg.MODEL.RESNETS.STRIDE_IN_1X1 = norm, stride_in_1x1
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4"]
    theirs, ours = (
        BACKBONE_REGISTRY.get(name)(cfg, ShapeSpec(channels=3))
        for name in ("build_resnet_backbone", "build_resnext_backbone")
    )
    assert list(ours.state_dict()) == list(theirs.state_dict())
    trained = [
        [name for name, parameter in network.named_parameters() if parameter.requires_grad]
        for network in (ours, theirs)
    ]
    assert trained[0] == trained[1]
    assert ours.output_shape() == theirs.output_shape()
    ours.load_state_dict(randomise(theirs).state_dict())
    expected, found = outputs_of(theirs, make_images()), outputs_of(ours, make_images())
    for stage in expected:
        assert (found[stage] - expected[stage]).abs().max() == 0, stage


# ---- start values ----


@pytest.fixture(scope="module")
def fresh():
    torch.manual_seed(0)
    return build_resnext(26, 32, 4, num_classes=100)


def test_convolutions_start_as_in_the_paper(fresh):
    """He et al. (2015) by outputs, std sqrt(2 / (k k out)), not divided by the groups."""
    convolutions = [m for m in fresh.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 1 + 3 * 8 + 4
    for module in convolutions:
        size = module.kernel_size[0]
        expected = math.sqrt(2 / (size * size * module.out_channels))
        within = 5 / math.sqrt(2 * module.weight.numel())  # five standard errors
        assert module.weight.std().item() == pytest.approx(expected, rel=within)
        assert module.bias is None


def test_norms_start_as_the_identity(fresh):
    norms = [m for m in fresh.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 1 + 3 * 8 + 4
    for module in norms:
        assert (module.weight == 1).all() and (module.bias == 0).all()
        assert (module.running_mean == 0).all() and (module.running_var == 1).all()


def test_head_starts_as_in_torch7(fresh):
    """Uniform within 1 / sqrt(fan-in); bias 0 (facebookresearch/ResNeXt, models/resnext.lua)."""
    weight, bound = fresh.linear.weight, 1 / math.sqrt(2048)
    assert weight.abs().max() <= bound and weight.abs().max() > 0.99 * bound
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert (fresh.linear.bias == 0).all()


# ---- gradients ----


def backward(network):
    network.train()(make_images())["linear"].square().sum().backward()
    return {name: parameter.grad for name, parameter in network.named_parameters()}


def test_every_parameter_has_a_gradient():
    torch.manual_seed(0)
    gradients = backward(build_resnext(**TINY, num_classes=7))
    for name, gradient in gradients.items():
        assert gradient is not None and torch.isfinite(gradient).all(), name
        assert gradient.abs().sum() > 0, name


@pytest.mark.parametrize("freeze_at", [1, 2, 5])
def test_frozen_stages_have_none(freeze_at):
    torch.manual_seed(0)
    network = build_resnext(**TINY, num_classes=7, freeze_at=freeze_at)
    gradients = backward(network)
    frozen = {name.split(".")[0] for name, gradient in gradients.items() if gradient is None}
    trained = {name.split(".")[0] for name, gradient in gradients.items() if gradient is not None}
    assert not frozen & trained
    assert frozen == set(STAGES[:freeze_at])


def test_frozen_stages_keep_their_statistics():
    """Training moves no batch norm of a frozen stage; the others move."""
    torch.manual_seed(0)
    network = build_resnext(**TINY, num_classes=7, freeze_at=2)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    backward(network)
    moved = {
        name.split(".")[0]
        for name, tensor in network.state_dict().items()
        if not torch.equal(tensor, before[name])
    }
    assert moved == {"res3", "res4", "res5"}
    assert isinstance(network.res2[0].conv1.norm, FrozenBatchNorm2d)


# ---- memory layout and arithmetic ----


def variant(reference, **others):
    network = build_resnext(**SMALL, num_classes=7, out_features=[*STAGES, "linear"], **others)
    network.load_state_dict(reference.state_dict())
    return network


@pytest.fixture(scope="module")
def reference():
    torch.manual_seed(0)
    return randomise(build_resnext(**SMALL, num_classes=7, out_features=[*STAGES, "linear"]))


@pytest.mark.parametrize(
    "others, within",
    [
        ({"channels_last": True}, 1e-5),
        ({"precision": "bf16"}, 0.03),
        ({"precision": "bf16", "channels_last": True}, 0.03),
    ],
    ids=["channels_last", "bf16", "both"],
)
def test_other_layout_and_arithmetic(reference, others, within):
    """The same network within `within` of each output's standard deviation, root mean square."""
    network = variant(reference, **others)
    expected, found = outputs_of(reference, make_images()), outputs_of(network, make_images())
    for name, output in found.items():
        assert output.dtype == torch.float32, name
        difference = (output - expected[name]).square().mean().sqrt()
        assert difference <= within * expected[name].std(), name
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_bf16_is_really_used(reference):
    expected = outputs_of(reference, make_images())["res5"]
    found = outputs_of(variant(reference, precision="bf16"), make_images())["res5"]
    assert not torch.equal(found, expected)


@pytest.mark.parametrize("channels_last", [False, True])
def test_features_keep_the_layout(reference, channels_last):
    network = variant(reference, channels_last=channels_last)
    outputs = outputs_of(network, make_images())
    for name in STAGES:
        assert outputs[name].is_contiguous(memory_format=torch.channels_last) == channels_last
    weight = network.res2[0].conv2.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) == channels_last


def test_bf16_gradients_are_float32():
    torch.manual_seed(0)
    gradients = backward(build_resnext(**TINY, num_classes=7, precision="bf16"))
    assert {gradient.dtype for gradient in gradients.values()} == {torch.float32}


@pytest.mark.parametrize("has, expected", [(True, "bf16"), (False, "fp32")])
def test_auto_precision_asks_the_processor(monkeypatch, has, expected):
    monkeypatch.setattr(precision, "_cpu_has_bf16", lambda: has)
    assert precision.resolve_precision("auto", "cpu") == expected
    assert precision.resolve_precision("fp32", "cpu") == "fp32"
    assert precision.resolve_precision("bf16", "cpu") == "bf16"
    assert precision.resolve_precision("auto", "meta") == "fp32"
