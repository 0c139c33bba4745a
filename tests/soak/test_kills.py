"""Guard the promise that a run may be killed at any moment: nothing is lost, nothing is left over.

Real processes of both tools are killed, resumed, and compared with a run that nothing disturbed.
``pytest -m long tests/soak/test_kills.py`` does so $RESNEXT_DET_SOAK_KILLS times (100).
"""

import json
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from judge_runs import Record, differences, faults_of, lost_to_python, run_with_kills
from kill_runs import Attempt, Event, Moment, Watcher, attempt, left_of
from killed_sets import classification, detection, drawn_kills, planned_kills

from resnext_det.weights import read_weights, save_weights

KILLS, REPORT = "RESNEXT_DET_SOAK_KILLS", "RESNEXT_DET_SOAK_REPORT"
PIPELINES = {"detection": detection, "classification": classification}
KILL, TERM, INT = signal.SIGKILL, signal.SIGTERM, signal.SIGINT
# Event, signal, and whether the data workers get it as well.
PLANS = {
    "detection": (
        ("rpn checkpoint", KILL, False),
        ("proposals begin", TERM, False),
        ("fast_rcnn checkpoint", INT, True),
        ("time", KILL, True),
    ),
    "classification": (
        ("time", TERM, False),
        ("last checkpoint", INT, False),
        ("results", KILL, True),
    ),
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """By name: (pipeline, folder of its undisturbed run, seconds of it); made once."""
    made = {}

    def of(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            pipeline = PIPELINES[name](folder / "data")
            done = attempt(pipeline, folder / "run", resume=False)
            assert done.code == 0, done.errors
            made[name] = pipeline, folder / "run", done.seconds
        return made[name]

    return of


def result(undisturbed, name, folder, kills):
    """A run with kills, its folder compared as well."""
    pipeline, reference, _ = undisturbed(name)
    record = run_with_kills(pipeline, folder, kills)
    record.faults += differences(folder, reference)
    return record


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANS)
def test_nothing_is_lost(undisturbed, tmp_path, name):
    pipeline, _, seconds = undisturbed(name)
    plan = planned_kills(pipeline, PLANS[name], np.random.default_rng(0), seconds)
    record = result(undisturbed, name, tmp_path / "run", plan)
    assert record.faults == []
    assert len(record.kills) >= len(PLANS[name]) - 1  # where a machine is busy, one may be late


@pytest.mark.long
def test_nothing_is_lost_in_many_kills(undisturbed, tmp_path, capsys):
    rng, begun = np.random.default_rng(0), time.monotonic()
    wanted, records = int(os.environ.get(KILLS, 100)), []
    while (missing := wanted - sum(len(record.kills) for record in records)) > 0:
        name = tuple(PIPELINES)[len(records) % 2]
        pipeline, _, seconds = undisturbed(name)
        kills = drawn_kills(pipeline, rng, seconds, min(8, missing))
        folder = tmp_path / str(len(records))
        records.append(result(undisturbed, name, folder, kills))
        if not records[-1].faults:
            shutil.rmtree(folder)
    said = summary(records, time.monotonic() - begun)
    with capsys.disabled():
        print("\n" + json.dumps(said))
    if path := os.environ.get(REPORT):
        Path(path).write_text(json.dumps(said, indent=2) + "\n")
    assert [fault for record in records for fault in record.faults] == []


def summary(records: list[Record], seconds: float) -> dict:
    """How many kills by signal and by moment, in how many runs, and how many ended equal."""
    kills = [kill for record in records for kill in record.kills]
    at = Counter(kill.moment.event.name if kill.moment.event else "a time" for kill in kills)
    return {
        "kills": len(kills),
        "by signal": dict(Counter(kill.signal_name for kill in kills)),
        "by moment": dict(at),
        "runs": len(records),
        "resumed runs": sum(len(record.attempts) > 1 for record in records),
        "identical results": sum(not record.faults for record in records),
        "faults": [fault for record in records for fault in record.faults],
        "interrupts that Python dropped": sum(map(lost_to_python, kills)),
        "seconds": round(seconds),
    }


@pytest.mark.slow
def test_workers_end_ctrl_c_is_answered_and_leftovers_go(undisturbed, tmp_path):
    """A kill ends the data workers as well; Ctrl-C says at once what it waits for."""
    pipeline, reference, _ = undisturbed("classification")
    moment, folder = Moment(pipeline.event("checkpoint")), tmp_path / "run"
    killed = attempt(pipeline, folder, resume=False, moment=moment, number=KILL)
    leftovers = [".model_0000003.pth.tmp", ".model_final.safetensors.7.tmp", ".results.json.tmp"]
    for name in leftovers:
        (folder / name).write_text("half")
    assert left_of([killed]) == []
    stopped = attempt(pipeline, folder, resume=True, moment=moment, number=INT)
    assert (stopped.code, faults_of(stopped, killed, (".",))) == (130, [])
    assert stopped.seconds < 20  # a step and Python's own end; seconds on a busy machine
    assert "SIGINT: the run stops after iteration" in stopped.output
    for name in leftovers:
        assert f"{name}: left half-written" in stopped.output
    assert attempt(pipeline, folder, resume=True).code == 0
    assert differences(folder, reference) == []


# ---- that a fault would be seen ----


def one_value(tensor):
    """The next number above one of its values."""
    first = (0,) * tensor.dim()
    tensor[first] = torch.nextafter(tensor[first], torch.tensor(torch.inf))


def change_weights(folder):
    path = folder / "model_final.safetensors"
    tensors, record = read_weights(path)
    one_value(tensors["stem.conv1.weight"])
    save_weights(path, tensors, record)


def change_checkpoint(folder):
    path = folder / "model_final.pth"
    content = torch.load(path, weights_only=True)
    one_value(content["trainer"]["optimizer"]["state"][0]["momentum_buffer"])
    torch.save(content, path)


def change_schedule(folder):
    path = folder / "model_best.pth"
    content = torch.load(path, weights_only=True)
    content["trainer"]["hooks"]["LRScheduler"]["last_epoch"] += 1
    torch.save(content, path)


def change_results(folder):
    path = folder / "results.json"
    path.write_text(path.read_text() + " ")


CHANGES = {
    "model_final.safetensors: stem.conv1.weight has other values": change_weights,
    "model_final.pth: trainer.optimizer.state.0.momentum_buffer has other": change_checkpoint,
    "model_best.pth: trainer.hooks.LRScheduler.last_epoch is": change_schedule,
    "results.json: other bytes": change_results,
    ".model_final.pth.tmp is left over": lambda f: (f / ".model_final.pth.tmp").touch(),
    "config.yaml is in one of them only": lambda f: (f / "config.yaml").unlink(),
    "model_final.safetensors is in one": lambda f: (f / "model_final.safetensors").unlink(),
    ". keeps 3 numbered checkpoints, not 2": lambda f: (f / "model_0000007.pth").touch(),
}


@pytest.mark.slow
@pytest.mark.parametrize("said, change", CHANGES.items(), ids=CHANGES)
def test_a_difference_is_seen(undisturbed, tmp_path, said, change):
    _, reference, _ = undisturbed("classification")
    folder = shutil.copytree(reference, tmp_path / "run")
    assert differences(folder, reference) == []
    change(folder)
    (found,) = differences(folder, reference)
    assert found.startswith(said)


TRAINING = "Starting training from iteration 0\nSaved checkpoint run/model_0000001.pth\n"
SAVED = "stopped: saved iteration 3; the same command"


def ended(sent=None, code=0, output="", errors="", newest=-1):
    """A process as the harness saw it."""
    return Attempt(
        pid=1,
        moment=None,
        sent=sent,
        to_group=False,
        was_done=False,
        code=code,
        seconds=1.0,
        output=output,
        errors=errors,
        newest={".": newest},
    )


@pytest.mark.parametrize(
    "now",
    [
        ended(),
        ended(KILL, -9, TRAINING),
        ended(TERM, 130, TRAINING, SAVED, newest=3),
        ended(TERM, -15),
        ended(INT, 130, errors="stopped: interrupted"),
        ended(INT, 130, errors="Exception ignored in: <f>\nTraceback (most recent call last):"),
        ended(output="resumed from a/run/model_0000003.pth: going on at iteration 4 of 9"),
    ],
)
def test_no_fault_is_found_where_none_is(now):
    assert faults_of(now, ended(KILL, -9, newest=3), (".",)) == []


@pytest.mark.parametrize(
    "now, words",
    [
        (ended(code=1), "exit 1, not one of (0,)"),
        (ended(INT, 0), "exit 0, not one of (130,)"),  # it was not heard
        (ended(INT, 130, errors="Traceback (most recent call last):"), "a traceback"),
        (ended(errors="Exception ignored in: <f>\nTraceback (most"), "a traceback"),
        (ended(TERM, -15, TRAINING), "it was training, and did not save"),
        (ended(TERM, 130, TRAINING, SAVED, newest=1), "iteration 3 is not there"),
        (
            ended(output="resumed from a/run/model_0000001.pth: going on at iteration 2 of 9"),
            "run goes on at 2, where 3 had been saved",
        ),
        (ended(output="a/run: no checkpoint to go on with"), "run goes on at 0, where 3"),
    ],
)
def test_a_fault_of_a_process_is_seen(now, words):
    (found,) = faults_of(now, ended(KILL, -9, newest=3), (".",))
    assert words in found


def test_a_process_that_is_left_is_seen():
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        left = ended()
        left.pid = process.pid
        assert left_of([left], 0.1) == [process.pid]
    finally:
        process.kill()
        process.wait()
    assert left_of([left], 0.1) == []


def test_a_file_that_is_written_again_is_an_event(tmp_path):
    path, output = tmp_path / "a.json", tmp_path / "out"
    path.write_text("1")
    watcher = Watcher(Event("again", files="*.json"), tmp_path, output)
    assert watcher.look() == 0
    os.utime(path, ns=(1, 1))
    (tmp_path / "b.json").touch()
    assert watcher.look() == 2 and watcher.look() == 2
    output.write_text("x\nstage two\n")
    assert Watcher(Event("line", line="stage "), tmp_path, output).look() == 1
