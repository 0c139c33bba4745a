"""Guard RoIAlign in C: torchvision's values and gradients, up to rounding."""

import pytest
import torch
from detectron2.layers import ROIAlign
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from torchvision.ops import roi_align

from resnext_det.detection.roi_align import NativeROIAlign, use_native
from resnext_det.native import build

pytestmark = pytest.mark.skipif(build.library() is None, reason="no C compiler here")

SCALE = 1 / 16
HARD = {
    "tiny": [[0, 100.0, 100.0, 100.0, 100.0], [1, 33.3, 70.1, 33.4, 70.15], [0, 0, 0, 1e-3, 1e-3]],
    "reversed": [[0, 200.0, 150.0, 100.0, 50.0], [1, 40.0, 30.0, 0.0, 0.0]],
    "outside": [[0, 600.0, 500.0, 700.0, 600.0], [1, -200.0, -200.0, -100.0, -100.0]],
    "over the border": [[0, 390.0, 290.0, 500.0, 400.0], [1, -60.0, -50.0, 30.0, 20.0]],
    "far over it": [[0, -900.0, -900.0, 1500.0, 1300.0]],
    "whole image": [[0, 0.0, 0.0, 400.0, 304.0], [1, 0.0, 0.0, 399.9, 303.9]],
    "thin": [[0, 0.0, 100.0, 400.0, 101.0], [1, 100.0, 0.0, 101.0, 300.0]],
}


def boxes(count, height=304.0, width=400.0):
    """(count, 5) RoIs of two images: large, small, on and over the borders."""
    random = torch.Generator().manual_seed(0)
    sides = torch.tensor([width, height])
    corner = (torch.rand(count, 2, generator=random) * 1.1 - 0.05) * sides
    far = corner + torch.rand(count, 2, generator=random) ** 3 * sides
    number = torch.randint(0, 2, (count, 1), generator=random).float()
    return torch.cat([number, corner, far], dim=1)


def all_boxes():
    return torch.cat([boxes(60), *(torch.tensor(case) for case in HARD.values())])


def feature(dtype=torch.float32, channels=5, height=19, width=25, layout=torch.channels_last):
    random = torch.Generator().manual_seed(1)
    x = torch.randn(2, channels, height, width, generator=random).to(dtype)
    return x.contiguous(memory_format=layout)


def results(x, rois, size=7, ratio=0, aligned=True, scale=SCALE):
    """Pooled features and the gradient of ``x``: ours, and torchvision's in float32."""
    found = x.clone(memory_format=torch.preserve_format).requires_grad_()
    layer = NativeROIAlign((size, size), scale, ratio, aligned)
    assert layer.is_native(found, rois)
    pooled = layer(found, rois)
    grad = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(2)).to(x.dtype)
    pooled.backward(grad)
    wide = x.float().contiguous().requires_grad_()
    expected = roi_align(wide, rois, (size, size), scale, ratio, aligned)
    expected.backward(grad.float())
    return (pooled.detach(), found.grad), (expected.detach(), wide.grad)


def close(found, expected, part):
    """Within ``part`` of the largest value."""
    return (found.float() - expected).abs().max() <= part * expected.abs().max()


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("size", [1, 7, 14])
@pytest.mark.parametrize("ratio", [0, 1, 2])
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("channels", [5, 300])
def test_as_torchvision(channels, aligned, ratio, size, layout):
    x = feature(channels=channels, layout=layout)
    found, expected = results(x, all_boxes(), size, ratio, aligned)
    for own, other in zip(found, expected, strict=True):
        assert own.shape == other.shape and own.dtype == torch.float32
        assert close(own, other, 2e-6)
    assert found[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("size", [1, 7, 14])
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("channels", [5, 300])
def test_halves_are_rounded_once(channels, ratio, size, layout):
    """Summed in float32: each result within a half's step of torchvision's from the same halves."""
    x = feature(torch.bfloat16, channels=channels, layout=layout)
    for own, other in zip(*results(x, all_boxes(), size, ratio), strict=True):
        assert own.dtype == torch.bfloat16
        torch.testing.assert_close(own.float(), other, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("case", HARD)
@pytest.mark.parametrize("ratio", [0, 1, 3])
@pytest.mark.parametrize("aligned", [True, False])
def test_hard_boxes(aligned, ratio, case):
    for own, other in zip(
        *results(feature(), torch.tensor(HARD[case]), 7, ratio, aligned), strict=True
    ):
        assert close(own, other, 2e-6)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 40), (3, 2), (64, 64)])
