"""Guard Fig. 3 and 4 (three forms, one function; depth 2), and the blocks without shortcut."""

import copy

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling.backbone.resnet import BottleneckBlock, ResNet
from torch import nn

from resnext_det.errors import InputError
from resnext_det.models import Bottleneck
from resnext_det.models.blocks import check_norm

NUMBERS = {"bottleneck_channels": 16, "num_groups": 4}


def make_block(form="c", in_channels=12, out_channels=20, seed=0, kind=Bottleneck, **others):
    """Norms away from the identity: equal scales would hide a wrong slice."""
    torch.manual_seed(seed)
    arguments = {**NUMBERS, **others} | ({"form": form} if kind is Bottleneck else {})
    block = kind(in_channels, out_channels, **arguments)
    for name, tensor in block.state_dict().items():
        if name.endswith(("running_mean", "norm.bias")):
            tensor.normal_(0, 0.2)
        elif name.endswith(("running_var", "norm.weight")):
            tensor.uniform_(0.5, 1.5)
    return block


def in_form(block, form):
    other = copy.deepcopy(block)
    other.form = form
    return other


def make_x(channels=12, dtype=torch.float64, size=(9, 7)):
    torch.manual_seed(1)
    return torch.randn(2, channels, *size, dtype=dtype)


def run(block, x, steps=1):
    """Everything that a forward and backward leave behind: {name: tensor}."""
    block.zero_grad()
    for step in range(steps):
        image = (x + step).requires_grad_()
        output = block(image)
        left = {"output": output}
        if output.requires_grad:
            weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype)
            (output * weights.reshape(output.shape)).sum().backward()
            left["input gradient"] = image.grad
    for name, parameter in block.named_parameters():
        left[f"{name} gradient"] = parameter.grad
    return left | dict(block.named_buffers())


def assert_same(found, expected, **within):
    assert found.keys() == expected.keys()
    for name in expected:
        assert (found[name] is None) == (expected[name] is None), name
        if expected[name] is not None:
            torch.testing.assert_close(found[name], expected[name], **within)


# ---- the three forms ----


