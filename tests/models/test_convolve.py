"""Guard that the fast ways to compute a layer compute the layer: values, gradients, statistics."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, get_norm

from resnext_det.errors import InputError
from resnext_det.models import build_resnext, convolve
from resnext_det.models.convolve import Compute
from resnext_det.models.folding import FoldedWeights, has_fused_convolution, is_fixed
from resnext_det.models.measured import MeasuredRegrouping
from resnext_det.models.regroup import PRODUCT, Merge, is_product

FUSED = Compute(fuse=True)


def layer(norm="BN", groups=4, stride=1, dtype=torch.float32, bias=False):
    torch.manual_seed(1)
    conv = Conv2d(
        16, 24, 3, stride=stride, padding=1, groups=groups, bias=bias, norm=get_norm(norm, 24)
    )
    if conv.norm is not None:
        for name in ("weight", "bias", "running_mean", "running_var"):
            with torch.no_grad():
                getattr(conv.norm, name).uniform_(0.5, 1.5)
    return conv.to(dtype)


def plainly(conv, x, add, relu):
    out = F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding, 1, conv.groups)
    out = out if conv.norm is None else conv.norm(out)
    out = out if add is None else out + add
    return F.relu(out) if relu else out


def inputs(stride=1, dtype=torch.float32, layout=torch.channels_last, size=(2, 9, 7)):
    torch.manual_seed(2)
    n, h, w = size
    x = torch.randn(n, 16, h, w, dtype=dtype).contiguous(memory_format=layout)
    add = torch.randn(n, 24, -(-h // stride), -(-w // stride), dtype=dtype)
    return x, add.contiguous(memory_format=layout)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("with_add", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("norm", "bias"), [("BN", False), ("FrozenBN", False), ("BN", True), ("", True), ("GN", False)]
)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.1)]
)
def test_inference(norm, bias, stride, with_add, relu, dtype, tolerance):
    if norm == "GN":
        norm = lambda channels: torch.nn.GroupNorm(4, channels)  # noqa: E731
    conv = layer("" if callable(norm) else norm, stride=stride, dtype=dtype, bias=bias).eval()
    if callable(norm):
        conv.norm = norm(24).to(dtype)
    x, add = inputs(stride, dtype)
    add = add if with_add else None
    kept = None if add is None else add.clone()
    with torch.no_grad():
        expected = plainly(conv, x, add, relu)
        found = convolve.convolve(conv, x, relu=relu, add=add, compute=FUSED)
    assert found.dtype == dtype and found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    assert add is None or torch.equal(add, kept)  # the shortcut is not overwritten


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("size", [(1, 1, 1), (3, 4, 17), (0, 5, 5)])
def test_sizes_after_another(layout, size):
    """Weights are packed for the first input that is met."""
    conv = layer("FrozenBN").eval()
    with torch.no_grad():
        convolve.convolve(conv, inputs(layout=layout)[0], relu=True, compute=FUSED)
        x, _ = inputs(layout=layout, size=size)
        found = convolve.convolve(conv, x, relu=True, compute=FUSED)
        torch.testing.assert_close(found, plainly(conv, x, None, True), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("what", ["weight", "running_mean", "norm.weight", "load", "double"])
def test_changed_weights_are_noticed(what):
    conv = layer("FrozenBN").eval()
    x, _ = inputs()
    with torch.no_grad():
        before = convolve.convolve(conv, x, relu=False, compute=FUSED)
        if what == "weight":
            conv.weight.mul_(2)
        elif what == "load":
            conv.load_state_dict({k: v + 0.25 for k, v in conv.state_dict().items()})
        elif what == "double":
            conv, x = conv.double(), x.double()
        else:
            (conv.norm.weight if what == "norm.weight" else conv.norm.running_mean).add_(1)
        found = convolve.convolve(conv, x, relu=False, compute=FUSED)
        torch.testing.assert_close(found, plainly(conv, x, None, False), rtol=1e-5, atol=1e-5)
    assert what == "double" or not torch.allclose(before, found)


@pytest.mark.parametrize("norm", ["FrozenBN", "BN", ""])
@pytest.mark.parametrize("training", [True, False])
def test_gradients(norm, training):
    """Frozen norms fold into the weights in training too; a batch norm in training never does."""
    first = layer(norm, dtype=torch.float64, bias=norm == "").train(training)
    second = copy.deepcopy(first)
    x, add = (t.requires_grad_() for t in inputs(dtype=torch.float64))
    grads = []
    for conv, run in (
        (first, plainly),
        (second, lambda c, x, a, r: convolve.convolve(c, x, relu=r, add=a, compute=FUSED)),
    ):
        out = run(conv, x, add, True)
        wanted = [x, add, *conv.parameters()]
        grads.append([out, *torch.autograd.grad((out * out.detach().sin()).sum(), wanted)])
        if norm == "BN":
            grads[-1].append(conv.norm.running_var.clone())
    for expected, found in zip(*grads, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)


def test_which_norms_are_fixed():
    assert is_fixed(None) and is_fixed(get_norm("FrozenBN", 4))
    batch_norm = get_norm("BN", 4)
    assert not is_fixed(batch_norm) and is_fixed(batch_norm.eval())
    assert not is_fixed(torch.nn.BatchNorm2d(4, track_running_stats=False).eval())
    assert not is_fixed(torch.nn.GroupNorm(2, 4).eval())


@pytest.mark.parametrize(
    ("depth", "c", "d", "norm", "train"),
    [
        (14, 8, 8, "FrozenBN", True),
        (14, 8, 8, "BN", False),
        (14, 1, 64, "BN", True),
        (14, 4, 8, "BN", True),
        (11, 4, 8, "BN", False),
    ],
)
def test_whole_networks(depth, c, d, norm, train):
    """Outputs, gradients and running statistics, with everything on."""
    arguments = {"norm": norm, "width_multiplier": 0.25, "num_classes": 5}
    plain = build_resnext(depth, c, d, **arguments).double().train(train)
    for module in plain.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2)
    fast = build_resnext(depth, c, d, **arguments, fuse=True).double().train(train)
    fast.load_state_dict(plain.state_dict())

    def regrouping(x, weight, stride, groups):
        if is_product(weight, groups):
            return Merge(PRODUCT, PRODUCT, PRODUCT)
        return Merge(2, 4, 2) if groups > 1 else Merge()

    for module in fast.modules():
        if isinstance(getattr(module, "compute", None), Compute):
            module.compute = Compute(fuse=True, regrouping=regrouping)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    x = x.contiguous(memory_format=torch.channels_last)
    results = []
    for model in (plain, fast):
        out = model(x)["linear"]
        out.square().sum().backward()
        gradients = [p.grad for p in model.parameters()]
        with torch.no_grad():
            again = model(x)["linear"]
        results.append([out, again, *gradients, *model.buffers()])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_fused_operators_are_used_where_they_are(monkeypatch):
    if not has_fused_convolution(torch.float32):
        pytest.skip("this torch has no fused convolutions")
    called = []
    real = convolve.fused
    monkeypatch.setattr(
        convolve, "fused", lambda *args, **kwargs: called.append(1) or real(*args, **kwargs)
    )
    model = build_resnext(14, 4, 8, width_multiplier=0.25, num_classes=3, fuse=True).eval()
    with torch.no_grad():
        model(torch.randn(1, 3, 32, 32))
    assert len(called) == 1 + 4 * 4  # the stem; three layers and a projection a stage


def test_without_fused_operators(monkeypatch):
    """As on a machine without oneDNN: folded weights alone."""
    monkeypatch.setattr(convolve, "has_fused_convolution", lambda dtype: False)
    conv = layer("FrozenBN").eval()
    x, add = inputs()
    with torch.no_grad():
        found = convolve.convolve(conv, x, relu=True, add=add, compute=FUSED)
        torch.testing.assert_close(found, plainly(conv, x, add, True), rtol=1e-5, atol=1e-5)


def test_folded_weights_are_made_once():
    conv = layer("FrozenBN").eval()
    x, _ = inputs()
    with torch.no_grad():
        convolve.convolve(conv, x, relu=True, compute=FUSED)
        first = conv.__dict__["_folded"].weight
        convolve.convolve(conv, x, relu=True, compute=FUSED)
    assert conv.__dict__["_folded"].weight is first
    assert isinstance(conv.__dict__["_folded"], FoldedWeights)
    assert set(conv.state_dict()) == set(layer("FrozenBN").state_dict())


def test_an_unknown_choice():
    with pytest.raises(InputError, match="REGROUP is 'fast'"):
        build_resnext(14, 4, 8, width_multiplier=0.25, regroup="fast")


def test_tracing_keeps_the_plain_layers():
    """An exported network has no operators of one machine in it."""
    model = build_resnext(14, 4, 8, width_multiplier=0.25, num_classes=3, fuse=True).eval()
    regrouping = MeasuredRegrouping(None)
    for module in model.modules():
        if isinstance(getattr(module, "compute", None), Compute):
            module.compute = Compute(fuse=True, regrouping=regrouping)
    with torch.no_grad():
        graph = str(torch.jit.trace(model, torch.randn(1, 3, 32, 32), strict=False).inlined_graph)
    assert "mkldnn" not in graph and "aten::batch_norm" in graph
    assert not regrouping.known


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": lambda model: _saved_and_loaded(model),
}


def _saved_and_loaded(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("how", COPIES)
def test_a_network_that_has_evaluated_can_be_copied(how):
    """Packed weights cannot; the copy makes its own."""
    model = build_resnext(
        14, 8, 4, width_multiplier=0.25, num_classes=5, fuse=True, channels_last=True
    ).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(x)["linear"]
        assert torch.equal(COPIES[how](model)(x)["linear"], expected)
        assert torch.equal(model(x)["linear"], expected)


def test_changes_through_data_are_seen_at_the_next_evaluation():
    """As by averages of weights; nothing in the tensor tells of them."""
    model = build_resnext(
        14, 8, 4, width_multiplier=0.25, num_classes=5, fuse=True, channels_last=True
    ).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        model(x)
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data.mul_(1.5) if tensor.is_floating_point() else None
        fresh = build_resnext(
            14, 8, 4, width_multiplier=0.25, num_classes=5, fuse=True, channels_last=True
        )
        fresh.load_state_dict(model.state_dict())
        assert torch.equal(model.eval()(x)["linear"], fresh.eval()(x)["linear"])


@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
def test_exported_in_evaluation(norm):
    """Nothing is packed for a tensor that has no memory."""
    model = build_resnext(
        *(14, 8, 4),
        **{"width_multiplier": 0.25, "num_classes": 5, "norm": norm, "fuse": True},
        channels_last=True,
    ).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        exported = torch.export.export(model, (x,)).module()
        torch.testing.assert_close(exported(x)["linear"], model(x)["linear"])


def test_exported_in_training():
    """What records operators gets PyTorch's own, whatever was measured."""
    model = build_resnext(
        *(14, 8, 4),
        **{"width_multiplier": 0.25, "num_classes": 5, "channels_last": True, "regroup": "auto"},
    )
    x = torch.randn(2, 3, 32, 32)
    exported = torch.export.export(copy.deepcopy(model).train(), (x,)).module()
    torch.testing.assert_close(exported(x)["linear"], model.train()(x)["linear"])
