"""Guard RoIPool without gradients: torchvision's values, bit for bit."""

import pytest
import torch
import torchvision

from resnext_det.detection.roi_pool import CHUNK, roi_pool


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