@pytest.mark.parametrize("cardinality", [1, 4, 16])
@pytest.mark.parametrize("is_training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("stride, stride_in_1x1", [(1, False), (2, False), (2, True)])
@pytest.mark.parametrize("form", ["a", "b"])
def test_form_equals_grouped(form, stride, stride_in_1x1, is_training, cardinality):
    """Outputs, gradients and batch norm buffers, in float64."""
    others = {"stride": stride, "stride_in_1x1": stride_in_1x1, "num_groups": cardinality}
    grouped = make_block("c", **others).double().train(is_training)
    other = make_block(form, seed=9, **others).double().train(is_training)
    other.load_state_dict(grouped.state_dict())
    before = grouped.conv2.norm.running_mean.clone()
    expected = run(grouped, make_x())
    assert expected["output"].std() > 0.1  # or equality would mean little
    assert torch.equal(grouped.conv2.norm.running_mean, before) != is_training
    assert_same(run(other, make_x()), expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("norm", ["BN", "FrozenBN", ""])
@pytest.mark.parametrize("others", [{}, {"has_shortcut": False}, {"out_channels": 12}], ids=str)
@pytest.mark.parametrize("form", ["a", "b"])
def test_other_norms_and_shortcuts(form, others, norm):
    grouped = make_block("c", norm=norm, **others).double()
    expected = run(grouped, make_x())
    grouped = make_block("c", norm=norm, **others).double()
    assert_same(run(in_form(grouped, form), make_x()), expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(
    "norm",
    [
        lambda channels: nn.BatchNorm2d(channels, momentum=None),
        lambda channels: nn.BatchNorm2d(channels, momentum=0.3, eps=0.1),
        lambda channels: nn.BatchNorm2d(channels, affine=False),
        lambda channels: nn.BatchNorm2d(channels, track_running_stats=False),
    ],
    ids=["cumulative", "momentum", "no affine", "no running"],
)
@pytest.mark.parametrize("form", ["a", "b"])
def test_every_kind_of_batch_norm(form, norm):
    """Three batches, then evaluation: the running statistics are those of nn.BatchNorm2d."""
    grouped = make_block("c", norm=norm).double()
    other = in_form(grouped, form)
    expected, found = run(grouped, make_x(), steps=3), run(other, make_x(), steps=3)
    assert_same(found, expected, atol=1e-12, rtol=1e-12)
    if grouped.conv1.norm.track_running_stats:
        assert other.conv1.norm.num_batches_tracked == 3
    x = make_x() * 2
    assert_same(run(other.eval(), x), run(grouped.eval(), x), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("form", ["a", "b"])
def test_float32_tolerance(form):
    """The paper's first block of res2: measured 2e-6 of a tensor's largest value, held to 1e-5."""
    numbers = {"bottleneck_channels": 128, "num_groups": 32}
    grouped = make_block("c", 64, 256, **numbers)
    other = in_form(grouped, form)
    x = make_x(64, torch.float32, (14, 14))
    expected, found = run(grouped, x), run(other, x)
    for name in expected:
        largest = expected[name].abs().max().item()
        torch.testing.assert_close(found[name], expected[name], atol=1e-5 * largest, rtol=0)


@pytest.mark.parametrize("form", ["a", "b"])
def test_checkpoint_moves_unchanged(form):
    """A step of training in one form, then on in another: as if nothing had changed."""

    def step(block):
        run(block, make_x())
        torch.optim.SGD(block.parameters(), lr=0.01, momentum=0.9).step()
        return block

    grouped, other = make_block("c").double(), make_block(form, seed=5).double()
    other.load_state_dict(step(grouped).state_dict(), strict=True)
    back = make_block("c", seed=6).double()
    back.load_state_dict(step(other).state_dict(), strict=True)
    assert list(back.state_dict()) == list(make_block(kind=BottleneckBlock).state_dict())
    assert_same(run(back.eval(), make_x()), run(step(grouped).eval(), make_x()), atol=1e-11, rtol=0)


@pytest.mark.parametrize("form", ["a", "b"])
def test_frozen_block_still_runs_in_its_form(form):
    """Freezing turns BN into FrozenBN after the block was built."""
    grouped = make_block("c").double()
    other = in_form(grouped, form)
    grouped.freeze(), other.freeze()
    assert isinstance(other.conv1.norm, FrozenBatchNorm2d)
    expected = run(grouped, make_x())
    assert "conv1.weight gradient" in expected and expected["conv1.weight gradient"] is None
    assert_same(run(other, make_x()), expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("form", ["a", "b", "c"])
def test_empty_batch(form):
    """A detector's head sees images without regions."""
    output = make_block(form, stride=2).eval()(torch.zeros(0, 12, 9, 7))
    assert output.shape == (0, 20, 5, 4)


# ---- against Detectron2 ----


@pytest.mark.parametrize("in_channels", [12, 20])
@pytest.mark.parametrize("stride, stride_in_1x1", [(1, False), (2, False), (2, True)])
def test_grouped_is_detectron2s_block(in_channels, stride, stride_in_1x1):
    if in_channels == 20 and stride == 2:
        stride = 1  # without a projection the shortcut keeps the size
    numbers = {"in_channels": in_channels, "stride": stride, "stride_in_1x1": stride_in_1x1}
    ours, theirs = make_block(**numbers), make_block(kind=BottleneckBlock, **numbers)
    x = make_x(in_channels, torch.float32)
    assert_same(run(ours, x), run(theirs, x), atol=0, rtol=0)


# ---- without shortcut ----


@pytest.mark.parametrize("in_channels, stride", [(12, 1), (12, 2), (20, 1), (20, 2)])
@pytest.mark.parametrize("form", ["a", "b", "c"])
def test_no_shortcut(form, in_channels, stride):
    """relu(norm(conv3)) and nothing added; no parameter of a projection is left."""
    block = make_block(form, in_channels, stride=stride, has_shortcut=False).double()
    assert block.shortcut is None and not [n for n in block.state_dict() if "shortcut" in n]
    x = make_x(in_channels)
    expected = x
    for convolution in (block.conv1, block.conv2, block.conv3):
        norm = convolution.norm
        y = F.conv2d(
            expected,
            convolution.weight,
            stride=convolution.stride,
            padding=convolution.padding,
            groups=convolution.groups,
        )
        y = F.batch_norm(y, None, None, norm.weight, norm.bias, training=True)
        expected = y.clamp(min=0)
    torch.testing.assert_close(block(x), expected, atol=1e-12, rtol=0)
    gradients = run(block, x)
    for name, parameter in block.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
    assert gradients["input gradient"].abs().sum() > 0


# ---- memory layout and arithmetic ----


@pytest.mark.parametrize("form", ["a", "b", "c"])
@pytest.mark.parametrize("has_shortcut", [True, False])
def test_channels_last(form, has_shortcut):
    plain = make_block("c", stride=2, has_shortcut=has_shortcut).double()
    block = in_form(plain, form).to(memory_format=torch.channels_last)
    x = make_x().contiguous(memory_format=torch.channels_last)
    assert_same(run(block, x), run(plain, make_x()), atol=1e-12, rtol=1e-12)
    output = block(x)
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert not output.is_contiguous()


@pytest.mark.parametrize("norm", ["BN", "FrozenBN", ""])
@pytest.mark.parametrize("form", ["a", "b", "c"])
def test_bf16(form, norm):
    """Root mean square difference, in standard deviations; a flipped ReLU moves gradients more."""
    plain = make_block("c", norm=norm)
    block = in_form(plain, form)
    x = make_x(dtype=torch.float32)
    expected = run(plain, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run(block, x)
    assert found["output"].dtype == torch.bfloat16
    within = {"output": 0.02, "input gradient": 0.15, "conv1.weight gradient": 0.15}
    for name, bound in within.items():
        error = (found[name].float() - expected[name]).square().mean().sqrt()
        assert error < bound * expected[name].std(), name
    assert found["conv2.weight gradient"].dtype == torch.float32


def test_aggregation_sums_in_float32():
    """1024 paths of value 1: a running sum in bf16 would stop at 256."""
    block = Bottleneck(1024, 1, bottleneck_channels=1024, num_groups=1024, norm="", form="a")
    with torch.no_grad():
        block.conv1.weight.copy_(torch.eye(1024)[:, :, None, None])
        block.conv2.weight.zero_()[:, :, 1, 1] = 1
        block.conv3.weight.fill_(1)
        block.shortcut.weight.zero_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert block(torch.ones(1, 1024, 2, 2)).unique().tolist() == [1024]


# ---- Fig. 4 ----


def test_depth_two_is_a_wider_dense_block():
    """Paths of two 3x3 layers: their sum is one dense block of C d channels, no weight unused."""
    torch.manual_seed(0)
    paths = [
        (torch.randn(4, 10, 3, 3).double(), torch.randn(10, 4, 3, 3).double()) for _ in range(8)
    ]
    x = make_x(10)
    aggregated = sum(
        F.conv2d(F.conv2d(x, first, padding=1).relu(), second, padding=1) for first, second in paths
    )
    wide_first = torch.cat([first for first, _ in paths])
    wide_second = torch.cat([second for _, second in paths], dim=1)
    dense = F.conv2d(F.conv2d(x, wide_first, padding=1).relu(), wide_second, padding=1)
    torch.testing.assert_close(aggregated, dense, atol=1e-11, rtol=0)
    of_paths = sum(first.numel() + second.numel() for first, second in paths)
    assert wide_first.numel() + wide_second.numel() == of_paths


def test_depth_three_is_not():
    """Our block equals a dense one only where all but 1 / C of the dense 3x3 is zero."""
    block, dense = make_block("a").double(), make_block(num_groups=1, seed=3).double()
    state = block.state_dict()
    grouped = state["conv2.weight"]  # (16, 4, 3, 3)
    state["conv2.weight"] = torch.zeros(16, 16, 3, 3).double()
    for first in range(0, 16, 4):
        own = slice(first, first + 4)
        state["conv2.weight"][own, own] = grouped[own]
    dense.load_state_dict(state)
    torch.testing.assert_close(block(make_x()), dense(make_x()), atol=1e-12, rtol=0)
    assert dense.conv2.weight.numel() == 4 * block.conv2.weight.numel()
    assert (dense.conv2.weight != 0).sum() == block.conv2.weight.numel()


# ---- refusals ----


@pytest.mark.parametrize("form", ["d", "C", None, ["c"]])
def test_unknown_form(form):
    with pytest.raises(InputError, match=r"MODEL.RESNETS: FORM is .*a, b, c"):
        make_block(form)


@pytest.mark.parametrize("form", ["a", "b"])
@pytest.mark.parametrize(
    "norm, kind",
    [
        ("SyncBN", "SyncBatchNorm"),
        ("naiveSyncBN", "NaiveSyncBatchNorm"),
        ("GN", "GroupNorm"),
        ("LN", "LayerNorm"),
    ],
)
def test_norm_that_cannot_be_sliced(norm, kind, form):
    arguments = {"out_channels": 64, "bottleneck_channels": 64, "norm": norm}
    Bottleneck(32, **arguments, form="c")
    with pytest.raises(InputError) as refused:
        Bottleneck(32, **arguments, form=form)
    for word in ("MODEL.RESNETS.NORM", f"slice {kind}", "one channel", 'form "c"'):
        assert word in str(refused.value)


@pytest.mark.parametrize("form", ["a", "b"])
def test_norm_exchanged_after_building(form):
    block = nn.SyncBatchNorm.convert_sync_batchnorm(make_block(form))
    with pytest.raises(InputError, match="MODEL.RESNETS.NORM: .*SyncBatchNorm"):
        block(make_x(dtype=torch.float32))


@pytest.mark.parametrize("norm", ["BN", "SyncBN", "FrozenBN", "GN", "LN", "", nn.BatchNorm2d])
def test_norms_that_are_known(norm):
    check_norm(norm, [64, 256])


@pytest.mark.parametrize(
    "norm, words",
    [
        ("Batch", ["found 'Batch'", "BN, SyncBN, FrozenBN, GN, LN"]),
        ("bn", ["found 'bn'", "BN, SyncBN"]),
        (None, ["found None", "BN, SyncBN"]),
        (["BN"], ["found ['BN']", "BN, SyncBN"]),
        ("GN", ["GN cannot divide 48 channels", "choose another norm"]),
    ],
)
def test_norms_that_are_not(norm, words):
    with pytest.raises(InputError) as refused:
        check_norm(norm, [64, 48])
    assert str(refused.value).startswith("MODEL.RESNETS.NORM: ")
    for word in words:
        assert word in str(refused.value)


def test_there_is_no_dilation():
    """No network here has any; Detectron2's make_stage would pass it on."""
    with pytest.raises(TypeError, match="dilation"):
        ResNet.make_stage(Bottleneck, 1, in_channels=8, out_channels=8, dilation=2, **NUMBERS)
