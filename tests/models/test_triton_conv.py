"""Guard our own kernels of grouped convolutions: the library's function, and never a stopped run.

Without a GPU, Triton's interpreter computes them (`triton_cases`), and its compiler makes the code
of a GPU without running it. bf16 is left to the GPU's test: the interpreter multiplies it wrongly.
"""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from triton_cases import CASES, Case, errors

from resnext_det.models import measured, regroup
from resnext_det.models.measured import chosen, measure
from resnext_det.models.regroup import Merge, backward_part, forward_part, regrouped_conv2d

PARTS = measured.PARTS
PLACE = ((2, 2), (1, 1), (1, 1), 4)
LIMITS = {"float32": 2e-6, "float16": 2e-3, "bfloat16": 1.5e-2}
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(autouse=True)
def nothing_dropped(monkeypatch):
    monkeypatch.setattr(regroup, "_dropped", set())


@pytest.fixture(scope="module")
def interpreted():
    """What `triton_cases` prints."""
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("triton_cases.py"))],
        env={**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("dropped") == [], done.stderr  # else the library would have been compared
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(interpreted, name):
    """With several sizes of the blocks."""
    found = {key: value for key, value in interpreted.items() if key.startswith(f"{name}, ")}
    assert found
    for results in found.values():
        assert {"out", "grad x", "grad weight"} <= set(results)
        assert max(results.values()) < LIMITS[CASES[name].dtype], results


@pytest.mark.slow
def test_kernels_are_measured_beside_the_library(interpreted):
    assert interpreted["measured"] == {part: [1, 2, -32, -64] for part in PARTS}


@pytest.mark.parametrize(
    ("groups", "ins", "outs", "expected"),
    [
        (32, 4, 4, [16, 32]),
        (32, 16, 16, [16, 32]),
        (32, 32, 32, [32, 64]),
        (2, 40, 40, [64]),
        (4, 4, 4, [16]),
        (5, 6, 6, [16]),
        (6, 4, 8, [16, 32]),
        (2, 128, 128, []),
        (1, 64, 64, []),
        (32, 1, 1, []),
    ],
)
def test_sizes_of_blocks(groups, ins, outs, expected):
    pytest.importorskip("triton")
    from resnext_det.models import triton_conv as kernels

    x = torch.empty(1, groups * ins, 4, 4).contiguous(memory_format=torch.channels_last)
    weight = torch.empty(groups * outs, ins, 3, 3)
    assert kernels.blocks(x, weight, (1, 1), groups) == expected


@pytest.mark.parametrize("other", ["contiguous", "float64", "1x1", "stride", "size"])
def test_what_is_not_served(other):
    pytest.importorskip("triton")
    from resnext_det.models import triton_conv as kernels

    side = 2**12 if other == "size" else 4
    x = torch.empty(1, 128, side, side, device="meta")
    if other != "contiguous":
        x = x.contiguous(memory_format=torch.channels_last)
    x = x.double() if other == "float64" else x
    weight = torch.empty(128, 4, *[1 if other == "1x1" else 3] * 2, device="meta")
    stride = (1, 2) if other == "stride" else (1, 1)
    assert kernels.blocks(x, weight, stride, 32) == []


CODE = [
    ("_convolve_block", "fp16", 16, {"UP": 1}),
    ("_convolve_block", "bf16", 16, {"UP": 2, "ROW": 1, "COL": 1, "SHIFT": 1, "REACH": -1}),
    ("_correlate_block", "bf16", 32, {}),
    ("_correlate_block", "fp32", 64, {}),
]


@pytest.mark.parametrize(("kernel", "dtype", "block", "constants"), CODE)
def test_the_compiler_takes_them(monkeypatch, tmp_path, kernel, dtype, block, constants):
    """Code of an A100; nothing is run. Newer GPUs have 99 KiB of shared memory at least."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from resnext_det.models import triton_conv

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    own = getattr(triton_conv, kernel)
    values = {"GROUPS": 32, "IN": 4, "OUT": 4, "STEP": 1, "SHIFT": -1, "REACH": 1}
    values |= {"ROW": 0, "COL": 0, "PRECISION": "tf32", "PACKED": block // 4, "BLOCK": block}
    values |= {"TILE": triton_conv.PIXELS[block] if kernel == "_convolve_block" else 64}
    values |= constants
    values = {name: value for name, value in values.items() if name in own.arg_names}
    kinds = dict.fromkeys(("source", "weights", "bias", "slopes"), f"*{dtype}")
    kinds["target"] = f"*{dtype}" if kernel == "_convolve_block" else "*fp32"
    signature = {
        name: "constexpr" if name in values else kinds.get(name, "i32") for name in own.arg_names
    }
    source = ASTSource(fn=own, signature=signature, constexprs=values)
    code = triton.compile(source, target=GPUTarget("cuda", 80, 32))
    assert "mma.sync" in code.asm["ptx"]  # matrix units are used
    assert code.metadata.shared <= 99 * 1024


# ---- what a failing kernel does to a run: nothing ----


def as_library(part):
    """A kernel that gives the library's result."""
    if part == "forward":
        return lambda x, weight, bias, place, block: forward_part(x, weight, bias, place, 1)
    return lambda grad, x, weight, place, block: backward_part(part, grad, x, weight, place, 1)


def wrong(part):
    return lambda *arguments: as_library(part)(*arguments) * 1.2


def no_number(part):
    return lambda *arguments: as_library(part)(*arguments) * float("nan")


def failing(part):
    def fail(*_):
        raise RuntimeError(f"out of resources:\nshared memory, {part}")

    return fail


@pytest.fixture
def kernels(monkeypatch):
    """Puts other kernels in place of ours, also on a CPU: kernels(forward=wrong, ...)."""

    def put(**kinds):
        own = {part: kinds.get(part, as_library)(part) for part in PARTS}
        monkeypatch.setattr(regroup, "own_kernels", lambda: SimpleNamespace(**own))
        monkeypatch.setattr(measured, "tiles", lambda *_: [-16, -32])

    return put


def layer(dtype=torch.float32):
    torch.manual_seed(0)
    x = torch.randn(2, 16, 7, 6, dtype=dtype).contiguous(memory_format=torch.channels_last)
    return x.requires_grad_(), torch.randn(16, 4, 3, 3, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("bad", [None, *PARTS])
@pytest.mark.parametrize("kind", [wrong, no_number, failing])
def test_only_what_agrees_is_measured(kernels, caplog, kind, bad):
    kernels(**{bad: kind} if bad else {})
    with caplog.at_level(logging.WARNING):
        times = measure(*layer(), (2, 2), 4)
    for part, found in times.items():
        assert list(found) == [1, 2, 4] + [-16, -32] * (part != bad)
    words = {wrong: "off by 0.2", no_number: "off by nan", failing: "out of resources: shared"}
    assert len(caplog.records) == (bad is not None)  # one, of two kernels
    assert bad is None or (words[kind] in caplog.text and bad in caplog.text)


def test_one_that_fails_later_leaves_the_work_to_the_library(kernels, caplog):
    """As when the driver is another than that of the measurement."""
    kernels(forward=failing, grad_input=failing, grad_weight=failing)
    x, weight = layer()
    expected = F.conv2d(x, weight, None, *PLACE)
    slopes = torch.randn_like(expected)
    true = [expected, *torch.autograd.grad(expected, [x, weight], slopes)]
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            out = regrouped_conv2d(x, weight, None, *PLACE, Merge(-16, -16, -32))
            found = [out, *torch.autograd.grad(out, [x, weight], slopes)]
    for ours, theirs in zip(found, true, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert len(caplog.records) == 1 and "\n" not in caplog.records[0].getMessage()
    assert regroup._dropped == {("forward", -16), ("grad_input", -16), ("grad_weight", -32)}


def test_a_kernel_that_wins_is_chosen():
    times = {1: 2.0, 4: 1.5, -16: 1.0, -32: 1.1}
    known = dict(zip(PARTS, (times, {1: 2.0, -32: 1.9}, {1: 2.0, -32: 0.5}), strict=True))
    assert chosen(known) == Merge(-16, 1, -32)
    ((_, *cells),) = measured.rows({"a layer": known})
    assert cells == ["blocks of 16: 1.00 of 2.00", "-", "blocks of 32: 0.50 of 2.00"]


def test_none_on_a_cpu(monkeypatch):
    """Triton is not even imported there."""
    monkeypatch.setattr(regroup, "own_kernels", lambda: pytest.fail("imported"))
    assert regroup.tiles(*layer(), (1, 1), 4) == []


@pytest.mark.parametrize("fault", [None, ImportError("no symbol\nof that name"), OSError("x.so")])
def test_without_triton(monkeypatch, caplog, fault):
    """Not installed, or of another torch."""

    def broken(*_):
        raise fault

    util = SimpleNamespace(find_spec=lambda name: None if fault is None else SimpleNamespace())
    fake = SimpleNamespace(util=util, import_module=broken)
    monkeypatch.setattr(regroup, "importlib", fake)
    regroup.own_kernels.cache_clear()
    try:
        assert regroup.own_kernels() is regroup.own_kernels() is None
        assert len(caplog.records) == (fault is not None)
    finally:
        regroup.own_kernels.cache_clear()


# ---- on a GPU ----


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("width", "block"), [(4, 16), (4, 32), (16, 32), (32, 64)])
def test_on_a_gpu(monkeypatch, dtype, stride, width, block):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    case = Case(32, width, width, (3, 29, 30), stride=stride, dtype=dtype, bias=True)
    found = errors(case, block, "cuda")
    assert not regroup._dropped
    assert max(found.values()) < {**LIMITS, "float32": 2e-5}[dtype], found


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_measured_on_a_gpu(dtype):
    x = torch.randn(4, 128, 28, 28, device="cuda").to(dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(128, 4, 3, 3, device="cuda").to(dtype)
    for found in measure(x, weight, (1, 1), 32).values():
        assert {-16, -32} <= set(found)
    assert not regroup._dropped
