"""Guards the frame of a run: no line is logged twice, a used folder is refused, JSON has no NaN."""

import json
import logging
import os

import pytest
import torch

from resnext_det.config import load_cfg
from resnext_det.engine.run import share_cores, start_run, write_json
from resnext_det.errors import InputError


def run_in(folder):
    cfg = load_cfg(None, ["OUTPUT_DIR", str(folder), "MODEL.DEVICE", "cpu"])
    start_run(cfg, new=True)
    return cfg


def test_two_runs_of_one_process_log_each_line_once(tmp_path, capsys):
    run_in(tmp_path / "first")
    run_in(tmp_path / "second")
    capsys.readouterr()
    logging.getLogger("resnext_det").info("a line of the second run")
    assert capsys.readouterr().out.count("a line of the second run") == 1
    logs = [tmp_path.joinpath(name, "log.txt") for name in ("first", "second")]
    for handler in logging.getLogger("resnext_det").handlers:
        handler.flush()
    found = [path.exists() and "a line of the second run" in path.read_text() for path in logs]
    assert found == [False, True]


def test_folder_of_another_run_is_refused(tmp_path):
    write_json(tmp_path / "run.json", {})
    with pytest.raises(InputError, match=f"{tmp_path}: holds a run already.*--resume"):
        run_in(tmp_path)


def test_unset_seed_becomes_zero(tmp_path):
    assert run_in(tmp_path).SEED == 0


@pytest.mark.parametrize("workers", [0, 1, 10_000])
def test_workers_and_step_share_the_cores(monkeypatch, workers):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(4), raising=False)
    share_cores(load_cfg(None, ["MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", str(workers)]))
    assert threads == [max(1, 4 - workers)]


def test_threads_set_by_the_user_are_kept(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setattr(torch, "set_num_threads", lambda _: pytest.fail("changed"))
    share_cores(load_cfg(None, ["MODEL.DEVICE", "cpu"]))


def test_nan_is_written_as_null(tmp_path):
    write_json(tmp_path / "a.json", {"AP": float("nan"), "list": [1.5, float("nan")]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"AP": None, "list": [1.5, None]}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
