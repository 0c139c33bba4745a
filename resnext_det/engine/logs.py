"""The run's log: the console at once, ``log.txt`` from the moment that the folder is a run's."""

import logging
import logging.handlers
from pathlib import Path

from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

LOGGERS = ("resnext_det", "detectron2", "fvcore")
_MANY = 100_000  # lines kept for a file; before it is there a run checks its input, no more


def log_to_console() -> None:
    """Log to the console, keeping the lines for `log_to`; a process that runs twice prints once."""
    if any(_early(name) for name in LOGGERS):
        return
    early = logging.handlers.MemoryHandler(_MANY, logging.CRITICAL + 1)
    for name in LOGGERS:
        _set_up(name, None)
        logging.getLogger(name).addHandler(early)


def log_to(folder: str | Path) -> None:
    """Log to ``folder/log.txt`` as well, the lines since `log_to_console` first.

    Without `log_to_console` before it, logging is the user's own, and stays as it is.
    """
    for name in LOGGERS:
        early = _early(name)
        if early is None:
            continue
        lines = [line for line in early.buffer if line.name.split(".")[0] == name]
        _set_up(name, str(folder))
        file = logging.getLogger(name).handlers[-1]  # setup_logger adds the file's last
        for line in lines:
            file.handle(line)


def _early(name: str) -> logging.handlers.MemoryHandler | None:
    handlers = logging.getLogger(name).handlers
    kept = [h for h in handlers if isinstance(h, logging.handlers.MemoryHandler)]
    return kept[0] if kept else None


def _set_up(name: str, folder: str | None) -> None:
    old = logging.getLogger(name).handlers
    while old:
        handler = old.pop()
        if not isinstance(handler, logging.handlers.MemoryHandler):  # that is several loggers'
            handler.close()
    setup_logger.cache_clear()
    setup_logger(folder, distributed_rank=comm.get_rank(), name=name)
