"""The one kind of error a user is meant to read: what is wrong, where, and how to mend it."""

import errno
import functools
import logging
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType


class InputError(ValueError):
    """Something the user gave (config, annotation, image, weights, path) cannot be used.

    Args:
        file: the file, folder or config key group that holds the fault.
        found: the field and the value found there, as a sentence without a full stop.
        mend: what to do about it, as an imperative without a full stop.
    """

    def __init__(self, file: str | Path, found: str, mend: str):
        super().__init__(f"{file}: {found}; {mend}")
        self.file, self.found, self.mend = str(file), found, mend

    def __reduce__(self):
        # The default would call InputError(message); worker processes must hand it over whole.
        return type(self), (self.file, self.found, self.mend)


SHOWN = 200  # characters of a file's own text in a message


def shown(text: str, most: int = SHOWN) -> str:
    """A text out of a file as one line that any terminal can show; what is left out is "..."."""
    cut = _printable(text[: most + 1])
    return cut if len(cut) <= most else f"{cut[:most]}..."


def _printable(text: str) -> str:
    """One line that leaves a terminal as it is, whatever a stranger's file has put into it."""
    if text.isprintable():
        return text
    # Control characters, line ends of any kind, lone surrogates.
    return "".join(c if c.isprintable() or c == "\t" else repr(c)[1:-1] for c in text)


def one_line(value: object) -> str:
    """An error's or a value's text, however many lines it has, as `shown`."""
    return shown(" ".join(str(value).split()))


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop (SIGINT, SIGTERM) and has saved its state."""


# ---- a disk that takes no more ----

FULL = (errno.ENOSPC, errno.EDQUOT)
CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM)
MISPLACED = (errno.EISDIR, errno.ENOTDIR, errno.EEXIST)  # a folder for a file, or the reverse
AGAIN = "and give the same command again (a training with --resume)"


def disk_error(error: BaseException | None) -> bool:
    """Whether the system said that a disk is full, or that a file may not be used.

    Neither is a fault of ours. Of the latter only where the system names the file.
    """
    if not isinstance(error, OSError):
        return False
    if error.errno in CLOSED[1:]:
        return error.filename is not None
    return error.errno in (*FULL, errno.EFBIG, errno.EROFS)


def not_written(
    file: str | Path | None, number: int | None, reason: str, elsewhere: str = ""
) -> InputError:
    """What is told where the system does not let ``file`` be written.

    Args:
        file: None where the system does not name it.
        number: the system's (errno), which the mend goes by.
        reason: the system's words.
        elsewhere: the mend where room is not what is missing.
    """
    if number in FULL:
        mend = f"free some space {AGAIN}"
    elif number == errno.EFBIG:
        mend = f"raise the limit of a file's size (ulimit -f) {AGAIN}"
    elif number in MISPLACED and not elsewhere:
        mend = f"remove or rename it {AGAIN}"
    else:
        mend = elsewhere or f"make it writable {AGAIN}, or choose another place"
    return InputError(file or "the disk", f"cannot be written ({reason})", mend)


def _told(error: OSError) -> InputError:
    """A `disk_error` that nobody has put into words on its way."""
    if error.errno in CLOSED[1:]:
        return InputError(
            error.filename, f"cannot be used ({error.strerror})", "give yourself access to it"
        )
    return not_written(error.filename, error.errno, error.strerror)


# ---- the end of a tool ----


def hear_interrupts() -> None:
    """Let Ctrl-C while a tool is imported be one line; called before the imports that take long.

    A tool is a script in tools/ beside the package. Python ends with the signal then, which a shell
    shows as 130.
    """
    script = getattr(sys.modules["__main__"], "__file__", None)
    here = Path(__file__).resolve().parents[1] / "tools"
    if script and Path(script).resolve().parent == here and sys.excepthook is sys.__excepthook__:
        sys.excepthook = _of_an_interrupt


def _of_an_interrupt(kind: type, error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print(f"stopped: {str(error) or 'interrupted'}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


_IN_TEXT = re.compile(rf"^{InputError.__module__}\.InputError: (.+)$", re.MULTILINE)
# The last line of a traceback: number, words and, where the system names it, file.
_DISK_IN_TEXT = re.compile(
    r"^(?:OSError|PermissionError): \[Errno (\d+)\] ([^:\n]+)(?:: '(.+)')?\s*\Z", re.MULTILINE
)


def exit_cleanly(tool: Callable[[], None]) -> Callable[[], None]:
    """Decorate a tool's main: input errors and full disks become one line and exit status 2.

    ``--debug`` anywhere on the command line keeps the traceback. Faults of ours keep
    theirs always, and exit with status 1 (Python's own rule).
    """

    @functools.wraps(tool)
    def main() -> None:
        debug = "--debug" in sys.argv
        if debug:
            sys.argv.remove("--debug")
        before, threading.excepthook = threading.excepthook, _of_a_thread
        try:
            tool()
        except Exception as error:
            said = None if debug else _said(error)
            if said is None:
                raise
            logging.shutdown()
            print(f"error: {_printable(said)}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt as stop:
            # What was half-made at that moment (torch's loaders) complains while it goes.
            sys.unraisablehook = lambda _: None
            print(f"stopped: {str(stop) or 'interrupted'}", file=sys.stderr)
            sys.exit(130)
        finally:
            threading.excepthook = before

    return main


def _said(error: Exception) -> str | None:
    """The line for a user; None for a fault of ours."""
    if isinstance(error, InputError):
        return str(error)
    if disk_error(error):
        return str(_told(error))
    text = str(error)  # torch hands an error of another process over as text
    if found := _IN_TEXT.search(text):
        return found[1]
    if found := _DISK_IN_TEXT.search(text):
        other = OSError(int(found[1]), found[2], found[3])
        return str(_told(other)) if disk_error(other) else None
    return None


def _of_a_thread(args: threading.ExceptHookArgs) -> None:
    """TensorBoard's thread hands its error to the one that trains, which tells it."""
    if type(args.thread).__module__.startswith("tensorboard.") and disk_error(args.exc_value):
        return
    threading.__excepthook__(args)
