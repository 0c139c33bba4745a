"""Guard what becomes of data workers that die: the cause in one line, at the next batch.

Workers of real loaders are killed here; tests/soak/test_dead_workers.py does so to whole runs.
"""

import errno
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from resnext_det.engine import workers as room
from resnext_det.engine.sampler import ResumableBatches, training_loader
from resnext_det.engine.workers import KEY, WatchedLoader, cause_of, size_of
from resnext_det.errors import InputError

ROOT = Path(__file__).parents[2]
SECONDS = 4  # within which an end is heard: torch's own look at its workers comes every five


class Numbers(torch.utils.data.Dataset):
    """Item i is i; some take their time, or end the worker that reads them."""

    def __init__(self, size=100, slow=(), ends=None, fails=()):
        self.size, self.slow, self.ends, self.fails = size, slow, ends or {}, fails

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        if index in self.slow:
            time.sleep(60)
        if index in self.fails:
            raise InputError("a.png", "is no image", "remove it")
        if (end := self.ends.get(index)) is not None:
            end()
        return torch.full((1,), index)


def ends_by(number):
    return lambda: os.kill(os.getpid(), number)


def pids(stream):
    return [worker.pid for worker in stream._workers]


def refused(stream, batches=50):
    """The refusal that comes with one of the next batches."""
    with pytest.raises(InputError) as caught:
        for _ in range(batches):
            next(stream)
    message = str(caught.value)
    assert "\n" not in message and caught.value.file == KEY
    return message


# ---- when it is heard ----


def test_a_worker_killed_between_batches_is_told_with_the_next_one():
    """Not from the midst of the step: torch's handler alone would raise in the loop here."""
    stream = iter(WatchedLoader(Numbers(), num_workers=2))
    next(stream)
    (pid, _) = pids(stream)
    os.kill(pid, signal.SIGKILL)
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        sum(range(100))
    message = refused(stream, batches=1)
    assert f"data worker {pid} was killed (SIGKILL), as the system does" in message
    assert f"set {KEY} lower (it is 2; 0 has none)" in message


def test_a_worker_killed_while_it_is_waited_for():
    stream = iter(WatchedLoader(Numbers(slow=[0]), num_workers=1))
    (pid,) = pids(stream)
    timer = threading.Timer(0.5, os.kill, (pid, signal.SIGKILL))
    timer.start()
    begun = time.monotonic()
    assert f"data worker {pid} was killed" in refused(stream)
    assert time.monotonic() - begun < SECONDS
    timer.join()


def test_a_worker_of_another_loader():
    """As one of the training's, which wait while an evaluation runs."""
    idle = iter(WatchedLoader(Numbers(), num_workers=1))
    other = iter(WatchedLoader(Numbers(), num_workers=2))
    next(idle), next(other)
    (pid,) = pids(idle)
    os.kill(pid, signal.SIGKILL)
    time.sleep(0.3)  # until it has ended
    assert f"data worker {pid} was killed (SIGKILL)" in refused(other, batches=1)


def test_another_child_that_ends_is_none_of_its():
    stream = iter(WatchedLoader(Numbers(size=4), num_workers=1))
    first = next(stream)
    subprocess.run(["false"], check=False)
    assert [int(x) for x in (first, *stream)] == [0, 1, 2, 3]


def test_another_handler_of_sigchld_goes_on(monkeypatch):
    """It is called with the next batch, in place of torch's, which it had replaced."""
    heard = []
    monkeypatch.setattr(room._Hearing, "handler", None)
    before = signal.signal(signal.SIGCHLD, lambda *_: heard.append(1))
    try:
        stream = iter(WatchedLoader(Numbers(), num_workers=1))
        next(stream)
        subprocess.run(["true"], check=True)
        next(stream)
        assert heard
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_the_loader_of_both_trainers_is_watched():
    batches = ResumableBatches(100, 2, seed=0)
    loader = training_loader(lambda index: index, batches, num_workers=1, collate=list)
    stream = iter(loader)
    next(stream)
    os.kill(pids(stream)[0], signal.SIGKILL)
    assert "was killed" in refused(stream)


# ---- what is told ----


@pytest.mark.parametrize(
    "end, found, mend",
    [
        (ends_by(signal.SIGKILL), "was killed (SIGKILL)", "more memory"),
        (ends_by(signal.SIGBUS), "died of a bus error, as where shared memory is full", "--shm"),
        (ends_by(signal.SIGSEGV), "ended with signal 11 (SIGSEGV)", f"set {KEY} 0"),
        (lambda: os._exit(3), "ended with exit status 3", f"set {KEY} 0"),
    ],
    ids=["killed", "bus error", "segfault", "exit"],
)
def test_a_cause_and_its_mend(end, found, mend):
    begun = time.monotonic()
    message = refused(iter(WatchedLoader(Numbers(ends={5: end}), num_workers=2)))
    assert found in message and mend in message
    assert time.monotonic() - begun < SECONDS


def test_a_bus_error_states_the_size_of_shared_memory(monkeypatch):
    monkeypatch.setattr(room, "shared_memory", lambda: (64 * 2**20, 2**20))
    worker = SimpleNamespace(pid=7, exitcode=-signal.SIGBUS)
    message = str(cause_of(RuntimeError(), [worker], 4))
    assert "/dev/shm has 64 MiB, 1 MiB of them free" in message
    assert "docker run --shm-size 8g" in message and "(it is 4; 0 needs none)" in message
    monkeypatch.setattr(room, "shared_memory", lambda: None)
    assert "/dev/shm" not in str(cause_of(RuntimeError(), [worker], 4))


