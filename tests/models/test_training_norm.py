"""Guard batch norm, addition and ReLU as one: a layer's values, gradients, statistics, errors."""

import copy
import statistics

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, get_norm
from torch import nn

from resnext_det.models import build_resnext, training_norm
from resnext_det.models.convolve import PLAIN, Compute, convolve, normalise
from resnext_det.models.recompute import recomputed
from resnext_det.native import build, trust

pytestmark = pytest.mark.skipif(build.library() is None, reason="no C compiler here")
FUSED = Compute(fuse=True)
LAST = torch.channels_last


@pytest.fixture
def calls(monkeypatch):
    """How often the kernels were asked."""
    seen, own = [], training_norm.norm_forward
    monkeypatch.setattr(
        training_norm, "norm_forward", lambda *args: (seen.append(args), own(*args))[1]
    )
    return seen


def layer(**norm):
    torch.manual_seed(0)
    conv = Conv2d(8, 24, 3, padding=1, bias=False, norm=nn.BatchNorm2d(24, **norm))
    with torch.no_grad():
        conv.norm.weight.uniform_(-1.5, 1.5)  # negative ones occur
        conv.norm.bias.normal_()
    return conv


def inputs(n=3, height=9, width=7):
    torch.manual_seed(1)
    x = torch.randn(n, 8, height, width).contiguous(memory_format=LAST)
    return x, torch.randn(n, 24, height, width).contiguous(memory_format=LAST)


def step(conv, x, add, relu, compute):
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    add = add if add is None else add.clone().requires_grad_()
    kept = add if add is None else add.detach().clone()
    y = convolve(conv, x, relu=relu, add=add, compute=compute)
    assert add is None or torch.equal(add, kept)  # the shortcut is not overwritten
    torch.manual_seed(2)
    (y * torch.randn_like(y)).sum().backward()
    found = [y.detach(), x.grad, *(p.grad for p in conv.parameters()), *conv.buffers()]
    return found if add is None else [*found, add.grad]


def assert_equal(one, other, tolerance=1e-4):
    for a, b in zip(one, other, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(
            a, b, rtol=tolerance, atol=tolerance * float(b.detach().abs().max())
        )


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("with_add", [True, False])
@pytest.mark.parametrize(
    "norm",
    [
        {},
        {"momentum": None},  # the plain average of all batches
        {"momentum": 0.0},
        {"eps": 1e-2, "momentum": 0.7},
        {"track_running_stats": False},
    ],
)
def test_as_the_plain_layer(calls, norm, with_add, relu):
    x, add = inputs()
    results = []
    for compute in (PLAIN, FUSED):
        conv = layer(**norm)
        for _ in range(2):
            conv.zero_grad()
            last = step(conv, x, add if with_add else None, relu, compute)
        results.append(last)
    assert len(calls) == 2
    assert_equal(results[1], results[0])


@pytest.mark.parametrize("depth", [26, 29])
def test_whole_networks_are_as_exact_as_plain_ones(calls, depth):
    """A step of a classifier in float32, and what it evaluates behind it with folded weights.

    Rounding turns a sign at some ReLUs, so that both are held against float64.
    """
    torch.manual_seed(0)
    plain = build_resnext(depth, 4, 4, num_classes=5, width_multiplier=0.25, channels_last=True)
    fast = copy.deepcopy(plain)
    for module in fast.modules():
        if isinstance(getattr(module, "compute", None), Compute):
            module.compute = FUSED
    exact, x = copy.deepcopy(plain).double(), torch.randn(4, 3, 64, 64)
    results = [_step_and_evaluation(m, x.to(m.linear.weight.dtype)) for m in (exact, plain, fast)]
    assert calls
    errors = [
        [float((a - b).norm() / b.norm()) for a, b in zip(found, results[0], strict=True)]
        for found in results[1:]
    ]
    assert max(errors[1]) <= 5 * max(errors[0])
    assert statistics.median(errors[1]) <= 1.5 * statistics.median(errors[0])


def _step_and_evaluation(model, x):
    with torch.no_grad():
        model.eval()(x)  # weights are folded now, with statistics that will move
    model.train()(x)["linear"].square().sum().backward()
    with torch.no_grad():
        after = model.eval()(x)["linear"]
    return [after, *(p.grad for p in model.parameters()), *(b.double() for b in model.buffers())]


def test_preactivation(calls):
    torch.manual_seed(0)
    plain = build_resnext(200, 1, 64, num_classes=3, width_multiplier=0.125, channels_last=True)
    fast = build_resnext(
        200, 1, 64, num_classes=3, width_multiplier=0.125, channels_last=True, fuse=True
    )
    fast.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 64, 64)
    one, other = (model.train()(x)["linear"] for model in (plain, fast))
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in plain.modules())
    assert len(calls) == norms
    torch.testing.assert_close(other, one, rtol=1e-2, atol=1e-2)


def test_bf16_is_nearer_to_the_exact_result_than_the_plain_layer():
    x, add = inputs()
    exact = step(layer().double(), x.double(), add.double(), False, PLAIN)
    distances = []
    for compute in (PLAIN, FUSED):
        with torch.autocast("cpu", torch.bfloat16):
            y = convolve(layer(), x, relu=False, add=add, compute=compute)
        assert y.dtype == torch.bfloat16
        distances.append(float((y.detach().double() - exact[0]).square().mean()))
    assert distances[1] <= distances[0]


