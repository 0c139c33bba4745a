"""Guard regrouped convolutions: the same function, chosen by what is measured, remembered."""

import json
import logging

import pytest
import torch
import torch.nn.functional as F

from resnext_det.models import measured
from resnext_det.models.measured import MeasuredRegrouping, candidates, chosen, measure
from resnext_det.models.regroup import (
    PRODUCT,
    Merge,
    block_diagonal,
    diagonal_blocks,
    grouped_conv2d,
    is_product,
    regrouped_conv2d,
)

GROUPS = 8
PLACE = {1: ((1, 1), (1, 1), (1, 1), GROUPS), 2: ((2, 2), (1, 1), (1, 1), GROUPS)}


def tensors(dtype=torch.float64, bias=False, size=(2, 9, 8)):
    torch.manual_seed(0)
    n, h, w = size
    x = torch.randn(n, 32, h, w, dtype=dtype, requires_grad=True)
    weight = torch.randn(48, 4, 3, 3, dtype=dtype, requires_grad=True)
    return x, weight, torch.randn(48, dtype=dtype, requires_grad=True) if bias else None


@pytest.mark.parametrize("merge", [1, 2, 4, 8])
def test_blocks_there_and_back(merge):
    _, weight, _ = tensors()
    merged = block_diagonal(weight, GROUPS, merge)
    assert merged.shape == (48, 4 * merge, 3, 3)
    assert int((merged != 0).sum()) == weight.numel()
    assert torch.equal(diagonal_blocks(merged, GROUPS, merge), weight)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("merge", [Merge(2, 4, 8), Merge(8, 1, 2), Merge(1, 8, 1), Merge(4, 2, 4)])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 5e-5), (torch.bfloat16, 0.3)]
)
def test_it_is_the_same_function(stride, bias, merge, dtype, tolerance):
    x, weight, b = tensors(dtype, bias)
    wanted = [t for t in (x, weight, b) if t is not None]
    expected = F.conv2d(x, weight, b, *PLACE[stride])
    found = regrouped_conv2d(x, weight, b, *PLACE[stride], merge)
    grad = torch.randn_like(expected)
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    for ours, theirs in zip(
        torch.autograd.grad(found, wanted, grad),
        torch.autograd.grad(expected, wanted, grad),
        strict=True,
    ):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("frozen", ["x", "weight"])
def test_no_gradient_that_nobody_wants(frozen):
    x, weight, _ = tensors()
    (x if frozen == "x" else weight).requires_grad_(False)
    regrouped_conv2d(x, weight, None, *PLACE[1], Merge(2, 2, 2)).sum().backward()
    assert (x.grad is None) == (frozen == "x")
    assert (weight.grad is None) == (frozen == "weight")


def test_under_autocast_it_is_what_autocast_makes_of_it():
    x, weight, _ = tensors(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = F.conv2d(x, weight, None, *PLACE[1])
        found = regrouped_conv2d(x, weight, None, *PLACE[1], Merge(4, 4, 4))
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected.float(), rtol=0.02, atol=0.02)
    found.sum().backward()
    assert weight.grad.dtype == x.grad.dtype == torch.float32


