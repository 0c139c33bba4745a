"""Guards that a block's peak is its own, and that of the blocks in it."""

import re
import resource
import subprocess
import sys

import pytest
import torch

from resnext_det.engine.memory import peak_memory

SIZE = 2**28  # 256 MiB of int8: far over what Python itself moves about


def peaks(caplog):
    """{what: GiB of this process}, by the log."""
    found = re.findall(r"peak memory of (\w+): ([0-9.]+) GiB of this process", caplog.text)
    return {what: float(size) for what, size in found}


def test_a_peak_is_of_its_block(caplog):
    with caplog.at_level("INFO"):
        with peak_memory("large"):
            torch.ones(SIZE, dtype=torch.int8)
        with peak_memory("small"):
            pass
    found = peaks(caplog)
    assert 0.2 < found["large"] - found["small"] < 0.4


def test_a_block_in_a_block(caplog):
    """An evaluation while training does not hide what training needed before it."""
    with caplog.at_level("INFO"), peak_memory("training"):
        torch.ones(SIZE, dtype=torch.int8)
        with peak_memory("evaluation"):
            pass
    found = peaks(caplog)
    assert 0.2 < found["training"] - found["evaluation"] < 0.4


FAULTS = """
import resource, sys
from resnext_det.engine.memory import keep_freed_memory
import torch

def faults(steps):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        parts = [torch.ones(6 * 2**20) for _ in range(4)]  # 24 MiB each
        [part + 1 for part in parts]
        del parts
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if not keep_freed_memory():
    sys.exit("no glibc")
print(faults(1), faults(20))
"""


def test_freed_memory_is_used_again():
    """Pages that the system hands out anew: those of the first step, and next to none after it."""
    run = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True)
    if "no glibc" in run.stderr:
        pytest.skip("this C library has no mallopt")
    first, later = map(int, run.stdout.split())
    pages = 8 * 24 * 2**20 // resource.getpagesize()
    assert first > 0.4 * pages and later < pages  # twenty steps would be twenty times as many
