"""Guard the trunk: torchvision's and Detectron2's network, number for number; all its members."""

import math
import warnings

import pytest
import torch
import torchvision
from detectron2.config import get_cfg as plain_cfg
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torch import nn

from resnext_det.config import get_cfg, trunk_arguments
from resnext_det.config.checks import PRECISIONS
from resnext_det.errors import InputError
from resnext_det.models import Architecture, build_resnext, build_stage, checks, precision

STAGES = ["stem", "res2", "res3", "res4", "res5"]
TINY = {"depth": 14, "cardinality": 4, "bottleneck_width": 8, "width_multiplier": 0.25}
SMALL = {"depth": 26, "cardinality": 8, "bottleneck_width": 8, "width_multiplier": 0.5}
# One small network of each kind: plain, without shortcut, pre-activation, CIFAR.
KINDS = [
    "X14_4x8d_w0.25",
    "R14_1x16d_w0.25_stride1x1",
    "X14_4x8d_w0.25_noshortcut",
    "R26_1x16d_w0.25_noshortcut",
    "R200_1x64d_w0.0625",
    "X29_4x16d_w0.125",
    "X20_4x16d_w0.125_noshortcut",
]


def randomise(network, seed=0):
    """Batch norm statistics and head away from their plain start, or much would go unseen."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if name.endswith(("running_mean", "bias")):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
        elif name.endswith("running_var") or (name.endswith("weight") and tensor.dim() == 1):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return network


def build(name, **others):
    return build_resnext(**Architecture.from_name(name).as_dict(), **others)


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
        ({"precision": "fp8"}, ["PRECISION", "fp8", "bf16"]),
        ({"precision": "auto"}, ["PRECISION", "auto", "bf16"]),
        ({"depth": 51}, ["DEPTH", "51", "50, 101, 152"]),
        ({"freeze_at": 6}, ["MODEL.BACKBONE: FREEZE_AT is 6", "up to 5", "res2..res5"]),
        ({"freeze_at": -1}, ["FREEZE_AT is -1", "0 (nothing)"]),
        ({"freeze_at": 1.5}, ["FREEZE_AT is 1.5"]),
        ({"freeze_at": True}, ["FREEZE_AT is True"]),
        ({"depth": 29, "freeze_at": 5}, ["FREEZE_AT is 5", "up to 4", "res2..res4"]),
        ({"in_channels": 0}, ["build_resnext: in_channels is 0", "1 or more", "PIXEL_MEAN"]),
        ({"in_channels": 3.0}, ["in_channels is 3.0", "1 or more"]),
        ({"num_classes": 0}, ["build_resnext: num_classes is 0", "1 or more"]),
        ({"num_classes": -3}, ["num_classes is -3", "1 or more"]),
        ({"num_classes": True}, ["num_classes is True", "whole number"]),
        ({"num_classes": 10.0}, ["num_classes is 10.0", "whole number"]),
        ({"norm": "Batch"}, ["MODEL.RESNETS.NORM: found 'Batch'", "BN, SyncBN, FrozenBN, GN"]),
        ({"norm": "GN"}, ["MODEL.RESNETS.NORM: GN cannot divide", "channels"]),
        ({"norm": "SyncBN", "form": "a"}, ["MODEL.RESNETS.NORM", "slice SyncBatchNorm"]),
        ({"form": "d"}, ["MODEL.RESNETS: FORM is 'd'", "a, b, c"]),
    ],
    ids=str,
)
def test_refusals(arguments, words):
    with pytest.raises(InputError) as refused:
        build_resnext(**{**TINY, **arguments})
    for word in words:
        assert word in str(refused.value)


# ---- names and defaults ----


def test_a_name_is_enough():
    network = build_resnext("X14_4x8d_w0.25", num_classes=3)
    assert network.architecture == Architecture(**TINY)
    assert network.linear.out_features == 3


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"cardinality": 8}, ['the name "X50_32x4d" and cardinality=8', "the name alone"]),
        ({"bottleneck_width": 4}, ["bottleneck_width=4"]),
        ({"width_multiplier": 1.0}, ["width_multiplier=1.0"]),
        ({"stride_in_1x1": False, "shortcut": True}, ["stride_in_1x1=False, shortcut=True"]),
    ],
    ids=str,
)
def test_a_name_with_numbers_is_refused(arguments, words):
    """Also where they agree: the next name would not."""
    with pytest.raises(InputError) as refused:
        build_resnext("X50_32x4d", **arguments)
    for word in ("build_resnext: ", *words):
        assert word in str(refused.value)


def test_names_of_no_network():
    with pytest.raises(InputError, match='architecture name: "X51_32x4d": DEPTH is 51'):
        build_resnext("X51_32x4d")
    with pytest.raises(InputError, match="architecture name: 'resnext50' is not of the form"):
        build_resnext("resnext50")


def test_the_defaults_are_the_papers_network():
    """A config's are Detectron2's: docstrings of `build_resnext` and of `get_cfg`."""
    with torch.device("meta"):
        plain = build_resnext()
        ours = build_resnext(**trunk_arguments(get_cfg()))
        detectron2s = build_resnext(**trunk_arguments(plain_cfg()))
    assert plain.architecture.name == "X50_32x4d" and not plain.channels_last
    assert ours.architecture.name == "R50_1x64d" and ours.channels_last
    assert detectron2s.architecture.name == "R50_1x64d_stride1x1" and not detectron2s.channels_last
    fused = [network.stem.compute.fuse for network in (plain, ours, detectron2s)]
    assert fused == [False, True, False]


def test_the_config_knows_the_same_precisions():
    """It may not import them."""
    assert PRECISIONS == (*precision.DTYPES, "auto")


def test_norms_are_checked_once(monkeypatch):
    """Not again for every stage."""
    asked = []
    monkeypatch.setattr(checks, "check_norm", lambda norm, channels: asked.append(list(channels)))
    build_resnext(**TINY)
    assert len(asked) == 1
    build_stage(Architecture(**TINY), 5, "BN")
    assert len(asked) == 2 and asked[0] == asked[1]


@pytest.mark.parametrize("norm, form, word", [("Batch", "c", "NORM: found"), ("BN", "d", "FORM")])
def test_refusals_of_a_stage(norm, form, word):
    """The head of a detector builds res5 alone."""
    with pytest.raises(InputError, match=f"^MODEL.RESNETS.*{word}"):
        build_stage(Architecture(**TINY), 5, norm, form)


@pytest.mark.parametrize("name", ["X14_4x8d_w0.25", "X20_4x16d_w0.125"])
@pytest.mark.parametrize(
    "shape", [(2, 3, 0, 8), (2, 3, 8, 0), (2, 1, 8, 8), (2, 8, 8, 3), (3, 8, 8)], ids=str
)
def test_images_that_cannot_be(name, shape):
    network = build(name)
    with pytest.raises(InputError) as refused:
        network(torch.zeros(shape))
    assert str(refused.value) == (
        f"images: their shape is {shape}; give (N, 3, height, width), sides of 1 pixel or more"
    )


def test_other_numbers_of_channels():
    network = build_resnext(**TINY, in_channels=1).eval()
    assert network(torch.zeros(1, 1, 8, 8))["res5"].shape == (1, 512, 1, 1)
    with pytest.raises(InputError, match=r"images: .*\(2, 3, 65, 97\); give \(N, 1, "):
        network(make_images())


def test_no_images():
    """A batch of none is no error: a detector may have no region."""
    assert build_resnext(**TINY).eval()(torch.zeros(0, 3, 64, 64))["res5"].shape[0] == 0


def test_tracing():
    """The check of the images is no part of a traced network, which takes any size."""
    network = build_resnext(**TINY, num_classes=3).eval()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        traced = torch.jit.trace(network, make_images(), strict=False)
    assert not [w for w in said if "resnext_det" in w.filename and "Tracer" in w.category.__name__]
    other = make_images(33, 50, count=1)
    with torch.no_grad():
        assert torch.equal(traced(other)["linear"], network(other)["linear"])


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


# ---- the three forms ----


@pytest.mark.parametrize("name", ["X14_4x8d_w0.25", "X14_4x8d_w0.25_noshortcut", "X20_4x8d_w0.125"])
@pytest.mark.parametrize("form", ["a", "b"])
def test_forms_are_one_network(form, name):
    """Fig. 3, for whole networks in training: outputs, gradients, statistics, in float64."""
    torch.manual_seed(0)
    grouped = randomise(build(name, num_classes=5)).double()
    other = build(name, num_classes=5, form=form).double()
    other.load_state_dict(grouped.state_dict(), strict=True)
    for network in (grouped, other):
        network(make_images().double())["linear"].square().sum().backward()
    for (key, ours), theirs in zip(other.named_parameters(), grouped.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-9, msg=key)
    for key, tensor in grouped.state_dict().items():
        torch.testing.assert_close(other.state_dict()[key], tensor, rtol=1e-10, atol=1e-10)


# ---- start values ----


@pytest.fixture(scope="module", params=["X26_32x4d", *KINDS[2:]])
def fresh(request):
    torch.manual_seed(0)
    return build(request.param, num_classes=100)


def test_convolutions_start_as_in_the_paper(fresh):
    """He et al. (2015) by outputs, std sqrt(2 / (k k out)), not divided by the groups."""
    convolutions = [m for m in fresh.modules() if isinstance(m, nn.Conv2d)]
    member = fresh.architecture
    projections = len(member.stages) * member.shortcut
    assert len(convolutions) == 1 + 3 * sum(member.blocks_per_stage) + projections
    for module in convolutions:
        size = module.kernel_size[0]
        expected = math.sqrt(2 / (size * size * module.out_channels))
        within = 5 / math.sqrt(2 * module.weight.numel())  # five standard errors
        assert module.weight.std().item() == pytest.approx(expected, rel=within)
        assert module.bias is None


def test_norms_start_as_the_identity(fresh):
    norms = [m for m in fresh.modules() if isinstance(m, nn.BatchNorm2d)]
    member = fresh.architecture
    # Pre-activation: none on projections and none in front of the first block, one at the end.
    others = 0 if member.is_preactivation else len(member.stages) * member.shortcut
    assert len(norms) == 1 + 3 * sum(member.blocks_per_stage) + others
    for module in norms:
        assert (module.weight == 1).all() and (module.bias == 0).all()
        assert (module.running_mean == 0).all() and (module.running_var == 1).all()


def test_head_starts_as_in_torch7(fresh):
    """Uniform within 1 / sqrt(fan-in); bias 0 (facebookresearch/ResNeXt, models/resnext.lua)."""
    weight = fresh.linear.weight
    bound = 1 / math.sqrt(fresh.architecture.out_channels(fresh.architecture.stages[-1]))
    assert weight.abs().max() <= bound and weight.abs().max() > 0.99 * bound
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)
    assert (fresh.linear.bias == 0).all()


# ---- gradients ----


def backward(network):
    network.train()(make_images())["linear"].square().sum().backward()
    return {name: parameter.grad for name, parameter in network.named_parameters()}


@pytest.mark.parametrize("name", KINDS)
def test_every_parameter_has_a_gradient(name):
    torch.manual_seed(0)
    gradients = backward(build(name, num_classes=7))
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


@pytest.mark.parametrize("name", KINDS)
def test_float64_stays_float64(name):
    """Features of a double network are not rounded: they differ from their float32 values."""
    network = build(name, num_classes=7).double().eval()
    with torch.no_grad():
        output = network(make_images().double())["linear"]
    assert output.dtype == torch.float64
    assert not torch.equal(output, output.float().double())


def test_bf16_gradients_are_float32():
    torch.manual_seed(0)
    gradients = backward(build_resnext(**TINY, num_classes=7, precision="bf16"))
    assert {gradient.dtype for gradient in gradients.values()} == {torch.float32}


@pytest.mark.parametrize("has, expected", [(True, "bf16"), (False, "fp32")])
def test_auto_precision_asks_the_processor(monkeypatch, has, expected):
    monkeypatch.setattr(precision, "_cpu_has_bf16", lambda: has)
    monkeypatch.setattr(precision, "bf16_serves", lambda _device: True)
    assert precision.resolve_precision("auto", "cpu") == expected
    assert precision.resolve_precision("fp32", "cpu") == "fp32"
    assert precision.resolve_precision("bf16", "cpu") == "bf16"
    assert precision.resolve_precision("auto", "meta") == "fp32"