@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (3, 2)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("part", ["forward", "grad_input", "grad_weight"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 5e-5), (torch.bfloat16, 0.5)]
)
def test_a_product_is_the_same_function(part, bias, stride, dtype, tolerance):
    """Each of the three alone, so that a wrong one cannot hide."""
    torch.manual_seed(0)
    x = torch.randn(2, 16, 5, 7, dtype=dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(24, 16, 1, 1, dtype=dtype, requires_grad=True)
    b = torch.randn(24, dtype=dtype, requires_grad=True) if bias else None
    wanted = [t for t in (x.requires_grad_(), weight, b) if t is not None]
    place = (stride, (0, 0), (1, 1), 1)
    merge = Merge(**{part: PRODUCT})
    expected, found = F.conv2d(x, weight, b, *place), regrouped_conv2d(x, weight, b, *place, merge)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    grad = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(found, wanted, grad),
        torch.autograd.grad(expected, wanted, grad),
        strict=True,
    ):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("kernel", "groups", "expected"), [(1, 1, True), (3, 1, False), (1, 2, False)]
)
def test_which_convolutions_are_products(kernel, groups, expected):
    weight = torch.zeros(4, 4 // groups, kernel, kernel)
    assert is_product(weight, groups) == expected


def test_products_are_measured_too():
    x, weight = torch.randn(1, 8, 4, 4), torch.randn(4, 8, 1, 1)
    assert all(list(part) == [1, PRODUCT] for part in measure(x, weight, (1, 1), 1).values())


@pytest.mark.parametrize(
    ("groups", "channels", "expected"),
    [(32, 4, [1, 2, 4, 8, 16]), (32, 32, [1, 2]), (32, 64, [1]), (1, 64, [1]), (6, 8, [1, 2])],
)
def test_candidates(groups, channels, expected):
    assert candidates(groups, channels) == expected


def test_a_merge_has_to_win_clearly():
    times = {
        "forward": {1: 10.0, 2: 8.9, 4: 9.5},
        "grad_input": {1: 10.0, 2: 9.1},
        "grad_weight": {1: 10.0, 2: 12.0, 4: 3.0},
    }
    assert chosen(times) == Merge(2, 1, 4)


def test_every_part_is_measured():
    x, weight, _ = tensors(torch.float32)
    state = torch.get_rng_state()
    times = measure(x, weight, (1, 1), GROUPS)
    assert torch.equal(torch.get_rng_state(), state)  # a run's random numbers are its own
    assert set(times) == {"forward", "grad_input", "grad_weight"}
    for part in times.values():
        assert list(part) == [1, 2, 4, 8] and min(part.values()) > 0


@pytest.fixture
def fake(monkeypatch):
    calls = []

    def measure(x, weight, stride, groups):
        calls.append(tuple(x.shape))
        return {part: {1: 2.0, 2: 1.0} for part in measured.PARTS}

    monkeypatch.setattr(measured, "measure", measure)
    return calls


def test_measured_once_and_kept_on_disk(tmp_path, fake):
    x, weight, _ = tensors()
    for _ in range(2):  # two processes, one after the other
        regrouping = MeasuredRegrouping(tmp_path / "cache")
        for _ in range(3):
            assert regrouping(x, weight, (1, 1), GROUPS) == Merge(2, 2, 2)
    assert len(fake) == 1
    (key,) = json.loads((tmp_path / "cache" / "regroup.json").read_text())
    for part in (f"torch {torch.__version__}", "float64", "32 to 48 channels in 8 groups"):
        assert part in key


@pytest.mark.parametrize(
    ("size", "again"), [((2, 10, 8), False), ((2, 18, 16), True), ((4, 9, 8), True)]
)
def test_sizes_by_factors_of_two(fake, size, again):
    regrouping = MeasuredRegrouping(None)
    for shape in ((2, 9, 8), size):
        x, weight, _ = tensors(size=shape)
        regrouping(x, weight, (1, 1), GROUPS)
    assert len(fake) == 1 + again


def test_other_strides_types_and_layouts_are_others(fake):
    regrouping = MeasuredRegrouping(None)
    x, weight, _ = tensors()
    last = x.contiguous(memory_format=torch.channels_last)
    regrouping(x, weight, (1, 1), GROUPS)
    regrouping(x, weight, (2, 2), GROUPS)
    regrouping(x.float(), weight.float(), (1, 1), GROUPS)
    regrouping(last, weight, (1, 1), GROUPS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        regrouping(x.float(), weight.float(), (1, 1), GROUPS)
    assert len(fake) == 5 == len(regrouping.known)


def test_nothing_is_measured_without_gradients(fake):
    x, weight, _ = tensors()
    with torch.no_grad():
        assert MeasuredRegrouping(None)(x, weight, (1, 1), GROUPS) == Merge()
    assert not fake


@pytest.mark.parametrize("content", ["", "[1]", '{"a": {"forward": {}}}', "{", '{"a": 3}'])
def test_a_broken_cache_is_measured_again(tmp_path, fake, caplog, content):
    (tmp_path / "regroup.json").write_text(content)
    with caplog.at_level(logging.WARNING):
        regrouping = MeasuredRegrouping(tmp_path)
    assert "measuring again" in caplog.text
    x, weight, _ = tensors()
    assert regrouping(x, weight, (1, 1), GROUPS) == Merge(2, 2, 2)
    assert len(json.loads((tmp_path / "regroup.json").read_text())) == 1


def test_a_folder_that_cannot_be_written(tmp_path, fake):
    (tmp_path / "file").write_text("")
    regrouping = MeasuredRegrouping(tmp_path / "file")
    x, weight, _ = tensors()
    assert regrouping(x, weight, (1, 1), GROUPS) == Merge(2, 2, 2)
    regrouping(x, weight, (1, 1), GROUPS)
    assert len(fake) == 1


def test_where_it_is_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("RESNEXT_DET_CACHE", str(tmp_path))
    assert measured.cache_folder() == tmp_path
    monkeypatch.delenv("RESNEXT_DET_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert measured.cache_folder() == tmp_path / "resnext_det"


def test_a_plain_choice_is_the_plain_convolution():
    x, weight, b = tensors(torch.float32, bias=True)
    expected = F.conv2d(x, weight, b, *PLACE[2])
    found = grouped_conv2d(x, weight, b, *PLACE[2], lambda *_: Merge())
    assert torch.equal(found, expected)


def test_what_was_measured_in_words():
    """The chosen merge of each part beside the plain convolution's time."""
    times = {1: 2.0, 2: 1.0, measured.PRODUCT: 3.0}
    product, plain = {1: 2.0, measured.PRODUCT: 0.5}, {1: 2.0, 2: 1.9}
    known = {"b": dict(zip(measured.PARTS, (times, product, plain), strict=True)), "a": {}}
    known["a"] = known["b"]
    row = ("2: 1.00 of 2.00", "product: 0.50 of 2.00", "-")
    assert measured.rows(known) == [("a", *row), ("b", *row)]


def test_measuring_is_said_once(tmp_path, fake, caplog):
    regrouping = MeasuredRegrouping(tmp_path)
    with caplog.at_level(logging.INFO):
        for size in ((2, 9, 8), (2, 18, 16)):
            x, weight, _ = tensors(size=size)
            regrouping(x, weight, (1, 1), GROUPS)
    assert len(fake) == 2 and len(caplog.records) == 1
    assert str(tmp_path) in caplog.text
