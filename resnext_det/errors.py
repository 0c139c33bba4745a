"""The one kind of error a user is meant to read: what is wrong, where, and how to mend it."""

import functools
import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path


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
    cut = text[: most + 1]
    if not cut.isprintable():  # control characters, line ends of any kind, lone surrogates
        cut = "".join(c if c.isprintable() or c == "\t" else repr(c)[1:-1] for c in cut)
    return cut if len(cut) <= most else f"{cut[:most]}..."


def one_line(value: object) -> str:
    """An error's or a value's text, however many lines it has, as `shown`."""
    return shown(" ".join(str(value).split()))


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop (SIGINT, SIGTERM) and has saved its state."""


_IN_TEXT = re.compile(rf"^{InputError.__module__}\.InputError: (.+)$", re.MULTILINE)


def exit_cleanly(tool: Callable[[], None]) -> Callable[[], None]:
    """Decorate a tool's main: input errors become one line and exit status 2.

    ``--debug`` anywhere on the command line keeps the traceback. Faults of ours keep
    theirs always, and exit with status 1 (Python's own rule).
    """

    @functools.wraps(tool)
    def main() -> None:
        debug = "--debug" in sys.argv
        if debug:
            sys.argv.remove("--debug")
        try:
            tool()
        except InputError as error:
            if debug:
                raise
            logging.shutdown()
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except Exception as error:  # torch hands an error of another process over as text
            found = _IN_TEXT.search(str(error))
            if debug or found is None:
                raise
            logging.shutdown()
            print(f"error: {found[1]}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt as stop:
            print(f"stopped: {str(stop) or 'interrupted'}", file=sys.stderr)
            sys.exit(130)

    return main
