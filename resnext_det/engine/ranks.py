"""Which process of a run died: said by those that wait for it, and by the one that started them."""

import contextlib
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import torch.distributed as dist
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException

from ..errors import InputError, one_line

PATIENCE = 10.0  # seconds in which a process that has closed its connections is gone
RESUME = "add --resume to go on from the newest checkpoint"
# Gloo's and NCCL's words for a process that no longer answers.
_LOST = re.compile(
    r"connection (closed|reset|refused)|broken pipe|socket closed|timed out waiting|"
    r"remote process exited|network error|communicator was aborted",
    re.IGNORECASE,
)
_peers: list[tuple[str, int]] = []  # by rank: machine, process id


def remember_ranks() -> None:
    """Learn who the other processes are; called by all of them, once they have joined."""
    _peers[:] = comm.all_gather((_machine(), os.getpid()))


def _machine() -> str:
    """A process id means something among processes of one machine, and of one container there."""
    with contextlib.suppress(OSError):
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()


def lost_rank(error: BaseException | None) -> bool:
    """Whether an error says that another process of the run no longer answers."""
    if comm.get_world_size() == 1 or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, dist.DistError) or bool(_LOST.search(str(error)))


@contextlib.contextmanager
def naming_lost_ranks() -> Iterator[None]:
    """Raise InputError, with the dead process's rank, in place of what `lost_rank` is true for."""
    try:
        yield
    except RuntimeError as error:
        if not lost_rank(error):
            raise
        raise InputError(*_told(error)) from error


def _told(error: RuntimeError) -> tuple[str, str, str]:
    own, world = comm.get_rank(), len(_peers)
    if ranks := _gone(PATIENCE):
        name = f"rank {' and '.join(map(str, ranks))} of {world}"
        return name, f"has ended, and rank {own} with it: they work on one batch together", RESUME
    away = [rank for rank, (machine, _) in enumerate(_peers) if machine != _peers[own][0]]
    who = f"one of ranks {', '.join(map(str, away))}, on another machine," if away else "another"
    return f"rank {own} of {world}", f"lost {who} ({one_line(error)})", f"see its log; {RESUME}"


def _gone(patience: float) -> list[int]:
    """Ranks of this machine that are no longer there, after ``patience`` seconds at most."""
    here = _machine()
    pids = {rank: pid for rank, (machine, pid) in enumerate(_peers) if machine == here}
    end = time.monotonic() + patience
    while not (gone := [rank for rank, pid in pids.items() if not is_running(pid)]):
        if time.monotonic() > end or len(pids) == 1:
            break
        time.sleep(0.05)
    return gone


def is_running(pid: int) -> bool:
    """Whether a process is there and has not ended; True where the system does not tell."""
    if not Path("/proc/self/stat").exists():
        return True
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def died(error: ProcessExitedException, first_rank: int, world: int) -> InputError:
    """What the process that started the others says of one that was killed.

    Args:
        error: torch's, which has ended the others by then.
        first_rank: of the processes on this machine.
        world: processes of the run.
    """
    code = error.exit_code
    if code == -signal.SIGKILL:
        how = "was killed (SIGKILL), as the system does with processes when memory runs out"
    elif code < 0:
        how = f"was ended by {error.signal_name}"
    else:
        how = f"ended with exit status {code}"
    name = f"rank {first_rank + error.error_index} of {world}"
    return InputError(name, f"{how}, and the others with it", RESUME)
