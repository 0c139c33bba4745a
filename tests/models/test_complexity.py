"""Guard the counts: every network of the paper's tables, to the last parameter; Eq. 4."""

import pytest
import torch
import torchvision
from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis

from resnext_det.errors import InputError
from resnext_det.models import Architecture, build_resnext
from resnext_det.models.complexity import add_up, count, eq4_parameters, solve_width, totals

# Norms' scale and shift and the head's bias counted; multiply-adds in G at 224 x 224.
IMAGENET = {
    "R50_1x64d": (25_557_032, 4.089),
    "X50_2x40d": (25_425_000, 4.125),
    "X50_4x24d": (25_292_968, 4.160),
    "X50_8x14d": (25_603_016, 4.267),
    "X50_32x4d": (25_028_904, 4.230),
    "R101_1x64d": (44_549_160, 7.801),
    "X101_2x40d": (44_456_296, 7.844),
    "X101_4x24d": (44_363_432, 7.886),
    "X101_8x14d": (45_104_328, 8.077),
    "X101_32x4d": (44_177_704, 7.970),
    "R101_1x100d": (85_611_336, 15.273),
    "X101_2x64d": (84_198_184, 15.123),
    "R200_1x64d": (64_666_152, 15.007),
    "X101_64x4d": (83_455_272, 15.460),
    "X101_32x8d": (88_791_336, 16.414),
    "X152_32x8d": (122_372_392, 24.384),
}
FIVE_THOUSAND = {
    "X50_32x4d": 33_224_904,
    "X101_32x4d": 52_373_704,
    "R50_1x64d": 33_753_032,
    "R101_1x64d": 52_745_160,
}
CIFAR = {
    ("X29_8x64d", 10): 34_426_698,
    ("X29_8x64d", 100): 34_518_948,
    ("X29_16x64d", 10): 68_155_210,
    ("X29_16x64d", 100): 68_247_460,
}
# Fig. 7, in millions, 10 classes.
FIGURE_7 = {"R29_1x64d": 4.91, "X29_2x64d": 9.13, "X29_4x64d": 17.56, "R29_1x128d": 13.78}
FIGURE_7 |= {"R29_1x192d": 27.28, "R29_1x256d": 45.43}


def build(name, num_classes=1000):
    with torch.device("meta"):
        return build_resnext(**Architecture.from_name(name).as_dict(), num_classes=num_classes)


@pytest.mark.parametrize("name", IMAGENET)
def test_imagenet(name):
    found = totals(build(name), 224)
    parameters, giga = IMAGENET[name]
    assert found.parameters == parameters
    assert round(found.multiply_adds / 1e9, 3) == giga


@pytest.mark.parametrize("name", FIVE_THOUSAND)
def test_imagenet_5k(name):
    assert totals(build(name, 5000), 224).parameters == FIVE_THOUSAND[name]


@pytest.mark.parametrize("name, classes", CIFAR)
def test_cifar(name, classes):
    assert totals(build(name, classes), 32).parameters == CIFAR[name, classes]


@pytest.mark.parametrize("name", FIGURE_7)
def test_figure_7(name):
    assert round(totals(build(name, 10), 32).parameters / 1e6, 2) == FIGURE_7[name]


@pytest.mark.parametrize(
    "name, weights",
    [
        ("R50_1x64d", torchvision.models.ResNet50_Weights.IMAGENET1K_V1),
        ("R101_1x64d", torchvision.models.ResNet101_Weights.IMAGENET1K_V1),
        ("X50_32x4d", torchvision.models.ResNeXt50_32X4D_Weights.IMAGENET1K_V1),
        ("X101_32x8d", torchvision.models.ResNeXt101_32X8D_Weights.IMAGENET1K_V1),
        ("X101_64x4d", torchvision.models.ResNeXt101_64X4D_Weights.IMAGENET1K_V1),
    ],
)
def test_torchvision_says_the_same(name, weights):
    found = totals(build(name), 224)
    assert found.parameters == weights.meta["num_params"]
    assert round(found.multiply_adds / 1e9, 3) == round(weights.meta["_ops"], 3)


def test_fvcore_counts_the_same():
    """On real tensors, which it can trace."""
    network = build_resnext(14, 4, 8, width_multiplier=0.25, num_classes=7).eval()
    found = totals(network, 65)
    for analysis, ours in (
        (FlopCountAnalysis, found.multiply_adds),
        (ActivationCountAnalysis, found.activations),
    ):
        peer = analysis(network, torch.zeros(1, 3, 65, 65))
        peer.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        by_operator = peer.by_operator()
        assert ours == by_operator["conv"] + by_operator["linear"]


def test_the_forms_of_fig_3_cost_the_same():
    """Equal functions at equal parameters and multiply-adds; (a) writes one output a path."""
    a, b, c = (
        totals(build_resnext(14, 4, 8, width_multiplier=0.25, num_classes=7, form=form), 65)
        for form in "abc"
    )
    assert (a.parameters, a.multiply_adds) == (c.parameters, c.multiply_adds)
    assert b == c
    assert a.activations > c.activations


