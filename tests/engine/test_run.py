"""Guards the frame of a run: no line is logged twice, a used folder is refused, JSON has no NaN."""

import json
import logging
import os
from pathlib import Path

import pytest
import torch

from resnext_det.config import load_cfg
from resnext_det.engine import run
from resnext_det.engine.folders import kind_of_run
from resnext_det.engine.run import (
    choose_workers,
    prepare_cpu,
    record_evaluation,
    record_run,
    start_run,
    write_json,
)
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
    for name in ("first", "second"):
        cfg = run_in(tmp_path / name)
        logging.getLogger("resnext_det").info("before the record of %s", name)
        assert not (tmp_path / name).exists()
        record_run(cfg)
    capsys.readouterr()
    logging.getLogger("resnext_det").info("a line of the second run")
    assert capsys.readouterr().out.count("a line of the second run") == 1
    logs = [tmp_path.joinpath(name, "log.txt") for name in ("first", "second")]
    for handler in logging.getLogger("resnext_det").handlers:
        handler.flush()
    found = [path.exists() and "a line of the second run" in path.read_text() for path in logs]
    assert found == [False, True]
    assert logs[1].read_text().count("before the record of second") == 1
    assert "of first" not in logs[1].read_text()


@pytest.mark.parametrize("below", [(), ("a", "b")])
def test_a_place_that_is_a_file(tmp_path, below):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is no folder; choose an OUTPUT_DIR"):
        run_in(tmp_path.joinpath("file", *below))


def test_folder_of_another_run_is_refused(tmp_path):
    write_json(tmp_path / "run.json", {})
    with pytest.raises(InputError, match=f"{tmp_path}: holds a run already.*--resume"):
        run_in(tmp_path)


# ---- the record ----

KINDS = {
    '{"kind": "evaluation"}': "evaluation",
    '{"kind": "training", "command": ["--eval-only"]}': "training",
    '{"command": ["tools/x.py", "--eval-only"]}': "evaluation",  # of before there was a kind
    '{"command": ["tools/x.py"]}': "training",
    '{"kind": "other"}': "training",
    '{"command": 3}': "training",
    "[]": "training",
    "{": "training",
    "\ud800": "training",  # no text
}


@pytest.mark.parametrize("text, kind", KINDS.items(), ids=range(len(KINDS)))
def test_kind_of_a_run(tmp_path, text, kind):
    assert kind_of_run(tmp_path) is None
    (tmp_path / "run.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    assert kind_of_run(tmp_path) == kind


def recorded(folder):
    return json.loads((folder / "run.json").read_text())


def cfg_in(folder, *opts):
    return load_cfg(None, ["OUTPUT_DIR", str(folder), *opts])


@pytest.mark.parametrize("later", ["C", "PyTorch"])
def test_other_kernels_are_told(tmp_path, monkeypatch, caplog, later):
    """A run that goes on where there is no compiler, or without the switch."""
    monkeypatch.setattr(run, "kernels_of", lambda device: "C")
    record_run(cfg_in(tmp_path))
    assert recorded(tmp_path)["kernels"] == "C"
    monkeypatch.setattr(run, "kernels_of", lambda device: later)
    with caplog.at_level("INFO"):
        record_run(cfg_in(tmp_path), precision="bf16")
    assert f"convolutions in bf16, kernels in {later}" in caplog.text
    assert ("had other kernels" in caplog.text) == (later != "C")


def test_a_record_says_what_kind_and_which_arithmetic(tmp_path):
    record_run(cfg_in(tmp_path / "a"), precision="bf16")
    found = recorded(tmp_path / "a")
    assert (found["kind"], found["precision"]) == ("training", "bf16")
    assert found["command"] and found["started"] and found["environment"]["torch"]
    record_evaluation(cfg_in(tmp_path / "b"))
    assert recorded(tmp_path / "b")["kind"] == "evaluation"


def test_an_evaluation_is_recorded_anew(tmp_path):
    """With its own settings, and without the results of the one before."""
    record_evaluation(cfg_in(tmp_path, "DATA.CROP_SIZE", "224"), precision="fp32")
    write_json(tmp_path / "results.json", {"old": 1})
    record_evaluation(cfg_in(tmp_path, "DATA.CROP_SIZE", "320"), precision="bf16")
    assert "CROP_SIZE: 320" in (tmp_path / "config.yaml").read_text()
    assert recorded(tmp_path)["precision"] == "bf16"
    assert not (tmp_path / "results.json").exists()


def test_a_training_run_is_not_evaluated_into(tmp_path):
    record_run(cfg_in(tmp_path))
    write_json(tmp_path / "results.json", {"its": "own"})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for refused in (
        lambda: record_evaluation(cfg_in(tmp_path, "SEED", "3")),
        lambda: start_run(cfg_in(tmp_path, "MODEL.DEVICE", "cpu"), new=False, evaluates=True),
    ):
        with pytest.raises(InputError, match=f"{tmp_path}: holds a training run .*such as .*/eval"):
            refused()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_evaluation_is_not_gone_on_with(tmp_path):
    record_evaluation(cfg_in(tmp_path))
    with pytest.raises(InputError, match=f"{tmp_path}: holds an evaluation .*another OUTPUT_DIR"):
        record_run(cfg_in(tmp_path))
    assert recorded(tmp_path)["kind"] == "evaluation"


def test_unset_seed_becomes_zero(tmp_path):
    assert run_in(tmp_path).SEED == 0


@pytest.mark.parametrize("workers", [0, 1, 10_000])
def test_workers_and_step_share_the_cores(machine, workers):
    threads = machine(cores=4)
    prepare_cpu(load_cfg(None, ["MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", str(workers)]))
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
    prepare_cpu(load_cfg(None, ["MODEL.DEVICE", "cpu"]))


def test_nan_is_written_as_null(tmp_path):
    write_json(tmp_path / "a.json", {"AP": float("nan"), "list": [1.5, float("nan")]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"AP": None, "list": [1.5, None]}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.fixture
def as_found():
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True


def test_kernels_that_repeat(tmp_path, monkeypatch, as_found):
    """On a GPU sums may come in any order; on a CPU the switch changes nothing."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    run_in(tmp_path / "a")
    assert not torch.are_deterministic_algorithms_enabled()
    run_in(tmp_path / "b", "DETERMINISTIC", "True")
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
