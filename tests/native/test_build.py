"""Guard how the kernels in C come to be: built once, by whom, and what if they cannot."""

import contextlib
import logging
import os
import subprocess
import sys

import pytest
import torch
from torch._subclasses import FakeTensorMode

from resnext_det import machine
from resnext_det.native import Norm, build, kernels_serve, norm_backward, norm_forward, trust

PARTS = [
    *("norm_forward", "norm_backward", "roi_pool_forward", "roi_pool_backward"),
    *("roi_align_forward", "roi_align_backward"),
]
needs_compiler = pytest.mark.skipif(build.library() is None, reason="no C compiler here")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RESNEXT_DET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def built(cache):
    """The library's file, built in the cache."""
    folder = cache / "native"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return build._built(folder)


def found(caplog):
    """The library as a new process would have it, and what the log says."""
    with caplog.at_level(logging.INFO, "resnext_det.native"):
        library = build.library.__wrapped__()
    return library, caplog.text


@needs_compiler
def test_built_once_and_kept(cache, caplog):
    library, text = found(caplog)
    assert library is not None and "compiling kernels in C" in text
    (kept,) = (cache / "native").iterdir()  # and nothing beside it
    caplog.clear()
    before = kept.stat().st_mtime_ns
    library, text = found(caplog)
    assert library is not None and text == "" and kept.stat().st_mtime_ns == before


@needs_compiler
def test_computes_on_the_threads_of_torch(cache, caplog):
    """A second OpenMP's threads would stand in the way of the first one's."""

    def loaded():
        return {line.split()[-1] for line in build.LOADED.read_text().splitlines() if ".so" in line}

    before = loaded()
    found(caplog)
    (new,) = loaded() - before
    assert new.startswith(str(cache))


@needs_compiler
def test_another_source_is_another_file(cache, tmp_path, monkeypatch):
    first = built(cache)
    changed = tmp_path / "norm.c"
    changed.write_text(build.SOURCES[1].read_text() + "\nint added;\n")
    common, _, *others = build.SOURCES
    (tmp_path / "common.h").write_text(common.read_text())
    monkeypatch.setattr(build, "SOURCES", (common, changed, *others))
    assert built(cache) != first
    monkeypatch.setattr(build, "instructions", lambda: "another processor's")
    assert built(cache) != first


@pytest.mark.parametrize("value", ["off", "OFF", "0", "false", "no"])
def test_switched_off(cache, caplog, monkeypatch, value):
    monkeypatch.setenv("RESNEXT_DET_NATIVE", value)
    assert found(caplog) == (None, "") and not cache.exists()


