"""Guard MODEL.RECOMPUTE: fewer features kept, the same numbers."""

import copy

import pytest
import torch
from torch import nn

from resnext_det.models import build_resnext


def networks(depth, **others):
    arguments = {"width_multiplier": 0.25, "num_classes": 5, "freeze_at": 1, **others}
    torch.manual_seed(0)
    plain = build_resnext(depth, 4, 8, **arguments).double()
    again = build_resnext(depth, 4, 8, **arguments, recompute=True).double()
    again.load_state_dict(plain.state_dict())
    return plain, again


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    ("depth", "others"),
    [
        (14, {"norm": "BN"}),
        (14, {"norm": "BN", "form": "b"}),
        (14, {"norm": "FrozenBN", "fuse": True}),
        (11, {"norm": "BN", "shortcut": False}),
        (14, {"norm": "GN", "width_multiplier": 1.0}),
    ],
)
def test_the_same_numbers(depth, others, train):
    models = [model.train(train) for model in networks(depth, **others)]
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    results = []
    for model in models:
        for _ in range(2):  # batch norms count batches
            model.zero_grad()
            out = model(x)["linear"]
            out.square().sum().backward()
        gradients = [p.grad for p in model.parameters() if p.requires_grad]
        results.append([out, *gradients, *model.buffers()])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_pre_activation_blocks():
    from resnext_det.models.convolve import Compute
    from resnext_det.models.preactivation import PreactivationBlock

    torch.manual_seed(0)
    plain = nn.Sequential(
        PreactivationBlock(8, 16, bottleneck_channels=8, activation="both"),
        PreactivationBlock(16, 16, bottleneck_channels=8),
    ).double()
    again = copy.deepcopy(plain)
    for block in again:
        block.compute = Compute(recompute=True)
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    for model in (plain, again):
        model(x).square().sum().backward()
    for expected, found in zip(plain.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=0, atol=1e-12)
    for expected, found in zip(plain.buffers(), again.buffers(), strict=True):
        assert torch.equal(found, expected)


def test_fewer_features_are_kept():
    kept = []
    for model in networks(26):
        sizes = {}

        def pack(tensor, sizes=sizes):
            sizes[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.train()(torch.randn(2, 3, 64, 64, dtype=torch.float64))
        parameters = {p.data_ptr() for p in (*model.parameters(), *model.buffers())}
        kept.append(sum(size for place, size in sizes.items() if place not in parameters))
    assert kept[1] < 0.5 * kept[0]


def test_nothing_is_recomputed_without_gradients(monkeypatch):
    from resnext_det.models import blocks

    monkeypatch.setattr(blocks, "recomputed", lambda *_: pytest.fail("recomputed"))
    with torch.no_grad():
        networks(14)[1](torch.randn(2, 3, 64, 64, dtype=torch.float64))
