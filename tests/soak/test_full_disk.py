"""Guard the promise that a full disk costs a run nothing that was saved.

Real processes of both tools, whose files the system does not let grow beyond a size, or whose log
and metrics stand on a device that is full. Each says one line and ends with status 2; the same
command with --resume, on a disk that takes everything, ends equal to the run that nothing
disturbed, bit for bit.
"""

import os
import resource
import signal
import subprocess
import sys
import time

import pytest
from judge_runs import differences
from kill_runs import LIMIT, ROOT, attempt, environment, newest_checkpoint, start
from killed_sets import classification, detection

PIPELINES = {"classification": classification, "detection": detection}
STAGES = {"classification": ".", "detection": "rpn"}
# A worker's batches come through files in memory, which the limit would meet as well.
ALONE = {"DATALOADER.NUM_WORKERS": 0}


def run(pipeline, folder, *flags, most=None):
    """The tool as a process, with files of ``most`` bytes at most."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    tool, *words = pipeline.words
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / tool), *flags, *words, "OUTPUT_DIR", str(folder)],
        env=environment(),
        preexec_fn=limit if most else None,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )


def signalled(pipeline, folder, stage, number):
    """A process that got a signal when it had two checkpoints, and the folder of its streams."""
    process, streams = start(pipeline, folder, resume=False)
    while newest_checkpoint(stage) < 3:
        assert process.poll() is None, (streams / "err").read_text()
        time.sleep(0.005)
    os.kill(process.pid, number)
    return process, streams


def refused(done):
    """The line of a process that was refused by the disk; there is no other error."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
    assert "Logging error" not in done.stderr
    lines = done.stderr.splitlines()
    assert [line.startswith("error: ") for line in lines] == [False] * (len(lines) - 1) + [True]
    return lines[-1].removeprefix("error: ")


@pytest.mark.slow
@pytest.mark.parametrize("name", PIPELINES)
def test_a_checkpoint_that_does_not_fit(tmp_path, name):
    pipeline = PIPELINES[name](tmp_path / "data", **ALONE)
    reference, folder = tmp_path / "reference", tmp_path / "run"
    stage = folder / STAGES[name]
    assert attempt(pipeline, reference, resume=False).code == 0
    process, _ = signalled(pipeline, folder, stage, signal.SIGKILL)
    process.wait()
    newest = newest_checkpoint(stage)
    good = {path: path.read_bytes() for path in stage.glob("model_*.pth")}
    assert newest >= 3 and len(good) >= 2

    most = min(map(len, good.values())) // 2
    line = refused(run(pipeline, folder, "--resume", most=most))
    assert line.startswith(f"{stage.resolve()}/model_"), line
    assert "cannot be written (File too large); raise the limit of a file's size" in line
    assert "--resume" in line
    assert {path: path.read_bytes() for path in stage.glob("model_*.pth")} == good
    assert not [*stage.glob(".*.tmp"), *stage.glob("results.json")]

    done = attempt(pipeline, folder, resume=True)
    assert done.code == 0 and f"going on at iteration {newest + 1} of" in done.output
    assert differences(folder, reference) == []


@pytest.mark.slow
@pytest.mark.parametrize("file", ["log.txt", "metrics.json"])
def test_a_line_that_does_not_fit(tmp_path, file):
    pipeline, folder = classification(tmp_path / "data", **ALONE), tmp_path / "run"
    folder.mkdir()
    (folder / file).symlink_to("/dev/full")
    line = refused(run(pipeline, folder, "--resume"))
    path = folder / file
    assert line.startswith(f"{path}: cannot be written (No space left on device); free some space")
    path.unlink()
    done = run(pipeline, folder, "--resume")
    assert done.returncode == 0, done.stderr
    assert os.path.getsize(folder / "results.json") > 0 and os.path.getsize(path) > 0


@pytest.mark.slow
def test_a_folder_that_cannot_be_made(tmp_path):
    """Not by root either."""
    pipeline = classification(tmp_path / "data", **ALONE)
    line = refused(run(pipeline, "/proc/none/run"))
    assert line.startswith("/proc/none/run: cannot be made") and "OUTPUT_DIR" in line