def test_too_many_open_files():
    worker = SimpleNamespace(pid=7, exitcode=errno.EMFILE)
    message = str(cause_of(RuntimeError(), [worker], 4))
    assert "data worker 7 ran out of open files (ulimit -n is " in message


@pytest.mark.parametrize(
    "text, found",
    [
        ("DataLoader worker (pid 41) is killed by signal: Killed. ", "41 was killed (SIGKILL)"),
        ("DataLoader worker (pid 41) is killed by signal: Bus error. It", "41 died of a bus error"),
        (
            "DataLoader worker (pid 41) exited unexpectedly with exit code 3. Details",
            "41 ended with exit status 3",
        ),
    ],
)
def test_what_torch_says_of_other_workers(text, found):
    outer = RuntimeError("DataLoader worker (pid(s) 41) exited unexpectedly")
    outer.__cause__ = RuntimeError(text)
    assert f"data worker {found}" in str(cause_of(outer, (), 1))


def test_an_error_of_the_data_set_stays_what_it_is():
    stream = iter(WatchedLoader(Numbers(fails=[2]), num_workers=1))
    with pytest.raises((RuntimeError, InputError), match="a.png: is no image; remove it") as caught:
        list(stream)
    assert KEY not in str(caught.value)
    assert cause_of(RuntimeError("size mismatch"), [SimpleNamespace(exitcode=None)], 1) is None


def test_workers_that_cannot_be_started(monkeypatch):
    def out_of_memory(self):
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(torch.utils.data.DataLoader, "__iter__", out_of_memory)
    with pytest.raises(InputError, match="3 data workers cannot be started .Cannot allocate"):
        iter(WatchedLoader(Numbers(), num_workers=3))


# ---- shared memory ----


def test_size_of_a_batch():
    image = torch.zeros(3, 4, 5)
    assert size_of([{"image": image, "name": "a"}, {"image": image}, 3, None]) == 2 * 240
    assert size_of({"image": image, "label": (torch.zeros(2, dtype=torch.int64),)}) == 240 + 16


@pytest.mark.parametrize("room_there, told", [(2 * 2 * 8 - 1, 1), (2 * 2 * 8, 0)])
def test_a_shortage_is_told_once(monkeypatch, caplog, room_there, told):
    """Two workers hold two batches each, of one int64."""
    monkeypatch.setattr(WatchedLoader, "told", False)
    monkeypatch.setattr(room, "shared_memory", lambda: (room_there, room_there))
    with caplog.at_level(logging.WARNING, logger=room.__name__):
        for _ in range(2):
            list(WatchedLoader(Numbers(size=4), num_workers=2))
    said = [line for line in caplog.messages if "up to 4 batches like the first one" in line]
    assert len(said) == told


SMALL = """
import sys, torch
from resnext_det.engine.workers import WatchedLoader
from resnext_det.errors import exit_cleanly

def pictures(index):
    return torch.ones(2**20, dtype=torch.uint8)

class Data(torch.utils.data.Dataset):
    __len__ = lambda self: 100
    __getitem__ = lambda self, index: torch.ones(2**20, dtype=torch.uint8)

@exit_cleanly
def main():
    kept = list(WatchedLoader(Data(), batch_size=2, num_workers=2, collate_fn=list))

main()
"""


def test_shared_memory_that_is_full(tmp_path):
    """A real one of 8 MiB. By itself the loader would drop the batch, and wait for it for ever."""
    unshare = shutil.which("unshare")
    small = "mount -t tmpfs -o size=8m tmpfs /dev/shm"
    if not unshare or subprocess.run([unshare, "-m", "sh", "-c", small], check=False).returncode:
        pytest.skip("a small /dev/shm cannot be mounted here (unshare -m needs the right)")
    script = tmp_path / "small.py"
    script.write_text(SMALL)
    done = subprocess.run(
        [unshare, "-m", "sh", "-c", f'{small} && exec "$0" "$1"', sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=60,
    )
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2, done.stderr
    assert last.startswith(f"error: {KEY}: data worker ") and "shared memory is full" in last
    assert "/dev/shm has 8 MiB" in last and "Traceback" not in done.stderr


# ---- with the parent ----

BUSY = """
import sys, time, torch
from resnext_det.engine.workers import WatchedLoader

class Data(torch.utils.data.Dataset):
    __len__ = lambda self: 1000
    def __getitem__(self, index):
        if index > 8:
            time.sleep(60)
        return "x" * 10**5  # through the pipe, which is full soon

stream = iter(WatchedLoader(Data(), batch_size=None, num_workers=2, prefetch_factor=4))
next(stream)
print(*(worker.pid for worker in stream._workers), flush=True)
time.sleep(60)
"""


def test_workers_end_with_their_parent(tmp_path):
    """Also where they are busy, or wait for room in a pipe: within a second, here two."""
    (tmp_path / "busy.py").write_text(BUSY)
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "busy.py")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent:
        own = [int(word) for word in parent.stdout.readline().split()]
        assert len(own) == 2 and all(map(is_there, own))
        time.sleep(0.5)  # until the pipe is full
        parent.kill()
        parent.wait()
        end = time.monotonic() + 2
        while (left := [pid for pid in own if is_there(pid)]) and time.monotonic() < end:
            time.sleep(0.02)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
    assert left == []


def is_there(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