def test_without_a_compiler(cache, caplog, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    library, text = found(caplog)
    assert library is None
    assert "no kernels in C, PyTorch's are used: there is no C compiler" in text


def compiler(folder, text):
    path = folder / "mycc"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@needs_compiler
def test_a_compiler_with_words_of_its_own(cache, caplog, monkeypatch):
    monkeypatch.setenv("CC", "gcc -DUNUSED=1")
    assert build._compiler()[1:] == ["-DUNUSED=1"]
    assert found(caplog)[0] is not None


JUNK = 'if [ "$1" = --version ]; then echo 1; else for last; do :; done; echo j > "$last"; fi'


@pytest.mark.parametrize(
    ("does", "says"),
    [
        ("echo 'mycc: no such machine' >&2; exit 1", "mycc: no such machine"),
        ("exit 3", "exit status 3"),
        (JUNK, ".so: file too short"),
    ],
)
def test_with_a_broken_compiler(cache, caplog, monkeypatch, tmp_path, does, says):
    """It fails, or what it writes is no library: one line, and PyTorch's operators."""
    monkeypatch.setenv("CC", compiler(tmp_path, does))
    library, text = found(caplog)
    assert library is None and says in text
    assert not [path for path in (cache / "native").iterdir() if path.is_dir()]


@needs_compiler
@pytest.mark.parametrize("mode", [0o722, 0o702])
def test_what_others_may_write_is_not_loaded(cache, caplog, mode):
    path = built(cache)
    path.write_bytes(b"not what we built")
    path.chmod(mode)
    library, text = found(caplog)
    assert library is not None and "compiling" in text
    assert path.read_bytes()[:4] == b"\x7fELF" and path.stat().st_mode & 0o022 == 0


@needs_compiler
@pytest.mark.parametrize("change", ["a link", "a folder of others"])
def test_what_others_may_put_there_is_not_loaded(cache, caplog, tmp_path, change):
    path = built(cache)
    if change == "a link":
        kept = path.rename(tmp_path / "another.so")
        path.symlink_to(kept)
        path.resolve().write_bytes(b"not what we built")
    else:
        path.write_bytes(b"not what we built")
        path.parent.chmod(0o777)
    library, text = found(caplog)
    assert library is not None and "compiling" in text
    assert not path.is_symlink() and path.exists()


@needs_compiler
def test_where_nothing_may_be_run(cache, caplog, monkeypatch):
    """As on a file system mounted with noexec: built for this process elsewhere."""
    load, places = build.ctypes.CDLL, []

    def refuse(path):
        places.append(path)
        if path.startswith(str(cache)):
            raise OSError(f"{path}: failed to map segment from shared object")
        return load(path)

    monkeypatch.setattr(build.ctypes, "CDLL", refuse)
    assert found(caplog)[0] is not None
    assert [place.startswith(str(cache)) for place in places] == [True, False]


@needs_compiler
def test_without_a_home(monkeypatch, tmp_path, caplog):
    """As a user whom the container does not know."""

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("RESNEXT_DET_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(machine.Path, "home", no_home)
    monkeypatch.setattr(machine.tempfile, "gettempdir", lambda: str(tmp_path))
    assert found(caplog)[0] is not None
    assert [path.name for path in tmp_path.iterdir()] == [f"resnext_det-{os.getuid()}"]


def test_an_environment_whose_path_has_a_blank(monkeypatch, tmp_path):
    maps = tmp_path / "maps"
    path = "/work/my venv/lib/torch/lib/libgomp.so.1"
    maps.write_text(
        f"7f00-7f01 r-xp 00000000 08:01 42    {path}\n7ffd-7ffe rw-p 0 00:00 0 [stack]\n"
    )
    monkeypatch.setattr(build, "LOADED", maps)
    assert str(build._openmp()) == path


@needs_compiler
def test_without_a_cache(tmp_path, caplog, monkeypatch):
    """A folder that cannot be written: built for this process."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RESNEXT_DET_CACHE", str(tmp_path / "file"))
    assert found(caplog)[0] is not None
    assert sorted(tmp_path.iterdir()) == [tmp_path / "file"]


@needs_compiler
def test_processes_at_once(cache):
    """Ranks of one run start together."""
    code = "from resnext_det.native import build; assert build.library() is not None"
    environment = {**os.environ, "RESNEXT_DET_CACHE": str(cache)}
    runs = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(3)]
    assert [run.wait(timeout=300) for run in runs] == [0, 0, 0]
    assert len(list((cache / "native").iterdir())) == 1


@needs_compiler
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("value", [0.5, float("nan")])
def test_wrong_results_are_not_used(monkeypatch, caplog, part, value):
    right = getattr(trust, part)

    def wrong(*arguments, **others):
        result = right(*arguments, **others)
        first = result[0] if isinstance(result, tuple) else result
        first[..., 0] += value
        return result

    monkeypatch.setattr(trust, part, wrong)
    assert not trust._agrees.__wrapped__(torch.float32)
    assert "kernels in C are wrong in torch.float32, PyTorch's are used" in caplog.text


@needs_compiler
def test_a_trial_moves_no_random_numbers():
    state = torch.get_rng_state()
    assert trust._agrees.__wrapped__(torch.bfloat16)
    assert torch.equal(torch.get_rng_state(), state)


@contextlib.contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


MODES = {
    "inference": torch.inference_mode,
    "no gradients": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "another device": lambda: torch.device("meta"),
    "float64": lambda: default_dtype(torch.float64),
    "bf16": lambda: default_dtype(torch.bfloat16),
    "saved elsewhere": lambda: torch.autograd.graph.saved_tensors_hooks(
        lambda x: 0, lambda x: 1 / x
    ),
}


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", MODES)
def test_first_asked_in_another_mode(mode, dtype):
    """Buffers have the type that C writes, and a trial is not the caller's."""
    with MODES[mode]():
        assert trust._agrees.__wrapped__(dtype)


@needs_compiler
@pytest.mark.parametrize("mode", ["float64", "bf16", "another device"])
def test_computed_in_another_mode(mode):
    results = []
    for make in (contextlib.nullcontext, MODES[mode]):
        random = torch.Generator().manual_seed(0)
        x = torch.randn(3, 40, 33, 17, generator=random, dtype=torch.float32, device="cpu")
        x = x.contiguous(memory_format=torch.channels_last)
        weight = x[0, :, 0, 0].clone()
        with make():
            norm = Norm(weight, weight, 1e-5)
            y, kept = norm_forward(x, x, norm, relu=True)
            results.append([y, kept, *norm_backward(x, x, y, norm, kept, relu=True)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@needs_compiler
def test_tensors_without_memory_are_left_alone():
    with FakeTensorMode():
        assert not kernels_serve(torch.zeros(2))
    assert not kernels_serve(torch._neg_view(torch.ones(2)))
    assert kernels_serve(torch.zeros(2))


def test_no_library_no_kernels(monkeypatch):
    monkeypatch.setattr(trust, "library", lambda: None)
    monkeypatch.setattr(trust, "_agrees", trust._agrees.__wrapped__)
    assert not kernels_serve(torch.zeros(1))
