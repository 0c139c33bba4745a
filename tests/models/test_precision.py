"""Guard which arithmetic "auto" means: bf16 where it is there, fast and right."""

import logging

import pytest
import torch

from resnext_det.models import precision
from resnext_det.models.precision import bf16_serves, resolve_precision


@pytest.fixture(autouse=True)
def anew():
    bf16_serves.cache_clear()
    yield
    bf16_serves.cache_clear()


def trial(monkeypatch, seconds, error):
    """What the trial finds in bf16; in fp32 one second and ones."""

    def try_convolution(_device, dtype):
        if dtype == "fp32":
            return torch.ones(3), 1.0
        return torch.tensor([1.0, 1.0, 1.0 + error]), seconds

    monkeypatch.setattr(precision, "_try_convolution", try_convolution)


@pytest.mark.parametrize(
    ("seconds", "error", "expected"),
    [
        (0.3, 0.01, "bf16"),
        (1.2, 0.01, "bf16"),  # noise
        (4.0, 0.01, "fp32"),
        (0.3, 0.5, "fp32"),
        (0.3, float("nan"), "fp32"),
    ],
)
def test_auto(monkeypatch, caplog, seconds, error, expected):
    monkeypatch.setattr(precision, "has_bf16", lambda _device: True)
    trial(monkeypatch, seconds, error)
    with caplog.at_level(logging.WARNING):
        assert resolve_precision("auto", "cpu") == expected
        assert resolve_precision("auto", "cpu") == expected
    said = [record for record in caplog.records if '"auto" is fp32' in record.getMessage()]
    assert len(said) == (expected == "fp32")  # once


def test_without_instructions_nothing_is_tried(monkeypatch):
    monkeypatch.setattr(precision, "has_bf16", lambda _device: False)
    monkeypatch.setattr(precision, "_try_convolution", lambda *_: pytest.fail("tried"))
    assert resolve_precision("auto", "cpu") == "fp32"


@pytest.mark.parametrize("named", ["fp32", "bf16", "fp16"])
def test_what_the_user_names_is_not_tried(monkeypatch, named):
    monkeypatch.setattr(precision, "_try_convolution", lambda *_: pytest.fail("tried"))
    assert resolve_precision(named, "cpu") == named


def test_the_trial_itself():
    state = torch.get_rng_state()
    (expected, plain), (found, half) = (
        precision._try_convolution("cpu", dtype) for dtype in ("fp32", "bf16")
    )
    assert torch.equal(torch.get_rng_state(), state)  # a run's random numbers are its own
    assert found.dtype == expected.dtype == torch.float32 and min(plain, half) > 0
    assert 0 < float((found - expected).abs().max() / expected.abs().max()) < 0.03


def test_while_a_network_is_built_without_memory():
    """`anchors_of` and `check_detector` build on "meta", for a device that has memory."""
    with torch.device("meta"):
        result, seconds = precision._try_convolution("cpu", "bf16")
    assert result.device.type == "cpu" and result.isfinite().all() and seconds > 0
