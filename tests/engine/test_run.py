"""Guards the frame of a run: no line is logged twice, a used folder is refused, JSON has no NaN."""

import json
import logging
import os
from pathlib import Path

import pytest
import torch

from resnext_det.config import load_cfg
from resnext_det.engine import run
from resnext_det.engine.run import choose_workers, share_cores, start_run, write_json
from resnext_det.errors import InputError

CONFIGS = Path(__file__).parents[2] / "configs"


def run_in(folder, *opts):
    cfg = load_cfg(None, ["OUTPUT_DIR", str(folder), "MODEL.DEVICE", "cpu", *opts])
    start_run(cfg, new=True)
    return cfg


@pytest.fixture
def machine(monkeypatch):
    """machine(cores, processes): what this one pretends to be; gives the threads set."""
    threads = []
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)

    def pretend(cores, processes=1):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores), raising=False)
        monkeypatch.setattr(run.comm, "get_local_size", lambda: processes)
        return threads

    return pretend


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
def test_workers_and_step_share_the_cores(machine, workers):
    threads = machine(cores=4)
    share_cores(load_cfg(None, ["MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", str(workers)]))
    assert threads == [max(1, 4 - workers)]


@pytest.mark.parametrize(
    "cores, processes, workers, threads",
    [(1, 1, 0, 1), (2, 1, 1, 1), (8, 1, 7, 1), (9, 1, 8, 1), (64, 1, 8, 56), (64, 8, 7, 1)]
    + [(64, 4, 8, 8), (4, 8, 0, 1), (10, 4, 1, 1)],
)
def test_workers_are_chosen_by_the_cores(
    tmp_path, machine, capsys, cores, processes, workers, threads
):
    """A process's share but one, 8 at most; the step takes the cores that are left."""
    found = machine(cores, processes)
    cfg = run_in(tmp_path, "DATALOADER.NUM_WORKERS", "-1")
    assert cfg.DATALOADER.NUM_WORKERS == workers and found == [threads]
    assert f"NUM_WORKERS -1: {workers} data workers, by" in capsys.readouterr().out


def test_torchrun_says_how_many_processes_there_are(machine, monkeypatch):
    machine(cores=16, processes=1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    cfg = load_cfg(None, ["DATALOADER.NUM_WORKERS", "-1"])
    choose_workers(cfg)
    assert cfg.DATALOADER.NUM_WORKERS == 3


@pytest.mark.parametrize("workers", [0, 3])
def test_workers_set_by_the_user_are_kept(machine, workers):
    machine(cores=16)
    cfg = load_cfg(None, ["DATALOADER.NUM_WORKERS", str(workers)])
    choose_workers(cfg)
    assert cfg.DATALOADER.NUM_WORKERS == workers


def test_fewer_workers_than_minus_one_are_refused(tmp_path):
    with pytest.raises(InputError, match="DATALOADER.NUM_WORKERS is -2; set it to 0 or more, or"):
        run_in(tmp_path, "DATALOADER.NUM_WORKERS", "-2")


@pytest.mark.parametrize(
    "name", ["imagenet/X50_32x4d", "imagenet5k/X50_32x4d", "cifar/X29_8x64d_cifar10"]
)
def test_recipes_leave_the_workers_to_the_machine(name):
    assert load_cfg(CONFIGS / f"{name}.yaml", []).DATALOADER.NUM_WORKERS == -1


def test_threads_set_by_the_user_are_kept(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setattr(torch, "set_num_threads", lambda _: pytest.fail("changed"))
    share_cores(load_cfg(None, ["MODEL.DEVICE", "cpu"]))


def test_nan_is_written_as_null(tmp_path):
    write_json(tmp_path / "a.json", {"AP": float("nan"), "list": [1.5, float("nan")]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"AP": None, "list": [1.5, None]}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
