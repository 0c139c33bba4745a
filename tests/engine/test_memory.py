"""Guards that a block's peak is its own, and that of the blocks in it."""

import re

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
