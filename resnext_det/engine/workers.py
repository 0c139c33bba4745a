"""Data workers that end with their parent, and whose end is told in one line: why, and the mend.

PyTorch knows that a worker died, not why, and tells it with a traceback out of whatever statement
the step was at. Here the next batch tells it, so that the state behind the last step is whole.
"""

import contextlib
import ctypes
import errno
import logging
import multiprocessing.queues
import os
import re
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from detectron2.utils import comm

from ..errors import InputError

logger = logging.getLogger(__name__)

KEY = "DATALOADER.NUM_WORKERS"
SHARED = "/dev/shm"
OUT_OF_MEMORY = "was killed (SIGKILL), as the system does with processes when memory runs out"
PATIENCE = 1.0  # seconds between the end of a worker's connections and its own
_PDEATHSIG = 1  # <linux/prctl.h>
# What torch says from C++, of any worker of the process.
_DIED = re.compile(
    r"DataLoader worker \(pid (\d+)\) (?:is killed by signal: (.+?)\.|exited .* exit code (\d+))"
)


# ---- in the worker ----


class Beginning:
    """What a data worker does first; ``worker_init_fn`` of `WatchedLoader`.

    It ties the worker to its parent, so that it ends at once when the parent does (by itself it
    looks for the parent every five seconds, and not while it waits for room in a pipe that no one
    reads any more). And it lets the worker end where a batch cannot be handed over: the queue would
    drop that batch, and the parent would wait for it for ever.
    """

    def __init__(self):
        self.parent = os.getpid()
        # The system counts the thread that forked as the parent: others may end before the loader.
        self.ties = threading.current_thread() is threading.main_thread()

    def __call__(self, _worker: int) -> None:
        multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_end)
        # A fork server would be the parent instead.
        if self.ties and sys.platform == "linux" and os.getppid() == self.parent:
            ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != self.parent:  # it ended before it could be tied
                os._exit(1)


def _end(error: Exception, _batch: object) -> None:
    """End this worker; where a limit of the system was met, its number is the exit status."""
    text = str(error)
    if os.strerror(errno.EMFILE) in text:
        os._exit(errno.EMFILE)
    if "shared memory" in text or os.strerror(errno.ENOSPC) in text:
        os._exit(errno.ENOSPC)
    traceback.print_exception(error)
    sys.stderr.flush()
    os._exit(1)


# ---- in the parent ----


class WatchedLoader(torch.utils.data.DataLoader):
    """torch's loader, whose data workers begin by `Beginning` and are watched.

    Iterating raises InputError where a worker cannot be started or has died; what a data set raises
    is raised as torch does. Where its batches may need more shared memory than there is, the log
    says so once.
    """

    told = False

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, worker_init_fn=Beginning(), **kwargs)

    def __iter__(self) -> Iterator:
        if not self.num_workers:
            return super().__iter__()
        try:
            batches = super().__iter__()
        except OSError as error:
            raise InputError(
                KEY,
                f"{self.num_workers} data workers cannot be started ({error.strerror or error})",
                "set it lower; 0 needs none",
            ) from error
        _defer()
        return _Watched(batches, self)


class _Watched:
    """A loader's iterator; whatever else is asked of it is torch's."""

    def __init__(self, batches: Iterator, loader: WatchedLoader):
        self.batches, self.loader, self.is_first = batches, loader, True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.batches, name)

    def __iter__(self) -> Iterator:
        return self

    def __next__(self) -> Any:
        try:
            with _heard():
                batch = next(self.batches)
        except (RuntimeError, OSError, EOFError) as error:
            workers = getattr(self.batches, "_workers", ())
            cause = cause_of(error, workers, self.loader.num_workers)
            if cause is None:
                raise
            _end_all(workers)
            raise cause from error
        if self.is_first and not WatchedLoader.told:
            WatchedLoader.told = tell_of_shortage(batch, self.loader)
        self.is_first = False
        return batch


def _end_all(workers: Sequence[Any]) -> None:
    """One that waits for what a dead one holds would be given five seconds to end by itself."""
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join()


def cause_of(error: Exception, workers: Sequence[Any], number: int) -> InputError | None:
    """Why a batch could not be had; None where no worker died, and the error is another one.

    Args:
        error: of torch's loader; or OSError or EOFError, where the worker that died had put a batch
            into the queue, whose memory it was to hand over when asked.
        workers: its processes, with ``pid`` and ``exitcode``.
        number: of workers, as the config says.
    """
    ended = _ended(workers, 0 if isinstance(error, RuntimeError) else PATIENCE)
    if not ended:
        # Of another loader, as of the training's while an evaluation runs: only torch's text tells.
        ended = _by_text(error)
    if not ended:
        return None
    pid, code = ended[0]
    found, mend = _in_words(code, number)
    return InputError(KEY, f"data worker {pid} {found}", mend)


