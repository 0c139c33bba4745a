"""One seed fixes everything: each step and each sample draws from a stream of its own.

Detectron2 keeps one random state for a whole run, so a resumed run continues with other
numbers. Here the state is set anew from (seed, what, position) before every training step
and every sample; a run that is stopped and resumed therefore repeats the same numbers, and
the number of data workers does not matter.
"""

import contextlib
import os
import random
from collections.abc import Callable, Iterator

import numpy as np
import torch


def _mix(*numbers: int) -> int:
    """A 32-bit seed from several numbers, well apart even for neighbouring ones."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def seed_all(*numbers: int) -> None:
    """Seed Python, NumPy and torch from any number of non-negative integers."""
    _seed(torch.manual_seed, numbers)


def _seed(seed_torch: Callable[[int], object], numbers: tuple[int, ...]) -> None:
    seed = _mix(*numbers)
    random.seed(seed)
    np.random.seed(seed)
    seed_torch(seed)


def repeat_on_gpus() -> None:
    """Let GPUs take kernels that sum in one order, for the whole process (DETERMINISTIC).

    CPUs do so anyway. What has no such kernel, RoI pooling's backward among them, warns once and
    may still differ in the last digits (torch.use_deterministic_algorithms lists all).
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before cuBLAS is first used
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a guard against other faults


@contextlib.contextmanager
def own_stream(*numbers: int) -> Iterator[None]:
    """Run a block with the CPU's streams as `seed_all` sets them, then put them back."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    # torch.manual_seed also prepares CUDA, at 0.2 ms a sample, and would not be undone there.
    _seed(torch.default_generator.manual_seed, numbers)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
