"""What every process of a killed run, and the folder at its end, must be like.

The folder is compared with that of the same command, run without a kill: to the last bit.
"""

import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from kill_runs import Attempt, Kill, Pipeline, attempt, left_of

from resnext_det.engine.checkpoint import RunCheckpointer
from resnext_det.weights import read_weights

SAVED = re.compile(r"^stopped: saved iteration (\d+);", re.MULTILINE)
# Folder and iteration; the second form has no iteration.
RESUMED = re.compile(
    r"resumed from (\S+)/[^/\s]+: going on at iteration (\d+) of|(\S+): no checkpoint to go on with"
)
STEPS = re.compile(r"Saved checkpoint \S+/model_\d")
IGNORED = "Exception ignored in"
STRAY = re.compile(r"\.tmp$|\.parts$|nonfinite")
# How often and when a run was begun: numbered checkpoints, TensorBoard's files.
OF_ONE_PROCESS = re.compile(r"model_\d{7}\.pth$|events\.out\.|last_checkpoint$")


@dataclass
class Record:
    """A run in one folder: its processes, and what was wrong with them."""

    attempts: list[Attempt] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def kills(self) -> list[Attempt]:
        return [one for one in self.attempts if one.sent]


def faults_of(now: Attempt, before: Attempt | None, trained: tuple[str, ...]) -> list[str]:
    """What one process did that it should not have done; [] where all is well."""
    about = f"{now.signal_name} at {now.moment}: exit {now.code}"
    found = []
    # An interrupt in a callback or a destructor of another library: told, and not the run's end.
    ignored = now.errors.count(IGNORED) if now.sent is signal.SIGINT else 0
    if now.sent is signal.SIGKILL:  # it cannot say a word; a worker that is losing its parent can
        ignored = now.errors.count(", in _serve\n")  # of multiprocessing's resource_sharer
    if now.errors.count("Traceback") > ignored:
        found.append(f"{about}: a traceback: {now.errors[-1500:]}")
    if now.code not in _codes(now):
        found.append(f"{about}, not one of {_codes(now)}: {now.errors[-1500:]}")
    if now.sent in (signal.SIGTERM, signal.SIGINT):
        said = SAVED.search(now.errors)
        if said is None and _was_training(now.output):
            found.append(f"{about}: it was training, and did not save: {now.errors[-500:]}")
        elif said and int(said[1]) not in now.newest.values():
            found.append(f"{about}: iteration {said[1]} is not there, but {now.newest}")
    return found + _lost(now, before, trained)


def _lost(now: Attempt, before: Attempt | None, trained: tuple[str, ...]) -> list[str]:
    """Steps that are done again though they had been saved."""
    found = []
    for folder, iteration, begun in RESUMED.findall(now.output):
        stage = Path(folder or begun).name
        newest = before.newest.get(stage if stage in trained else ".", -1) if before else -1
        if int(iteration or 0) <= newest:
            found.append(f"{stage} goes on at {iteration or 0}, where {newest} had been saved")
    return found


def _codes(now: Attempt) -> tuple[int, ...]:
    """Exit codes that are right for the signal.

    Outside of a training loop nothing is to be saved, and SIGTERM ends a process at once. While
    Python shuts down, all being written, it has its own way with signals.
    """
    if now.sent is None:
        return (0,)
    if now.sent is signal.SIGKILL:
        return (-signal.SIGKILL,)
    usual = (130, -signal.SIGTERM) if now.sent is signal.SIGTERM else (130,)
    return (*usual, 0, -now.sent) if now.was_done or lost_to_python(now) else usual


def lost_to_python(now: Attempt) -> bool:
    """Python drops a KeyboardInterrupt that it raised in a callback, as at a fork, and says so."""
    words = (IGNORED, "KeyboardInterrupt")
    return now.sent is signal.SIGINT and all(word in now.errors for word in words)


def _was_training(output: str) -> bool:
    """Steps were done, and the loop was not at its end."""
    last = output.rsplit("Starting training from iteration", 1)
    return len(last) == 2 and bool(STEPS.search(last[1])) and "model_final.pth" not in last[1]


def run_with_kills(pipeline: Pipeline, folder: Path, kills: Iterator[Kill]) -> Record:
    """One run, killed and resumed until the kills are used up, then resumed to its end.

    It may end before a kill's moment comes, which is none then.
    """
    record, earlier = Record(), None
    while True:
        moment, number, to_group = next(kills, (None, signal.SIGKILL, False))
        now = attempt(
            pipeline,
            folder,
            resume=earlier is not None,
            moment=moment,
            number=number,
            to_group=to_group,
        )
        record.attempts.append(now)
        record.faults += faults_of(now, earlier, pipeline.trained)
        if now.sent is None or now.code not in _codes(now):
            break
        earlier = now
    record.faults += [f"process {pid} is left" for pid in left_of(record.attempts)]
    return record


def differences(folder: Path, reference: Path) -> list[str]:
    """What ``folder`` has otherwise than the run that nothing disturbed; [] where all is equal.

    Compared are the names of all files, every tensor of the final and the best weights, whole
    checkpoints (optimizer, schedule, iteration), proposals and results to the byte.
    """
    ours, theirs = _names(folder), _names(reference)
    found = [f"{name} is left over" for name in sorted(_strays(folder))]
    found += [f"{name} is in one of them only" for name in sorted(ours ^ theirs)]
    for stage in sorted({str(Path(name).parent) for name in theirs}):
        numbers = [len(list((run / stage).glob("model_0*.pth"))) for run in (folder, reference)]
        if numbers[0] != numbers[1]:
            found.append(f"{stage} keeps {numbers[0]} numbered checkpoints, not {numbers[1]}")
    for name in sorted(ours & theirs):
        found += [f"{name}: {what}" for what in _compare(folder / name, reference / name)]
    return found


def _strays(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if STRAY.search(p.name)}


def _names(folder: Path) -> set[str]:
    names = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return {name for name in names if not STRAY.search(name) and not OF_ONE_PROCESS.search(name)}


def _compare(ours: Path, theirs: Path) -> Iterator[str]:
    if ours.name in ("results.json", "train.safetensors"):
        if ours.read_bytes() != theirs.read_bytes():
            yield "other bytes"
    elif ours.suffix == ".safetensors":
        yield from _unequal(read_weights(ours)[0], read_weights(theirs)[0])
    elif ours.suffix == ".pth":
        yield from _unequal(RunCheckpointer.read(ours), RunCheckpointer.read(theirs))


def _unequal(ours: Any, theirs: Any, at: str = "") -> Iterator[str]:
    """Where two nests of dicts, lists and tensors differ."""
    if isinstance(ours, dict) and isinstance(theirs, dict) and ours.keys() == theirs.keys():
        for key in ours:
            yield from _unequal(ours[key], theirs[key], f"{at}.{key}")
    elif isinstance(ours, list | tuple) and isinstance(theirs, list | tuple):
        if len(ours) != len(theirs):
            yield f"{at[1:]} has {len(ours)} entries, not {len(theirs)}"
        for number, pair in enumerate(zip(ours, theirs, strict=False)):
            yield from _unequal(*pair, f"{at}.{number}")
    elif isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor):
        if not torch.equal(ours, theirs):
            yield f"{at[1:]} has other values"
    elif ours != theirs:
        yield f"{at[1:]} is {ours!r:.80}, not {theirs!r:.80}"