@pytest.mark.parametrize("others", [{"precision": "bf16"}, {"channels_last": True}])
def test_arithmetic_and_layout_change_no_count(others):
    numbers = {"depth": 14, "width_multiplier": 0.25, "num_classes": 7}
    assert totals(build_resnext(**numbers, **others), 65) == totals(build_resnext(**numbers), 65)


def test_a_trunk_without_a_head_ends_with_its_last_stage():
    whole = count(build("X50_32x4d"), 65)
    with torch.device("meta"):
        assert count(build_resnext(50, out_features=["res3"]), 65) == whole[:3]
        assert count(build_resnext(50), 65) == whole[:-1]


@pytest.mark.parametrize("name, size", [("X50_32x4d", 224), ("X29_8x64d", 32), ("R200_1x64d", 97)])
def test_stages(name, size):
    network = build(name, 10)
    stages = count(network, size)
    member = Architecture.from_name(name)
    assert [s.name for s in stages] == ["stem", *(f"res{i}" for i in member.stages), "linear"]
    assert [s.blocks for s in stages] == [0, *member.blocks_per_stage, 0]
    assert add_up(stages) == totals(network, size)
    shapes = network.output_shape() | {s.name: s for s in stages}
    assert add_up(stages).parameters == sum(p.numel() for p in network.parameters())
    for stage in stages[1:-1]:
        assert shapes[stage.name].channels == member.out_channels(int(stage.name[3:]))
    assert stages[-1].output == (1, 1) and stages[-1].activations == 10


def test_activations_of_one_stage():
    """The stem: one 7x7 convolution of 64 channels on 112 x 112, before the pooling."""
    stem = count(build("X50_32x4d"), 224)[0]
    assert stem.activations == 64 * 112 * 112
    assert stem.multiply_adds == 64 * 112 * 112 * 3 * 7 * 7
    assert stem.output == (56, 56)


@pytest.mark.parametrize("name", ["R50_1x64d", "X50_32x4d"])
def test_no_shortcut_saves_the_projections(name):
    """Sec. 5.1: 2.78 M parameters of four projections and their norms."""
    full, bare = (totals(build(f"{name}{suffix}"), 224) for suffix in ("", "_noshortcut"))
    projections = sum(a * b + 2 * b for a, b in ((64, 256), (256, 512), (512, 1024), (1024, 2048)))
    assert full.parameters - bare.parameters == projections


def test_the_strides_place_changes_no_parameter():
    assert totals(build("X50_32x4d_stride1x1"), 224).parameters == IMAGENET["X50_32x4d"][0]


def test_the_network_is_left_as_it_is():
    network = build_resnext(14, 4, 8, width_multiplier=0.25, num_classes=7).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    totals(network, 32)
    assert network.training
    for name, tensor in network.state_dict().items():
        assert tensor.device.type == "cpu" and torch.equal(tensor, before[name])


def test_height_and_width():
    """Twice the pixels, twice the multiply-adds of the convolutions."""
    network = build_resnext(14, 4, 8, width_multiplier=0.25)
    one, two = totals(network, 64), totals(network, (64, 128))
    assert two.multiply_adds == 2 * one.multiply_adds and totals(network, (64, 64)) == one


@pytest.mark.parametrize("size", [0, -1, 2.5, True, "224", None, (32, 0), ("32", 32)])
def test_image_sizes_that_are_none(size):
    with pytest.raises(InputError, match="image size"):
        count(build("X50_32x4d"), size)


# ---- Eq. 4 ----


@pytest.mark.parametrize(
    "cardinality, width, parameters",
    [
        (1, 64, 69_632),
        (2, 40, 69_760),
        (4, 24, 69_888),
        (8, 14, 71_456),
        (32, 4, 70_144),
        (64, 4, 140_288),
        (2, 64, 139_264),
        (1, 100, 141_200),
    ],
)
def test_eq4(cardinality, width, parameters):
    """Table 2 and the doubled templates of Table 4, and the block's own weights."""
    assert eq4_parameters(cardinality, width) == parameters
    block = build(f"{'R' if cardinality == 1 else 'X'}50_{cardinality}x{width}d").res2[1]
    weights = (block.conv1.weight, block.conv2.weight, block.conv3.weight)
    assert sum(w.numel() for w in weights) == parameters


@pytest.mark.parametrize("cardinality, width", [(1, 64), (2, 40), (4, 24), (8, 14), (32, 4)])
def test_solve_width_gives_table_2(cardinality, width):
    assert solve_width(cardinality, 69_632) == width


@pytest.mark.parametrize("cardinality", [1, 3, 64])
def test_solve_width_is_the_nearest(cardinality):
    for budget in (eq4_parameters(cardinality, 1), 40_000, 69_632, 1_234_567):
        found = solve_width(cardinality, budget)
        distance = [abs(eq4_parameters(cardinality, d) - budget) for d in range(1, 400)]
        assert found == distance.index(min(distance)) + 1


@pytest.mark.parametrize("arguments", [(64, 100), (0, 70_000), (32, 0), (32, 1.5), (True, 70_000)])
def test_solve_width_refuses(arguments):
    with pytest.raises(InputError):
        solve_width(*arguments)
