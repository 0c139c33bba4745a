"""The run's log: the console at once, ``log.txt`` from the moment that the folder is a run's."""

import contextlib
import logging
import logging.handlers
import sys
from pathlib import Path

from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..errors import not_written
from ..writing import told_of_writing

LOGGERS = ("resnext_det", "detectron2", "fvcore")
_MANY = 100_000  # lines kept for a file; before it is there a run checks its input, no more
# As Detectron2's own log.txt has them.
_LINE, _DATE = "[%(asctime)s] %(name)s %(levelname)s: %(message)s", "%m/%d %H:%M:%S"


class LogFile(logging.FileHandler):
    """Adds lines to a log; the first that a disk does not take ends the run.

    Python's own handler would print a traceback for each of them and go on.

    Raises:
        InputError: the file cannot be opened; from any logger's call, that a line cannot be added.
    """

    def __init__(self, path: str | Path):
        with told_of_writing(path):
            super().__init__(path, encoding="utf-8", errors="backslashreplace")
        self.path = path  # as it was given
        self.setFormatter(logging.Formatter(_LINE, _DATE))

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        for name in LOGGERS:  # what is still said while the run ends goes to the console
            logging.getLogger(name).removeHandler(self)
        with contextlib.suppress(OSError):  # of the same line, which it still holds
            self.close()
        raise not_written(self.path, error.errno, error.strerror) from error


def log_to_console() -> None:
    """Log to the console, keeping the lines for `log_to`; a process that runs twice prints once."""
    if any(_early(name) for name in LOGGERS):
        return
    early = logging.handlers.MemoryHandler(_MANY, logging.CRITICAL + 1)
    for name in LOGGERS:
        _set_up(name)
        logging.getLogger(name).addHandler(early)


def log_to(folder: str | Path) -> None:
    """Log to ``folder/log.txt`` as well, the lines since `log_to_console` first.

    Without `log_to_console` before it, logging is the user's own, and stays as it is. Processes
    but the first write ``log.txt.rank1`` and so on.

    Raises:
        InputError: see `LogFile`.
    """
    file = None
    for name in LOGGERS:
        early = _early(name)
        if early is None:
            continue
        lines = [line for line in early.buffer if line.name.split(".")[0] == name]
        _set_up(name)
        file = file or LogFile(Path(folder, _file_name()))
        logging.getLogger(name).addHandler(file)
        for line in lines:
            file.handle(line)


def _file_name() -> str:
    return f"log.txt.rank{comm.get_rank()}" if comm.get_rank() else "log.txt"


def _early(name: str) -> logging.handlers.MemoryHandler | None:
    handlers = logging.getLogger(name).handlers
    kept = [h for h in handlers if isinstance(h, logging.handlers.MemoryHandler)]
    return kept[0] if kept else None


def _set_up(name: str) -> None:
    """The console's handler only, once."""
    old = logging.getLogger(name).handlers
    while old:
        handler = old.pop()
        if not isinstance(handler, logging.handlers.MemoryHandler):  # that is several loggers'
            handler.close()
    setup_logger.cache_clear()
    setup_logger(None, distributed_rank=comm.get_rank(), name=name)
