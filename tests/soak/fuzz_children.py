"""Read inputs in child processes, each input held to a time and to memory, and judge what came.

An input that hangs, ends the process, takes more memory than stated, runs anything, or leads to
anything but a result or an `InputError` of one line is a hole.
"""

import contextlib
import json
import logging
import os
import random
import resource
import select
import shutil
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from fuzz_inputs import CANARY, Reader, WrongResult, fault_of_message, put_other

from resnext_det.errors import InputError

SECONDS = 10  # that one input may take; they take milliseconds, but cores may be shared
ADDRESS_SPACE = 1536 << 20  # bytes that a child may map beyond what it starts with
OTHERS = 0.01  # share of inputs that are a pipe, a folder, a device in place of a file


@dataclass
class Report:
    """What became of the inputs of one reader.

    Args:
        holes: number of the input -> what was wrong.
        mends: InputErrors by their mends, to see that many refusals were reached.
        slowest, largest: the most seconds and bytes that one input took.
    """

    reader: str
    inputs: int = 0
    results: int = 0
    input_errors: int = 0
    holes: dict[int, str] = field(default_factory=dict)
    mends: Counter = field(default_factory=Counter)
    slowest: float = 0.0
    largest: int = 0
    seconds: float = 0.0

    def add(self, number: int, outcome: str, detail: str, seconds: float, memory: int) -> None:
        self.inputs += 1
        self.results += outcome == "result"
        self.input_errors += outcome == "InputError"
        self.slowest, self.largest = max(self.slowest, seconds), max(self.largest, memory)
        if outcome == "InputError":
            self.mends[detail] += 1
        elif outcome != "result":
            self.holes[number] = f"{outcome}: {detail}"


class TimeUp(BaseException):
    """No `except Exception` of a reader holds it up."""


# ---- in the child ----


def _peak() -> int:
    """Bytes of resident memory at the highest since `_forget_peak`; 0 where nobody says."""
    with contextlib.suppress(OSError), open("/proc/self/status") as file:
        for line in file:
            if line.startswith("VmHWM"):
                return 1024 * int(line.split()[1])
    return 0


def _forget_peak() -> None:
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def _bound_memory() -> None:
    """Of any platform with /proc; without, only `Reader.memory` is not looked after."""
    with contextlib.suppress(OSError, ValueError), open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + ADDRESS_SPACE,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _time_up(*_) -> None:
    raise TimeUp


def _of_memory(error: BaseException | None) -> bool:
    """Whether want of memory is among the causes: a reader has asked for too much of it."""
    while error is not None:
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def outcome_of(reader: Reader, path: Path) -> tuple[str, str]:
    """("result", ""), ("InputError", its mend), or what is wrong and where."""
    try:
        reader.read(path)
    except InputError as error:
        if _of_memory(error):
            return "memory", str(error)
        if fault := fault_of_message(str(error)):
            return "message", f"{fault}: {str(error)!a:.300}"
        return "InputError", error.mend
    except TimeUp:
        return "hang", traceback.format_exc(limit=-3)
    except WrongResult as error:
        return "wrong result", str(error)
    except BaseException as error:  # that is what is looked for
        where = traceback.extract_tb(error.__traceback__)[-4:]
        places = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(where))
        return type(error).__name__, f"{str(error)!a:.200} at {places}"
    return "result", ""


def read_one(reader: Reader, path: Path) -> tuple[str, str, float, int]:
    """Outcome, detail, seconds and bytes of memory of one input, in its own folder."""
    _forget_peak()
    before, start = _peak(), time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        outcome, detail = outcome_of(reader, path)
    except TimeUp:
        outcome, detail = "hang", "it ended while the watchdog spoke"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    seconds, memory = time.monotonic() - start, _peak() - before
    if Path(CANARY).exists() or list(Path().rglob(CANARY)):
        return "code was run", "the canary is there", seconds, memory
    if memory > reader.memory and outcome in ("result", "InputError"):
        return "memory", f"{memory >> 20} MiB after {outcome} {detail}", seconds, memory
    return outcome, detail, seconds, memory


def prepare_child() -> None:
    """Quiet, one thread, bounded memory, and the watchdog's signal."""
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGALRM, _time_up)
    _bound_memory()


