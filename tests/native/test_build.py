"""Guard how the kernels in C come to be: built once, by whom, and what if they cannot."""

import logging
import os
import subprocess
import sys

import pytest
import torch

from resnext_det.native import build, kernels_serve, trust

PARTS = [
    *("norm_forward", "norm_backward", "roi_pool_backward"),
    *("roi_align_forward", "roi_align_backward"),
]
needs_compiler = pytest.mark.skipif(build.library() is None, reason="no C compiler here")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RESNEXT_DET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def found(caplog):
    """The library as a new process would have it, and what the log says."""
    with caplog.at_level(logging.INFO, "resnext_det.native"):
        library = build.library.__wrapped__()
    return library, caplog.text


@needs_compiler
def test_built_once_and_kept(cache, caplog):
    library, text = found(caplog)
    assert library is not None and "compiling kernels in C, once" in text
    (kept,) = cache.iterdir()  # and nothing beside it
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
def test_another_source_is_another_file(cache, caplog, tmp_path, monkeypatch):
    first, _ = build._built(), found(caplog)
    changed = tmp_path / "norm.c"
    changed.write_text(build.SOURCES[1].read_text() + "\nint added;\n")
    common, _, *others = build.SOURCES
    (tmp_path / "common.h").write_text(common.read_text())
    monkeypatch.setattr(build, "SOURCES", (common, changed, *others))
    assert build._built() != first
    monkeypatch.setattr(build, "instructions", lambda: "another processor's")
    assert len({first, build._built()}) == 2


def test_switched_off(cache, caplog, monkeypatch):
    monkeypatch.setenv("RESNEXT_DET_NATIVE", "off")
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


@pytest.mark.parametrize(
    ("does", "says"),
    [
        ("echo 'mycc: no such machine' >&2; exit 1", "mycc: no such machine"),
        ("exit 3", "exit status 3"),
        ('[ "$1" = --version ] || for last; do :; done; echo junk > "$last"', "native-"),
    ],
)
def test_with_a_broken_compiler(cache, caplog, monkeypatch, tmp_path, does, says):
    """It fails, or what it writes is no library: one line, and PyTorch's operators."""
    if "junk" in does:
        does = (
            'if [ "$1" = --version ]; then echo 1; else for last; do :; done; echo j > "$last"; fi'
        )
    monkeypatch.setenv("CC", compiler(tmp_path, does))
    library, text = found(caplog)
    assert library is None and says in text
    assert not cache.exists() or not [path for path in cache.iterdir() if path.is_dir()]


@needs_compiler
@pytest.mark.parametrize("mode", [0o722, 0o702])
def test_what_others_may_write_is_not_loaded(cache, caplog, mode):
    path = build._built()
    path.write_bytes(b"not what we built")
    path.chmod(mode)
    library, text = found(caplog)
    assert library is not None and "compiling" in text
    assert path.read_bytes()[:4] == b"\x7fELF" and path.stat().st_mode & 0o022 == 0


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
    assert len(list(cache.iterdir())) == 1


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


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_first_asked_in_inference_mode(dtype):
    with torch.inference_mode():
        assert trust._agrees.__wrapped__(dtype)


def test_no_library_no_kernels(monkeypatch):
    monkeypatch.setattr(trust, "library", lambda: None)
    monkeypatch.setattr(trust, "_agrees", trust._agrees.__wrapped__)
    assert not kernels_serve(torch.zeros(1))
