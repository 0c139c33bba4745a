"""Guard that what is tried out on the machine in the middle of a run moves no random number of it.

A trial is made once a process, at the first use: a resumed run makes it at another step.
"""

import random

import numpy as np
import pytest
import torch

from resnext_det.detection import scorer_backends
from resnext_det.models import compiled, folding, measured, precision


def try_regrouping():
    x, weight = torch.zeros(1, 8, 6, 6), torch.zeros(8, 2, 3, 3)
    measured.measure(x, weight, (1, 1), 4)


def anew(function, *args):
    """The trial itself, not its result of before; what it finds is found again afterwards."""
    function.cache_clear()
    function(*args)


TRIALS = {
    "fused convolutions": lambda: anew(folding.has_fused_convolution, torch.float32),
    "fused convolutions in bf16": lambda: anew(folding.has_fused_convolution, torch.bfloat16),
    "bf16": lambda: anew(precision.bf16_serves, "cpu"),
    "regrouping": try_regrouping,
    "torch.compile": lambda: anew(compiled._why_not, "cpu", "eager"),
    "scorer": lambda: scorer_backends.choose("auto", "bbox"),
}


@pytest.mark.parametrize("trial", TRIALS.values(), ids=TRIALS)
def test_no_random_number_is_drawn(trial):
    states = [torch.get_rng_state(), str(np.random.get_state()), random.getstate()]
    trial()
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == [str(np.random.get_state()), random.getstate()]