def _ended(workers: Sequence[Any], patience: float) -> list[tuple[int, int]]:
    """(process id, exit code) of the workers that died, within ``patience`` seconds."""
    end = time.monotonic() + patience
    while not (found := [(w.pid, w.exitcode) for w in workers if w.exitcode]):
        if time.monotonic() >= end:
            break
        time.sleep(0.01)
    return found


def _by_text(error: BaseException) -> list[tuple[int, int]]:
    names = {signal.strsignal(number): -number for number in signal.valid_signals()}
    while error is not None:
        if found := _DIED.search(str(error)):
            pid, name, status = found.groups()
            return [(int(pid), int(status) if status else names.get(name, 1))]
        error = error.__cause__ or error.__context__
    return []


def _in_words(code: int, number: int) -> tuple[str, str]:
    """What happened to a worker with this exit code, and the mend."""
    lower = f"set {KEY} lower (it is {number}"
    if code == -signal.SIGKILL:
        more = "give the machine or container more memory"
        return OUT_OF_MEMORY, f"{more}, or {lower}; 0 has none) or the batch smaller"
    if code in (-signal.SIGBUS, errno.ENOSPC):
        why = "died of a bus error" if code < 0 else "could not hand its batch over"
        more = "give the container more (docker run --shm-size 8g, or --ipc host)"
        return (
            f"{why}, as where shared memory is full{_room()}",
            f"{more}, or {lower}; 0 needs none)",
        )
    if code == errno.EMFILE:
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        mend = f"raise that limit (ulimit -n 65536), or {lower})"
        return f"ran out of open files (ulimit -n is {most})", mend
    how = f"exit status {code}" if code > 0 else f"signal {-code} ({_name(-code)})"
    return f"ended with {how}", f"set {KEY} 0, where the fault's own message and place are seen"


def _name(number: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return "unknown"


def _room() -> str:
    """ ", and /dev/shm has 64 MiB, 2 MiB of them free"; "" where there is no such place."""
    if (room := shared_memory()) is None:
        return ""
    return f": {SHARED} has {room[0] / 2**20:.0f} MiB, {room[1] / 2**20:.0f} MiB of them free"


def shared_memory() -> tuple[int, int] | None:
    """Bytes of shared memory in all, and free; None where the system has no such place."""
    try:
        found = os.statvfs(SHARED)
    except OSError:
        return None
    return found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize


def size_of(batch: Any) -> int:
    """Bytes of the tensors in a batch: lists, tuples and dicts of them; others are not counted."""
    if isinstance(batch, torch.Tensor):
        return batch.nbytes
    if isinstance(batch, dict):
        batch = batch.values()
    elif not isinstance(batch, list | tuple):
        return 0
    return sum(map(size_of, batch))


def tell_of_shortage(batch: Any, loader: WatchedLoader) -> bool:
    """Warn where the workers' batches may not fit into shared memory; whether it was told."""
    room = shared_memory()
    waiting = loader.num_workers * (loader.prefetch_factor or 0) * comm.get_local_size()
    if room is None or size_of(batch) * waiting <= room[0]:
        return False
    logger.warning(
        "data workers hold up to %d batches like the first one (%.1f MiB) in shared memory, and %s "
        "has %.0f MiB: a worker that finds no room dies; give the container more (docker run "
        "--shm-size 8g, or --ipc host), or set %s lower (it is %d)",
        waiting,
        size_of(batch) / 2**20,
        SHARED,
        room[0] / 2**20,
        KEY,
        loader.num_workers,
    )
    return True


# ---- when a worker's end is heard ----


class _Hearing:
    """State of this process: torch's handler, whether a batch is waited for, what was missed."""

    handler = None
    waits = False
    missed = False


def _defer() -> None:
    """Let torch's handler of SIGCHLD, which raises, run where a batch is waited for only.

    It raises from whatever statement is at hand, also from within an optimizer's step, whose
    weights would then be neither those of before nor those of after.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    handler = signal.getsignal(signal.SIGCHLD)
    if callable(handler) and handler is not _hear:
        _Hearing.handler = handler
        signal.signal(signal.SIGCHLD, _hear)


def _hear(number: int, frame: Any) -> None:
    if _Hearing.waits:
        _Hearing.handler(number, frame)
    else:
        _Hearing.missed = True


@contextlib.contextmanager
def _heard() -> Iterator[None]:
    """A block in which a worker's end raises at once; one of before raises where it begins."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _Hearing.waits = True
    try:
        if _Hearing.missed:
            _Hearing.missed = False
            _Hearing.handler(signal.SIGCHLD, None)
        yield
    finally:
        _Hearing.waits = False