@pytest.mark.parametrize("aligned", [True, False])
def test_maps_of_any_size(height, width, aligned):
    x, rois = feature(height=height, width=width), boxes(60, height=16.0 * height, width=900.0)
    for own, other in zip(*results(x, rois, 7, 0, aligned), strict=True):
        assert close(own, other, 2e-6)


@pytest.mark.parametrize("border", [-1.0, 19.0])
@pytest.mark.parametrize("bins", [1, 7])
def test_samples_on_the_very_border(border, bins):
    """Whether they count depends on the last bit of their place, which a fused sum would change."""
    scale, random = 0.3, torch.Generator().manual_seed(3)
    half = torch.rand(4000, generator=random) * 16 + 0.6
    near, far = (border - half) / scale, (border + half) / scale
    across = torch.full_like(half, 8.0), torch.full_like(half, 50.0)
    rois = torch.stack([torch.zeros_like(half), across[0], near, across[1], far], dim=1)
    for own, other in zip(*results(feature(), rois, bins, 1, False, scale), strict=True):
        assert close(own, other, 5e-6)
    _, (pooled, _) = results(feature(), rois, bins, 1, False, scale)
    middle = pooled[:, :, bins // 2].abs().amax(dim=(1, 2))
    assert (middle == 0).any() and (middle > 0).any()  # there are both


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30])
@pytest.mark.parametrize("ratio", [0, 2])
def test_boxes_that_are_no_boxes_read_nothing(bad, ratio):
    """A diverged network's; also reversed along one side only, where torchvision's may not end."""
    rois = torch.tensor([[0, bad, bad, bad, bad], [1, 10.0, bad, 90.0, bad]])
    assert (NativeROIAlign(7, SCALE, ratio)(feature(), rois) == 0).all()
    sideways = torch.tensor([[1, 90.0, 10.0, 20.0, 60.0]])
    pooled = NativeROIAlign(7, SCALE, ratio)(feature(), sideways)
    assert pooled.isfinite().all() and pooled.any() == (ratio > 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits_with_any_number_of_threads(dtype):
    before, seen = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            seen.append(results(feature(dtype, channels=301), boxes(60))[0])
    finally:
        torch.set_num_threads(before)
    for other in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_boxes_carry_a_gradient_of_zeros(dtype):
    x = feature(dtype).requires_grad_()
    pooled = NativeROIAlign((7, 7), SCALE, 0)(x, torch.zeros(0, 5))
    assert pooled.shape == (0, 5, 7, 7) and pooled.dtype == dtype
    pooled.sum().backward()
    assert x.grad.shape == x.shape and not x.grad.any()


def test_a_gradient_that_is_spread_out():
    """That of a sum has no memory of its own; boxes may be a part of a larger tensor."""
    x, rois = feature().requires_grad_(), torch.randn(60, 6)
    rois[:, :5] = boxes(60)
    NativeROIAlign((7, 7), SCALE, 0)(x, rois[:, :5]).sum().backward()
    other = feature().requires_grad_()
    roi_align(other, boxes(60), (7, 7), SCALE, 0, True).sum().backward()
    assert close(x.grad, other.grad, 5e-6)


STOCK = {
    "float64": (torch.float64, torch.float64, (7, 7)),
    "boxes in float64": (torch.float32, torch.float64, (7, 7)),
    "bins not as many along both sides": (torch.float32, torch.float32, (7, 3)),
}


@pytest.mark.parametrize("case", STOCK)
def test_what_is_left_to_torchvision(case):
    dtype, of_boxes, size = STOCK[case]
    x, rois = feature(dtype), boxes(20).to(of_boxes)
    own, stock = (kind(size, SCALE, 0) for kind in (NativeROIAlign, ROIAlign))
    assert not own.is_native(x, rois)
    assert torch.equal(own(x, rois), stock(x, rois))


def test_wrong_kernels_are_not_used(monkeypatch):
    monkeypatch.setattr("resnext_det.detection.roi_align.kernels_serve", lambda x: False)
    x, rois = feature(), boxes(20)
    assert torch.equal(NativeROIAlign(7, SCALE, 0)(x, rois), ROIAlign(7, SCALE, 0)(x, rois))


@pytest.mark.parametrize("way", ["trace", "script"])
def test_torchscript_holds_torchvisions_operator(way):
    layer, x, rois = NativeROIAlign((7, 7), SCALE, 0), feature(), boxes(20)
    graph = torch.jit.trace(layer, (x, rois)) if way == "trace" else torch.jit.script(layer)
    assert "torchvision::roi_align" in str(graph.inlined_graph)
    more = boxes(60)  # nothing of the traced boxes is kept in it
    assert torch.equal(graph(x, more), ROIAlign((7, 7), SCALE, 0)(x, more))


def pooler(kind="ROIAlignV2"):
    """Small boxes are large to it, so that every level has some."""
    return ROIPooler(7, [1 / 4, 1 / 8, 1 / 16, 1 / 32], 0, kind, canonical_box_size=80)


@pytest.mark.parametrize("kind", ["ROIAlign", "ROIAlignV2"])
def test_a_pooler_of_fpn_levels(kind):
    stock, own = pooler(kind), pooler(kind).eval()
    use_native(own)
    for layer, other in zip(own.level_poolers, stock.level_poolers, strict=True):
        assert type(layer) is NativeROIAlign and not layer.training
        assert {**vars(layer), "training": True} == vars(other)
    assert own.state_dict() == stock.state_dict() == {}
    rois = boxes(120)
    lists = [Boxes(rois[rois[:, 0] == image, 1:]) for image in range(2)]
    maps = [feature(height=304 // stride, width=400 // stride) for stride in (4, 8, 16, 32)]
    mine, theirs = ([m.clone().requires_grad_() for m in maps] for _ in range(2))
    found, expected = own(mine, lists), stock(theirs, lists)
    assert close(found, expected, 2e-6)
    found.square().sum().backward()
    expected.square().sum().backward()
    assert all(m.grad.any() for m in mine)
    assert all(close(m.grad, t.grad, 5e-6) for m, t in zip(mine, theirs, strict=True))


def test_other_layers_stay():
    class Derived(ROIAlign):
        pass

    pools, mixed = pooler("ROIPool"), pooler()
    kept = list(pools.level_poolers)
    use_native(pools)
    assert list(pools.level_poolers) == kept
    mixed.level_poolers[1] = Derived(7, 1 / 8, 0)
    use_native(mixed)
    kinds = [type(layer) for layer in mixed.level_poolers]
    assert kinds == [NativeROIAlign, Derived, NativeROIAlign, NativeROIAlign]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_without_the_kernels(monkeypatch, dtype):
    """torchvision's operator knows none on a CPU: computed in float32, and rounded."""
    monkeypatch.setattr("resnext_det.detection.roi_align.kernels_serve", lambda x: False)
    x, rois = torch.randn(1, 5, 9, 9).to(dtype), torch.tensor([[0, 3.0, 2, 60, 50]])
    layer = NativeROIAlign(7, 1 / 8, 0, True)
    expected = layer(x.float(), rois).to(dtype)
    assert layer(x, rois).dtype == dtype and torch.equal(layer(x, rois), expected)
