"""Guard that a run whose data worker is killed says why, loses no whole iteration, and goes on.

Real processes of both tools. What a loader alone does is tested in tests/engine/test_workers.py.
"""

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectron2.evaluation import inference_on_dataset
from judge_runs import differences
from kill_runs import LIMIT, POLL, ROOT, Watcher, attempt, left_of, newest_checkpoint, start
from killed_sets import classification, detection
from torch.utils.data import Dataset

from resnext_det.classification.evaluation import build_test_loader
from resnext_det.classification.evaluator import ErrorEvaluator
from resnext_det.config import get_cfg
from resnext_det.engine.workers import KEY
from resnext_det.errors import InputError

GONE = 2.0  # seconds after which a killed run has no worker any more
KILL, BUS, TERM = signal.SIGKILL, signal.SIGBUS, signal.SIGTERM


def workers_of(pid):
    """A process's children with its own command line: it forked them, and started others."""
    own, found = Path(f"/proc/{pid}/cmdline").read_bytes(), []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = (path / "stat").read_text().rsplit(")", 1)[1].split()[1]
            if int(parent) == pid and (path / "cmdline").read_bytes() == own:
                found.append(int(path.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


class Run:
    """A tool's process that trains: its second checkpoint is there."""

    def __init__(self, pipeline, folder):
        self.process, self.streams = start(pipeline, folder, resume=False)
        event = next(event for event in pipeline.events if event.name.endswith("checkpoint"))
        watcher, end = Watcher(event, folder, self.streams / "out"), time.monotonic() + LIMIT
        while watcher.look() < 2:
            assert self.process.poll() is None and time.monotonic() < end, self.errors
            time.sleep(POLL)

    @property
    def errors(self):
        return (self.streams / "err").read_text()

    @property
    def output(self):
        return (self.streams / "out").read_text()


@pytest.fixture
def begin():
    """Starts runs, and ends what is left of them."""
    begun = []

    def one(*args):
        begun.append(Run(*args))
        return begun[-1]

    yield one
    for run in begun:
        if run.process.poll() is None:
            os.killpg(run.process.pid, KILL)
        run.process.wait()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classification")
    pipeline = classification(folder / "data")
    done = attempt(pipeline, folder / "run", resume=False)
    assert done.code == 0, done.errors
    return pipeline, folder / "run"


@pytest.mark.slow
def test_a_killed_worker_costs_no_iteration(undisturbed, begin, tmp_path):
    """And the run that goes on ends as one that nothing disturbed, to the last bit."""
    pipeline, reference = undisturbed
    folder = tmp_path / "run"
    run = begin(pipeline, folder)
    (worker,) = workers_of(run.process.pid)
    os.kill(worker, KILL)
    assert run.process.wait(LIMIT) == 2
    last = run.errors.splitlines()[-1]
    assert last.startswith(f"error: {KEY}: data worker {worker} was killed (SIGKILL), as the")
    assert "Traceback" not in run.errors + run.output
    newest = newest_checkpoint(folder)
    assert f"no batch for the next iteration: --resume goes on behind {newest}" in run.output
    done = attempt(pipeline, folder, resume=True)
    assert done.code == 0 and f"going on at iteration {newest + 1} of" in done.output, done.errors
    assert differences(folder, reference) == []


@pytest.mark.slow
def test_a_bus_error_in_detection(begin, tmp_path):
    run = begin(detection(tmp_path / "data"), tmp_path / "run")
    (worker,) = workers_of(run.process.pid)
    os.kill(worker, BUS)
    assert run.process.wait(LIMIT) == 2
    last = run.errors.splitlines()[-1].lstrip("\0")  # which ends torch's own line
    assert last.startswith(f"error: {KEY}: data worker {worker} died of a bus error, as where")
    assert "docker run --shm-size" in last and "Traceback" not in run.errors + run.output


@pytest.mark.slow
def test_a_stop_that_the_workers_get_as_well(begin, tmp_path):
    """As from a scheduler, whose SIGTERM is for all processes of the run; it ends the workers."""
    run = begin(classification(tmp_path / "data"), tmp_path / "run")
    os.killpg(run.process.pid, TERM)
    assert run.process.wait(LIMIT) == 130
    newest = newest_checkpoint(tmp_path / "run")
    assert f"stopped: saved iteration {newest}; the same command with --resume" in run.errors
    assert "Traceback" not in run.errors + run.output


@pytest.mark.slow
@pytest.mark.parametrize("make", [classification, detection], ids=["classification", "detection"])
def test_workers_end_with_a_killed_run(begin, tmp_path, make):
    run = begin(make(tmp_path / "data", **{KEY: 2}), tmp_path / "run")
    assert len(workers_of(run.process.pid)) == 2  # or there would be nothing to end
    run.process.kill()
    run.process.wait()
    assert left_of([SimpleNamespace(pid=run.process.pid)], GONE) == []


# ---- evaluation ----


class Ending(Dataset):
    """Eight images of three classes; the worker that reads the sixth is killed."""

    classes = ("a", "b", "c")

    def __len__(self):
        return 8

    def __getitem__(self, index):
        if index == 5:
            os.kill(os.getpid(), KILL)
        return torch.zeros(3, 4, 4), 0


def test_an_evaluation_says_why_too():
    cfg = get_cfg()
    cfg.DATALOADER.NUM_WORKERS, cfg.DATA.TEST_BATCH_SIZE = 1, 1
    loader = build_test_loader(cfg, Ending())
    with pytest.raises(InputError, match=f"{KEY}: data worker [0-9]+ was killed"):
        inference_on_dataset(lambda x: {"logits": torch.zeros(1, 3)}, loader, ErrorEvaluator())


def test_every_loader_of_the_package_is_watched():
    own = {path: path.read_text() for path in (ROOT / "resnext_det").rglob("*.py")}
    assert sum("WatchedLoader(" in source for source in own.values()) > 3
    assert [str(path) for path, source in own.items() if " DataLoader(" in source] == []
    named = [path.name for path, source in own.items() if "data.DataLoader(" in source]
    assert named == []
