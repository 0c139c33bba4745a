"""Guard the norm in C: PyTorch's values, gradients and statistics, of any shape."""

import pytest
import torch
import torch.nn.functional as F

from resnext_det.native import Norm, build, kernels_serve, norm_backward, norm_forward

pytestmark = pytest.mark.skipif(build.library() is None, reason="no C compiler here")

EPS, MOMENTUM = 1e-5, 0.1
# One block of rows; many, the last one short; channels that fill no vector; the widest there are.
SHAPES = [(2, 16, 3, 5), (3, 40, 33, 17), (1, 3, 50, 60), (2, 2100, 5, 3), (2, 1, 9, 9)]


def inputs(shape, dtype, offset=0.0):
    random = torch.Generator().manual_seed(1)
    maps = [torch.randn(shape, generator=random) for _ in range(3)]
    maps[0] = 2 * maps[0] + offset
    weight, bias = torch.randn(2, shape[1], generator=random).unbind()
    last = [m.to(dtype).contiguous(memory_format=torch.channels_last) for m in maps]
    return *last, weight, bias


def run(x, add, grad, weight, bias, relu):
    """y, mean and variance that moved, gradients."""
    running = torch.full_like(weight, 0.5), torch.full_like(weight, 2.0)
    norm = Norm(weight, bias, EPS, MOMENTUM, running)
    y, kept = norm_forward(x, add, norm, relu)
    grads = norm_backward(grad, x, None if add is None else y, norm, kept, relu)
    return [y, *running, *(g for g in grads if g is not None)]


def expected(x, add, grad, weight, bias, relu):
    """In float64 from the same numbers."""
    leaves = [t.double().requires_grad_() for t in (x, add, weight, bias) if t is not None]
    running = [torch.full((len(weight),), value, dtype=torch.float64) for value in (0.5, 2.0)]
    y = F.batch_norm(leaves[0], *running, *leaves[-2:], True, MOMENTUM, EPS)
    y = y if add is None else y + leaves[1]
    y = F.relu(y) if relu else y
    return [y.detach(), *running, *torch.autograd.grad(y, leaves, grad.double())]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("with_add", [True, False])
def test_as_in_float64(shape, with_add, relu):
    x, add, grad, weight, bias = inputs(shape, torch.float32, offset=3.0)
    arguments = (x, add if with_add else None, grad, weight, bias, relu)
    for found, wanted in zip(run(*arguments), expected(*arguments), strict=True):
        assert found.dtype == torch.float32
        assert (found - wanted).abs().max() <= 2e-5 * wanted.abs().max()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("with_add", [True, False])
def test_halves_are_rounded_once(shape, with_add):
    """Without a ReLU, whose sign may turn by rounding: within one half step of the exact result."""
    x, add, grad, weight, bias = inputs(shape, torch.bfloat16)
    arguments = (x, add if with_add else None, grad, weight, bias, False)
    y, mean, var, *grads = run(*arguments)
    exact_y, exact_mean, exact_var, *exact = expected(*arguments)
    assert y.dtype == grads[0].dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), exact_y, rtol=2**-8, atol=1e-5)
    torch.testing.assert_close(grads[0].double(), exact[0], rtol=2**-8, atol=2e-5)
    sums = zip((mean, var, *grads[-2:]), (exact_mean, exact_var, *exact[-2:]), strict=True)
    for found, wanted in sums:
        assert (found - wanted).abs().max() <= 2e-5 * wanted.abs().max()
    assert not with_add or torch.equal(grads[1], grad)


def test_the_relu_of_halves_lets_through_what_is_positive():
    x, add, grad, weight, bias = inputs((2, 24, 7, 5), torch.bfloat16)
    y, *_, of_add, _, _ = run(x, add, grad, weight, bias, True)
    assert (y >= 0).all() and (y == 0).any()
    assert torch.equal(of_add, torch.where(y > 0, grad, torch.zeros(())).to(grad.dtype))


def test_a_large_mean_costs_no_digits():
    """E[x^2] - E[x]^2 in float32 would leave nothing of this variance."""
    x, _, grad, weight, bias = inputs((4, 32, 20, 20), torch.float32, offset=3000.0)
    found, wanted = (f(x, None, grad, weight, bias, False) for f in (run, expected))
    assert (found[2] - wanted[2]).abs().max() <= 1e-4 * wanted[2].abs().max()
    assert (found[0] - wanted[0]).abs().max() <= 2e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits_with_any_number_of_threads(dtype):
    x, add, grad, weight, bias = inputs((3, 40, 33, 17), dtype)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(run(x, add, grad, weight, bias, True))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_hidden(value):
    """A diverged run has to show itself in its loss."""
    x, _, grad, weight, bias = inputs((2, 16, 3, 5), torch.bfloat16)
    x[1, 3, 1, 1] = value
    y, *_ = run(x, None, grad, weight, bias, True)
    assert y[:, 3].isnan().any() and y[:, :3].isfinite().all() and y[:, 4:].isfinite().all()


def test_halves_round_as_torch_does():
    """The same sums in float32, rounded by torch: ties to even, large and subnormal numbers."""
    x, _, _, _, bias = inputs((4, 64, 40, 40), torch.bfloat16)
    scale = 2.0 ** torch.linspace(-130, 120, 64)  # from subnormal halves to the largest
    for norm in (Norm(scale, bias * 0, EPS), Norm(torch.ones(64), bias, EPS)):
        half, _ = norm_forward(x, None, norm, False)
        wide, _ = norm_forward(x.float(), None, norm, False)
        assert torch.equal(half, wide.bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_they_serve_here(dtype):
    assert kernels_serve(torch.zeros(1, dtype=dtype))
    assert not kernels_serve(torch.zeros(1, dtype=torch.float64))
    assert not kernels_serve(torch.zeros(1, dtype=dtype, device="meta"))