def _child(reader: Reader, seed: int, numbers: range, scratch: str, out: int) -> None:
    """A line to ``out`` as each input begins, and one with its outcome."""
    for stream in (0, 2):  # nothing waits for a terminal; decoders in C complain there
        os.dup2(os.open(os.devnull, os.O_RDWR), stream)
    with os.fdopen(out, "w", buffering=1) as lines:
        made_from = reader.prepare(_folder(scratch, "seeds"))
        prepare_child()
        for number in numbers:
            print(json.dumps([number]), file=lines)
            folder = _folder(scratch, "case")
            os.chdir(folder)
            try:
                path = _make(reader, seed, number, made_from, folder)
                found = read_one(reader, path)
            except MemoryError:  # the child's own data, after many inputs
                found = "memory", "in making the input", 0.0, 0
            print(json.dumps([number, *found]), file=lines)
            os.chdir(scratch)
            shutil.rmtree(folder)


class Corpus(list):
    """Files that are the inputs themselves, where `Reader.prepare` returns them."""


def _make(reader: Reader, seed: int, number: int, made_from: Any, folder: Path) -> Path:
    if isinstance(made_from, Corpus):
        return Path(shutil.copy(made_from[number], folder))
    own = random.Random(f"{reader.name} {seed} {number}")
    if own.random() < OTHERS:
        path = folder / own.choice(reader.file_names)
        put_other(own, path)
        return path
    return reader.make(own, made_from, folder)


def _folder(scratch: str, name: str) -> Path:
    folder = Path(scratch, name)
    folder.mkdir()
    return folder


# ---- in the parent ----


def _lines(reading: int) -> Iterator[list]:
    """What the child says, until it ends or is silent for too long (then `TimeoutError`)."""
    waiting = b""
    while True:
        if not select.select([reading], [], [], 3 * SECONDS)[0]:
            raise TimeoutError
        data = os.read(reading, 1 << 16)
        *whole, waiting = (waiting + data).split(b"\n")
        yield from map(json.loads, whole)
        if not data:
            return


def _run_batch(reader: Reader, seed: int, numbers: range, report: Report) -> int:
    """Inputs in one child; the number of the next one that is due."""
    with tempfile.TemporaryDirectory() as scratch:  # cleared here, where no input can prevent it
        return _run_child(reader, seed, numbers, report, scratch)


def _run_child(reader: Reader, seed: int, numbers: range, report: Report, scratch: str) -> int:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        complaints = os.fdopen(os.dup(2), "w")
        try:
            os.close(reading)
            _child(reader, seed, numbers, scratch, writing)
            status = 0
        except BaseException:  # of what makes the inputs, and so no hole
            traceback.print_exc(file=complaints)
            complaints.flush()
        finally:
            os._exit(status)
    os.close(writing)
    begun, done, killed = numbers.start - 1, numbers.start - 1, ""
    try:
        for number, *found in _lines(reading):
            begun = number
            if found:
                done = number
                report.add(number, *found)
    except TimeoutError:
        os.kill(child, signal.SIGKILL)
        killed = "hang that no signal ends"
    finally:
        os.close(reading)
    _, status = os.waitpid(child, 0)
    if begun < numbers.start:
        raise RuntimeError(f"{reader.name}: no input could be made (status {status})")
    if begun > done:
        ended = killed or f"the process ended (wait status {status})"
        report.add(begun, "death", ended, 0.0, 0)
    return begun + 1


def fuzz(reader: Reader, inputs: int, seed: int = 0, first: int = 0, batch: int = 500) -> Report:
    """Read ``inputs`` inputs of a seed, from number ``first`` on."""
    report, start, number = Report(reader.name), time.monotonic(), first
    while number < first + inputs:
        numbers = range(number, min(number + batch, first + inputs))
        number = _run_batch(reader, seed, numbers, report)
    report.seconds = time.monotonic() - start
    return report


def make_again(reader: Reader, seed: int, number: int, folder: Path) -> Path:
    """The input of a number, in ``folder``."""
    with tempfile.TemporaryDirectory() as scratch:
        made_from = reader.prepare(_folder(scratch, "seeds"))
        return _make(reader, seed, number, made_from, folder)
