"""Guard that two runs at once into one folder are noticed, and that no lock outlives its run."""

import errno
import logging
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from resnext_det.engine import lock
from resnext_det.engine.lock import NAME, check_free, lock_folder, unlock_folder
from resnext_det.errors import InputError

# Another program's view: Python alone starts in a fraction of the package's time.
HOLD = """
import fcntl, sys, time
file = open(sys.argv[1], "a")
fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
print("process 4711 on another-machine", file=file, flush=True)
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Nothing of this process is held before or after, and nobody waits long."""
    monkeypatch.setattr(lock, "PATIENCE", 0.2)
    monkeypatch.setattr(lock, "_held", {})
    yield
    for path in list(lock._held):
        unlock_folder(os.path.dirname(path))


@pytest.fixture
def other(tmp_path):
    """Another process that has the folder."""
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", HOLD, str(tmp_path / NAME)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def is_free(folder):
    """As another process finds it."""
    command = [sys.executable, "-S", "-c", HOLD.replace("time.sleep(60)", ""), str(folder / NAME)]
    return subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.parametrize("ask", [lock_folder, check_free])
def test_another_process_has_it(tmp_path, other, ask):
    with pytest.raises(InputError) as caught:
        ask(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: is in use by process 4711 on another-machine (.lock); "
        "wait for it or end it, or choose another OUTPUT_DIR"
    )
    with pytest.raises(InputError, match="or choose another --output$"):
        ask(tmp_path, "choose another --output")
    assert other.poll() is None and not lock._held


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_whatever_ends_the_other_one_frees_it(tmp_path, other, number):
    other.send_signal(number)
    other.wait()
    check_free(tmp_path)
    lock_folder(tmp_path)
    assert not is_free(tmp_path)


def test_one_that_ends_meanwhile_is_waited_for(tmp_path, other, monkeypatch):
    """A killed process has its locks until its memory is given back."""
    monkeypatch.setattr(lock, "PATIENCE", 20.0)
    waits = []
    sleep = time.sleep
    monkeypatch.setattr(lock.time, "sleep", lambda s: (waits.append(s), other.kill(), sleep(s)))
    lock_folder(tmp_path)
    assert waits


def test_it_is_held_until_it_is_given_back(tmp_path):
    check_free(tmp_path)
    assert not list(tmp_path.iterdir())  # a look writes nothing
    lock_folder(tmp_path)
    assert (tmp_path / NAME).read_text() == f"process {os.getpid()} on {socket.gethostname()}\n"
    assert not is_free(tmp_path)
    lock_folder(tmp_path)  # the same run goes on
    check_free(tmp_path)
    assert not is_free(tmp_path)
    unlock_folder(tmp_path)
    assert is_free(tmp_path)
    unlock_folder(tmp_path)


def test_one_folder_by_two_names(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    lock_folder(tmp_path / "run")
    lock_folder(tmp_path / "link")
    assert len(lock._held) == 1


def test_a_folder_that_was_made_again(tmp_path):
    lock_folder(tmp_path)
    (tmp_path / NAME).unlink()
    assert is_free(tmp_path)
    lock_folder(tmp_path)
    assert not is_free(tmp_path)


def test_a_fork_neither_holds_nor_loses_it(tmp_path):
    """A data worker outlives a killed run by seconds; the next run must not wait for it."""
    read, write = os.pipe()
    run = os.fork()
    if run == 0:
        lock_folder(tmp_path)
        worker = os.fork()
        if worker == 0:
            lock_folder(tmp_path)  # of the same run: nothing
            os.write(write, b"ready")
            time.sleep(60)
        os.write(write, worker.to_bytes(4, "little"))
        time.sleep(60)
        os._exit(1)
    try:
        said = b""
        while len(said) < 9:
            said += os.read(read, 9)
        worker = int.from_bytes(said.replace(b"ready", b""), "little")
        assert not is_free(tmp_path)
        os.kill(run, signal.SIGKILL)
        os.waitpid(run, 0)
        os.kill(worker, 0)  # it is there
        lock_folder(tmp_path)
    finally:
        for pid in (run, worker):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                assert pid == run
        os.close(read)
        os.close(write)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EBADF])
def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch, caplog, number):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lock.fcntl, "flock", fail)
    with caplog.at_level(logging.INFO, logger=lock.__name__):
        lock_folder(tmp_path)
        check_free(tmp_path)
    (line,) = caplog.messages
    assert line.startswith(f"{tmp_path}: the file system keeps no locks (")
    assert line.endswith("start no second run there") and not lock._held


def test_a_system_without_locks_is_told(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(lock, "fcntl", None)
    with caplog.at_level(logging.INFO, logger=lock.__name__):
        lock_folder(tmp_path)
        check_free(tmp_path)
    assert caplog.messages == [f"{tmp_path}: no locks on this system; start no second run there"]


def test_a_place_that_cannot_be_written(tmp_path):
    with pytest.raises(InputError, match=r"\.lock: cannot be written \(No such file or directory"):
        lock_folder(tmp_path / "none")
    check_free(tmp_path / "none")


def test_a_full_disk(tmp_path, monkeypatch):
    """The lock is given back: the run has ended."""

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(lock.os, "write", fail)
    with pytest.raises(InputError, match=r"\.lock: cannot be written \(No space left on device\)"):
        lock_folder(tmp_path)
    monkeypatch.undo()
    assert is_free(tmp_path)


def test_a_holder_that_has_said_nothing_yet(tmp_path, other):
    (tmp_path / NAME).write_bytes(b"")
    with pytest.raises(InputError, match="in use by another process"):
        lock_folder(tmp_path)
    (tmp_path / NAME).write_bytes(b"\xff\x1b[2J" * 300)
    with pytest.raises(InputError) as caught:
        lock_folder(tmp_path)
    assert str(caught.value).isprintable()
