"""Starts real training processes and kills each at a moment that is seen from outside.

A run is `tools/train_net.py` or `tools/pretrain_imagenet.py` on a data set of a few noise pictures.
Moments are times drawn from the length of an undisturbed run, or events (a file appears or is
written again, a line is logged) and a short time after them.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
POLL = 0.002  # seconds between two looks at the folder
LIMIT = 120  # seconds for one process
DONE = "results: "  # begins the last line that a tool prints
Kill = tuple["Moment", signal.Signals, bool]  # when, what, and whether the workers get it as well


@dataclass(frozen=True)
class Event:
    """Something that is seen from outside: a changed file of the folder, or a new line of the log.

    Args:
        name: in the summary.
        files: a pattern below OUTPUT_DIR; each new or newly written file is one happening.
        line: a part of a line that this process prints.
    """

    name: str
    files: str = ""
    line: str = ""


@dataclass(frozen=True)
class Moment:
    """When to kill: ``delay`` seconds behind the ``count``-th happening of ``event``.

    Without an event the delay begins with the process's first line, once it has imported torch.
    """

    event: Event | None
    count: int = 1
    delay: float = 0.0


@dataclass(frozen=True)
class Pipeline:
    """A command, and what is to be seen of it.

    Args:
        name: in the summary.
        words: tool and arguments, without OUTPUT_DIR.
        events: in their order.
        trained: the folders, below OUTPUT_DIR, of networks that are trained.
    """

    name: str
    words: tuple[str, ...]
    events: tuple[Event, ...]
    trained: tuple[str, ...]

    def event(self, name: str) -> Event:
        return next(event for event in self.events if event.name == name)


@dataclass
class Attempt:
    """One process, from its start to its end.

    Args:
        sent: the signal, None where the process ended before its moment.
        moment: None where it was left alone.
        seconds: from the signal to the process's end, or from its first line where none was sent.
        was_done: results had been written, and told, when the signal was sent.
        newest: {stage folder: iteration of its newest checkpoint} when it ended.
    """

    pid: int
    moment: Moment | None
    sent: signal.Signals | None
    to_group: bool
    was_done: bool
    code: int
    seconds: float
    output: str
    errors: str
    newest: dict[str, int]

    @property
    def signal_name(self) -> str:
        if self.sent is None:
            return "no signal"
        return self.sent.name + " to the group" * self.to_group


def environment() -> dict[str, str]:
    """One thread, no GPU, none of torchrun's variables."""
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    one = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONUNBUFFERED": "1"}
    return {**kept, "PYTHONPATH": str(ROOT), **one}


def start(pipeline: Pipeline, folder: Path, resume: bool) -> tuple[subprocess.Popen, Path]:
    """The process, leader of a group and session of its own, and the folder of its two streams.

    Each has files of its own: workers that a kill has orphaned may still write to theirs.
    """
    streams = Path(tempfile.mkdtemp(prefix=f"{folder.name}_streams", dir=folder.parent))
    tool, *words = pipeline.words
    flags = ["--resume"] * resume
    with open(streams / "out", "w") as out, open(streams / "err", "w") as err:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "tools" / tool), *flags, *words, "OUTPUT_DIR", str(folder)],
            env=environment(),
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
    return process, streams


def written(folder: Path, pattern: str) -> dict[Path, int]:
    """When each file that matches was written; files that vanish meanwhile are left out."""
    found = {}
    for path in folder.glob(pattern):
        try:
            found[path] = path.stat().st_mtime_ns
        except FileNotFoundError:
            continue
    return found


class Watcher:
    """Counts the happenings of an event since it was made."""

    def __init__(self, event: Event | None, folder: Path, output: Path):
        self.event, self.folder, self.output = event, folder, output
        self.seen = set(self._now())
        self.count = 0

    def _now(self) -> list[tuple[Path, int]]:
        pattern = self.event.files if self.event else ""
        return list(written(self.folder, pattern).items()) if pattern else []

    def look(self) -> int:
        if self.event is None:
            return int(self.output.stat().st_size > 0)
        if self.event.line:
            return self.output.read_text(errors="replace").count(self.event.line)
        new = set(self._now()) - self.seen
        self.seen |= new
        self.count += len(new)
        return self.count


def attempt(
    pipeline: Pipeline,
    folder: Path,
    *,
    resume: bool,
    moment: Moment | None = None,
    number: signal.Signals = signal.SIGKILL,
    to_group: bool = False,
) -> Attempt:
    """Start the tool, kill it at ``moment`` (None: never), and wait for its end.

    Args:
        to_group: the data workers get the signal as well, as from a terminal or a scheduler.
    """
    process, streams = start(pipeline, folder, resume)
    try:
        sent, was_done, begun = None, False, time.monotonic()
        if moment and _wait_for(moment, folder, streams / "out", process):
            sent, begun = number, time.monotonic()
            (os.killpg if to_group else os.kill)(process.pid, number)
            was_done = DONE in (streams / "out").read_text(errors="replace")
        elif _wait_for(Moment(None), folder, streams / "out", process):
            begun = time.monotonic()
        code = process.wait(LIMIT)
        seconds = time.monotonic() - begun
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    output, errors = ((streams / name).read_text(errors="replace") for name in ("out", "err"))
    newest = {name: newest_checkpoint(folder / name) for name in pipeline.trained}
    return Attempt(
        process.pid, moment, sent, to_group, was_done, code, seconds, output, errors, newest
    )


def _wait_for(moment: Moment, folder: Path, output: Path, process: subprocess.Popen) -> bool:
    """Whether the moment came before the process's end."""
    watcher = Watcher(moment.event, folder, output)
    while watcher.look() < moment.count:
        if process.poll() is not None:
            return False
        time.sleep(POLL)
    end = time.monotonic() + moment.delay
    while time.monotonic() < end:
        if process.poll() is not None:
            return False
        time.sleep(POLL)
    return process.poll() is None


def newest_checkpoint(folder: Path) -> int:
    """The iteration of the newest numbered checkpoint, -1 where there is none."""
    return max((int(path.stem[6:]) for path in folder.glob("model_[0-9]*.pth")), default=-1)


def left_of(attempts: list[Attempt], patience: float = 10.0) -> list[int]:
    """Processes of the attempts' sessions that are there after ``patience`` seconds."""
    sessions, end = {attempt.pid for attempt in attempts}, time.monotonic() + patience
    while (left := _members(sessions)) and time.monotonic() < end:
        time.sleep(0.1)
    return left


def _members(sessions: set[int]) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            state, *numbers = (path / "stat").read_text().rsplit(")", 1)[1].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state != "Z" and int(numbers[2]) in sessions:
            found.append(int(path.name))
    return found
