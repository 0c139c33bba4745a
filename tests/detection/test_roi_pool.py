"""Guard RoIPool, in C and by windows: torchvision's values and gradients, bit for bit."""

import pytest
import torch
import torchvision

from resnext_det.detection import roi_pool as own
from resnext_det.detection.roi_pool import CHUNK, roi_pool
from resnext_det.native import build


@pytest.fixture(autouse=True, params=["C", "windows"])
def way(request, monkeypatch):
    """Every test twice, but for those that ask which it is."""
    if request.param == "windows":
        monkeypatch.setattr(own, "kernels_serve", lambda feature: False)
    elif build.library() is None:
        pytest.skip("no C compiler here")
    return request.param


def boxes(count, seed=0, height=300.0, width=400.0):
    """(count, 5) RoIs of two images: large, small, single cells, on and over the borders."""
    random = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=random) * torch.tensor([width, height])
    side = torch.rand(count, 2, generator=random) ** 3 * torch.tensor([width, height])
    far = torch.minimum(corner + side, torch.tensor([width, height]))
    number = torch.randint(0, 2, (count, 1), generator=random).float()
    return torch.cat([number, corner, far], dim=1)


def feature(dtype=torch.float32, channels=5, height=19, width=25, layout=torch.channels_last):
    torch.manual_seed(0)
    x = torch.randn(2, channels, height, width).to(dtype)
    return x.contiguous(memory_format=layout)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("size", [1, 2, 7, 14])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_equal_to_torchvision(dtype, size, layout):
    x, rois = feature(dtype, layout=layout), boxes(200)
    found = roi_pool(x, rois, size, 1 / 16)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    expected = torchvision.ops.roi_pool(x.to(wide), rois.to(wide), size, 1 / 16)
    assert found.dtype == dtype
    assert torch.equal(found.to(wide), expected)
    assert found.is_contiguous(memory_format=torch.channels_last)


HARD = {
    "halves": [[0, 8.0, 24.0, 40.0, 56.0], [1, 7.999999, 23.999998, 40.000004, 56.000004]],
    "one cell": [[0, 100.0, 100.0, 100.0, 100.0], [1, 0.0, 0.0, 0.0, 0.0]],
    "whole image": [[0, 0.0, 0.0, 400.0, 300.0], [1, 0.0, 0.0, 399.9, 299.9]],
    "over the border": [[0, 390.0, 290.0, 500.0, 400.0], [1, -60.0, -50.0, 30.0, 20.0]],
    "outside": [[0, 600.0, 500.0, 700.0, 600.0], [1, -200.0, -200.0, -100.0, -100.0]],
    "upside down": [[0, 200.0, 150.0, 100.0, 50.0]],
    "thin": [[0, 0.0, 100.0, 400.0, 101.0], [1, 100.0, 0.0, 101.0, 300.0]],
}


@pytest.mark.parametrize("case", HARD)
def test_hard_boxes(case):
    x, rois = feature(), torch.tensor(HARD[case])
    for size in (2, 7, 14):
        expected = torchvision.ops.roi_pool(x, rois, size, 1 / 16)
        assert torch.equal(roi_pool(x, rois, size, 1 / 16), expected)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 40), (3, 2), (64, 64)])
def test_maps_of_any_size(height, width):
    x, rois = feature(height=height, width=width), boxes(50, height=16.0 * height, width=900.0)
    expected = torchvision.ops.roi_pool(x, rois, 7, 1 / 16)
    assert torch.equal(roi_pool(x, rois, 7, 1 / 16), expected)


def test_more_than_a_chunk_and_none():
    x = feature(channels=3)
    rois = boxes(CHUNK // 49 * 2 + 3)
    assert torch.equal(roi_pool(x, rois, 7, 1 / 16), torchvision.ops.roi_pool(x, rois, 7, 1 / 16))
    assert roi_pool(x, rois[:0], 7, 1 / 16).shape == (0, 3, 7, 7)


def test_negative_maxima():
    """Only bins without a cell are 0."""
    x = feature() - 10
    rois = boxes(60)
    assert torch.equal(roi_pool(x, rois, 7, 1 / 16), torchvision.ops.roi_pool(x, rois, 7, 1 / 16))


def pooled_and_gradient(pool, x, rois, size, weights):
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    pooled = pool(x, rois, size, 1 / 16)
    (pooled * weights).sum().backward()
    return pooled, x.grad


@pytest.mark.parametrize("way", ["C"], indirect=True)  # windows have no gradients
@pytest.mark.parametrize("size", [1, 7, 14])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_gradients_as_torchvisions(size, ties, layout):
    """Of equal cells the first has it; sums come in the same order, so that bits agree."""
    x, rois = feature(channels=300, layout=layout), boxes(80)
    rois = torch.cat([rois, *(torch.tensor(case) for case in HARD.values())])
    x = x.round() if ties else x
    weights = torch.randn(len(rois), 300, size, size)
    found = pooled_and_gradient(roi_pool, x, rois, size, weights)
    expected = pooled_and_gradient(torchvision.ops.roi_pool, x, rois, size, weights)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("way", ["C"], indirect=True)
def test_gradients_of_halves():
    """Summed in float32 and rounded once."""
    x, rois = feature(torch.bfloat16, channels=40), boxes(80)
    weights = torch.randn(len(rois), 40, 7, 7).bfloat16()
    pooled, grad = pooled_and_gradient(roi_pool, x, rois, 7, weights)
    _, expected = pooled_and_gradient(torchvision.ops.roi_pool, x.float(), rois, 7, weights.float())
    assert pooled.dtype == grad.dtype == torch.bfloat16
    assert torch.equal(grad, expected.bfloat16())


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_traced():
    """By operators that a trace records; other values and boxes of the same number go through."""
    x, rois = feature(), boxes(40)
    traced = torch.jit.trace(lambda x, rois: roi_pool(x, rois, 7, 1 / 16), (x, rois))
    assert torch.equal(traced(x, rois), torchvision.ops.roi_pool(x, rois, 7, 1 / 16))
    assert torch.equal(traced(-x, rois), torchvision.ops.roi_pool(-x, rois, 7, 1 / 16))


def test_more_cells_than_are_told_apart(way, monkeypatch):
    monkeypatch.setattr(own, "MOST_CELLS", 19 * 25)
    assert not own.is_native(feature())
    assert own.is_native(feature(width=24)) == (way == "C")
    test_equal_to_torchvision(torch.float32, 7, torch.channels_last)


def test_the_same_bits_with_any_number_of_threads():
    x, rois = feature(channels=70), boxes(60)
    weights, before, results = torch.randn(60, 70, 7, 7), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            x.requires_grad_(own.is_native(x)).grad = None
            pooled = roi_pool(x, rois, 7, 1 / 16)
            if x.requires_grad:
                (pooled * weights).sum().backward()
            results.append([pooled, x.grad if x.requires_grad else pooled])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
