"""Guard that a rank that dies ends the others, with its name, within a stated time.

Two real processes on the CPU, of which one is killed: started by ``--num-gpus``, by torchrun, and
by a scheduler that sets torchrun's environment and does not look after them.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist
from torch.multiprocessing import ProcessExitedException

from resnext_det.engine import ranks as room
from resnext_det.errors import InputError

ROOT, SCRIPT = Path(__file__).parents[2], Path(__file__).with_name("two_ranks.py")
STATED = 40  # seconds, in launch's docstring
PATIENCE = 120  # seconds until a busy machine has started two processes
NAME = "rank {} of 2: "
RESUME = "add --resume to go on from the newest checkpoint"


def start(folder, *words, **environment):
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    one = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    errors = open(folder / f"errors{environment.get('RANK', '')}", "w+")
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", *words],
        env={**kept, **one, **environment},
        stdout=subprocess.DEVNULL,
        stderr=errors,
        start_new_session=True,
    )
    return process, errors


@pytest.fixture
def started():
    """Starts processes, and ends what is left of them."""
    made = []

    def begin(*args, **others):
        made.append(start(*args, **others))
        return made[-1]

    yield begin
    for process, errors in made:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # nothing is left
        process.wait()
        errors.close()


def pid_in_training(folder, rank, processes):
    """Of a rank, once a checkpoint of the run is there."""
    end = time.monotonic() + PATIENCE
    while not (folder / "model_0000004.pth").exists():
        for process, errors in processes:
            assert process.poll() is None, told(errors)
        assert time.monotonic() < end
        time.sleep(0.02)
    return int((folder / f"rank{rank}.pid").read_text())


def told(errors):
    errors.seek(0)
    return errors.read()


def kill_and_wait(folder, rank, processes):
    """The pids of both ranks; the processes have ended in time."""
    pid = pid_in_training(folder, rank, processes)
    begun = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    for process, _ in processes:
        process.wait(STATED)
    assert time.monotonic() - begun < STATED
    for number in (0, 1):
        assert not room.is_running(int((folder / f"rank{number}.pid").read_text()))


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_started_by_num_gpus(started, tmp_path, rank):
    one = started(tmp_path, str(SCRIPT), str(tmp_path), "--num-gpus", "2")
    kill_and_wait(tmp_path, rank, [one])
    process, errors = one
    last = told(errors).splitlines()[-1]
    assert process.returncode == 2
    assert last.startswith(f"error: {NAME.format(rank)}") and last.endswith(RESUME)
    assert "was killed (SIGKILL)" in last or "has ended, and rank" in last
    assert "Traceback" not in told(errors)


@pytest.mark.slow
def test_started_by_torchrun(started, tmp_path):
    """torchrun itself names the rank; the other one may be ended before it has."""
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    one = started(tmp_path, *launch, str(SCRIPT), str(tmp_path))
    kill_and_wait(tmp_path, 1, [one])
    process, errors = one
    said = told(errors)
    assert process.returncode != 0
    assert re.search(r"rank +: 1 \(local_rank: 1\)\s+exitcode +: -9", said), said
    assert "Exception during training" not in said


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_started_one_by_one(started, tmp_path, rank):
    """Nothing ends the other one but its own look at its peer."""
    port = str(free_port())
    both = [
        started(
            tmp_path,
            str(SCRIPT),
            str(tmp_path),
            RANK=str(r),
            LOCAL_RANK=str(r),
            WORLD_SIZE="2",
            LOCAL_WORLD_SIZE="2",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
        )
        for r in (0, 1)
    ]
    kill_and_wait(tmp_path, rank, both)
    process, errors = both[1 - rank]
    said = told(errors)
    found = f"has ended, and rank {1 - rank} with it: they work on one batch together"
    assert process.returncode == 2, said
    assert f"error: {NAME.format(rank)}{found}; {RESUME}" in said.splitlines()
    assert "Traceback" not in said


def free_port():
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    return store.port


# ---- what is told ----


@pytest.fixture
def of_two(monkeypatch):
    """This process is rank 0 of two; the other one's process id is given."""
    monkeypatch.setattr(room.comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(room.comm, "get_rank", lambda: 0)
    monkeypatch.setattr(room, "PATIENCE", 0.2)

    def peers(pid, machine=None):
        found = [(room._machine(), os.getpid()), (machine or room._machine(), pid)]
        monkeypatch.setattr(room, "_peers", found)

    return peers


def refusal(error):
    with pytest.raises(InputError) as caught, room.naming_lost_ranks():
        raise error
    return str(caught.value)


GLOO = "[pair.cc:538] Connection closed by peer [127.0.0.1]:4711"


def test_a_dead_peer_is_named(of_two):
    ended = subprocess.Popen(["true"])
    ended.wait()
    of_two(ended.pid)
    assert refusal(RuntimeError(GLOO)).startswith("rank 1 of 2: has ended, and rank 0 with it")


def test_a_dead_peer_that_no_one_has_waited_for_is_named(of_two):
    with subprocess.Popen(["true"]) as ended:
        of_two(ended.pid)
        assert refusal(dist.DistBackendError("NCCL error")).startswith("rank 1 of 2: has ended")


def test_a_peer_on_another_machine(of_two):
    of_two(os.getpid(), machine="another")
    said = refusal(RuntimeError(GLOO))
    assert said.startswith("rank 0 of 2: lost one of ranks 1, on another machine, ([pair.cc:538]")


def test_a_peer_that_is_there(of_two):
    of_two(os.getppid())
    assert refusal(RuntimeError(GLOO)).startswith("rank 0 of 2: lost another ([pair.cc:538] Conn")


@pytest.mark.parametrize("error", [RuntimeError("size mismatch"), ValueError(GLOO)])
def test_a_fault_of_its_own_stays_what_it_is(of_two, error):
    of_two(os.getppid())
    with pytest.raises(type(error)) as caught, room.naming_lost_ranks():
        raise error
    assert caught.value is error and not isinstance(error, InputError)


def test_one_process_alone_names_none():
    with pytest.raises(RuntimeError, match="Connection closed"), room.naming_lost_ranks():
        raise RuntimeError(GLOO)


@pytest.mark.parametrize(
    "code, name, said",
    [
        (-9, "SIGKILL", "was killed (SIGKILL), as the system does"),
        (-11, "SIGSEGV", "was ended by SIGSEGV, and the others"),
        (3, None, "ended with exit status 3"),
    ],
)
def test_what_the_starting_process_says(code, name, said):
    error = ProcessExitedException("", 1, 4711, code, name)
    message = str(room.died(error, first_rank=4, world=8))
    assert message.startswith(f"rank 5 of 8: {said}") and message.endswith(RESUME)