NOT_FUSED = {
    "evaluation": (lambda c: c.eval(), {}),
    "FrozenBN": (lambda c: setattr(c, "norm", get_norm("FrozenBN", 24)), {}),
    "GN": (lambda c: setattr(c, "norm", nn.GroupNorm(4, 24)), {}),
    "a kind of its own": (
        lambda c: setattr(c.norm, "__class__", type("B", (nn.BatchNorm2d,), {})),
        {},
    ),
    "without scale": (lambda c: setattr(c, "norm", nn.BatchNorm2d(24, affine=False)), {}),
    "float64": (lambda c: c.double(), {"dtype": torch.float64}),
    "bf16 parameters": (lambda c: c.bfloat16(), {"dtype": torch.bfloat16}),
    "contiguous": (lambda c: None, {"memory_format": torch.contiguous_format}),
}


@pytest.mark.parametrize("case", NOT_FUSED)
def test_what_is_left_to_pytorch(calls, case):
    change, to = NOT_FUSED[case]
    conv = layer()
    change(conv)
    x = inputs()[0].to(to.get("dtype", torch.float32))
    x = x.contiguous(memory_format=to.get("memory_format", LAST))
    expected = conv.norm(F.conv2d(x, conv.weight, padding=1))
    torch.testing.assert_close(convolve(conv, x, relu=False, compute=FUSED), expected)
    assert not calls


def test_one_value_has_no_variance():
    """PyTorch's own error, which names the shape."""
    conv = layer()
    x, _ = inputs(1, 1, 1)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        convolve(conv, x, relu=True, compute=FUSED)


def test_another_number_of_channels():
    """PyTorch's own error again."""
    with pytest.raises(RuntimeError, match="should contain 24 elements"):
        normalise(nn.BatchNorm2d(16), inputs()[1], relu=True, compute=FUSED)


def test_who_watches_the_norm_sees_it(calls):
    conv, seen = layer(), []
    handle = conv.norm.register_forward_hook(lambda *args: seen.append(args))
    convolve(conv, inputs()[0], relu=True, compute=FUSED)
    assert seen and not calls
    handle.remove()
    convolve(conv, inputs()[0], relu=True, compute=FUSED)
    assert len(seen) == 1 and calls


def test_first_asked_inside_a_recomputed_block():
    trust._agrees.cache_clear()
    network = {"norm": "BN", "freeze_at": 2, "width_multiplier": 0.125, "out_features": ["res5"]}
    model = build_resnext(26, 1, 64, recompute=True, fuse=True, channels_last=True, **network)
    model.train()(torch.randn(2, 3, 64, 64))["res5"].sum().backward()


def test_switched_off(calls):
    model = build_resnext(26, 1, 16, num_classes=3, width_multiplier=0.25, channels_last=True)
    model.train()(torch.randn(2, 3, 32, 32))
    assert not calls


def test_recomputed_blocks_count_a_batch_once(calls):
    results = []
    for again in (False, True):
        conv = layer()
        run = lambda x: convolve(conv, x, relu=True, compute=FUSED)  # noqa: B023, E731
        x = inputs()[0].requires_grad_()
        y = recomputed(run, x, conv) if again else run(x)
        y.square().sum().backward()
        results.append([y, x.grad, conv.weight.grad, *conv.buffers()])
    assert len(calls) == 3
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_statistics_move_where_autograd_and_folded_weights_see_it():
    conv = layer()
    before = conv.norm.running_mean._version
    convolve(conv, inputs()[0], relu=True, compute=FUSED)
    assert conv.norm.running_mean._version > before
    convolve(conv.eval(), inputs()[0], relu=True, compute=FUSED)
    assert conv.norm.num_batches_tracked == 1


def test_without_gradients_the_statistics_still_move(calls):
    results = []
    for compute in (PLAIN, FUSED):
        conv = layer()
        with torch.no_grad():
            y = convolve(conv, inputs()[0], relu=True, compute=compute)
        results.append([y, *conv.buffers()])
    assert len(calls) == 1 and not results[1][0].requires_grad
    assert_equal(*results)


@pytest.mark.parametrize("layout", [torch.contiguous_format, LAST])
def test_gradients_in_another_layout_or_spread_out(layout):
    """As of a mean, whose gradient is one number seen many times."""
    x, _ = inputs()
    grads = []
    for compute in (PLAIN, FUSED):
        conv = layer()
        y = convolve(conv, x, relu=True, compute=compute)
        y.contiguous(memory_format=layout).mean(dim=(2, 3)).square().sum().backward()
        grads.append([p.grad for p in conv.parameters()])
    assert_equal(*grads)


def test_parts_without_gradients(calls):
    """A frozen scale, an input that needs none."""
    conv = layer()
    conv.norm.weight.requires_grad_(False)
    x = inputs()[0]
    normalise(conv.norm, F.conv2d(x, conv.weight), relu=True, compute=FUSED).sum().backward()
    assert calls and conv.norm.weight.grad is None and conv.norm.bias.grad is not None
