"""The arguments of a tool, whose faults are one line with the nearest right word."""

import argparse
import difflib
import re
import sys
from typing import Any, NoReturn

from .errors import InputError, one_line

WHERE = "command line"
NO_KEYS = "leave it away: this tool takes none; --help lists its flags"
KEYS = {  # that other programs have as flags
    "OUTPUT_DIR": "OUTPUT_DIR",
    "OUTPUT": "OUTPUT_DIR",
    "WEIGHTS": "MODEL.WEIGHTS",
    "DEVICE": "MODEL.DEVICE",
    "SEED": "SEED",
    "LR": "SOLVER.BASE_LR",
    "BATCH_SIZE": "SOLVER.IMS_PER_BATCH",
    "EPOCHS": "SOLVER.MAX_EPOCHS",
    "WORKERS": "DATALOADER.NUM_WORKERS",
    "NUM_WORKERS": "DATALOADER.NUM_WORKERS",
}
_UNKNOWN = re.compile(r"unrecognized arguments: (\S+)")
_CHOICE = re.compile(r"argument (\S+): invalid choice: '?(.*?)'? \(choose from (.*)\)")


class Parser(argparse.ArgumentParser):
    """argparse's, with the tool's docstring as its help, as it was written.

    A fault is an `InputError`, which `errors.exit_cleanly` shows, and not the whole usage.

    Args:
        about: the docstring.
        others: argparse's.
    """

    def __init__(self, about: str | None = None, **others: Any):
        shape = argparse.RawDescriptionHelpFormatter
        others = {"allow_abbrev": False, **others}  # "--resum" is a slip, and may cost a run
        super().__init__(description=about, formatter_class=shape, **others)
        # Taken out of the command line by errors.exit_cleanly; here for --help.
        self.add_argument("--debug", action="store_true", help="a traceback beside every refusal")

    def add_overrides(self, about: str = "KEY VALUE overrides") -> None:
        """``opts``: config keys and values, for `parse_with_overrides`."""
        self.add_argument("opts", nargs="*", help=about)

    def parse_with_overrides(self) -> argparse.Namespace:
        """Flags and overrides in any order. Raises InputError as the class says."""
        args = self.parse_intermixed_args()
        for word in args.opts[::2]:
            if f"--{word}" in self._option_string_actions:
                raise InputError(WHERE, f"{word} is a flag", f"write --{word}")
        return args

    def error(self, message: str) -> NoReturn:
        """Raises InputError in place of argparse's exit."""
        raise InputError(WHERE, *self._told(message))

    def _told(self, message: str) -> tuple[str, str]:
        """(found, mend) for what argparse says."""
        if unknown := _UNKNOWN.match(message):
            return self._unknown_flag(unknown[1])
        if message.startswith("the following arguments are required"):
            slip = next((word for word in sys.argv[1:] if self._is_unknown(word)), None)
            if slip:
                return self._unknown_flag(slip)
            message = message.removesuffix(", opts")
        if choice := _CHOICE.match(message):
            choices = re.findall(r"[^\s,']+", choice[3])
            nearest = _nearest(choice[2], choices)
            found = f"{choice[1]} is {one_line(choice[2])}"
            return found, f"did you mean {nearest}?" if nearest else f"choose from {choice[3]}"
        return one_line(message), "--help lists all arguments"

    def _is_unknown(self, word: str) -> bool:
        parsers = [self, *_commands_of(self)]
        flags = {flag for parser in parsers for flag in parser._option_string_actions}
        return word.startswith("--") and word.split("=")[0] not in flags

    def _unknown_flag(self, word: str) -> tuple[str, str]:
        flag = word.split("=")[0]
        takes_keys = any(action.dest == "opts" for action in self._actions)
        if re.fullmatch(r"(--?)?[A-Z][A-Z_]*(\.\w+)*|--\w+(\.\w+)+", flag):
            mend = f"write {flag.lstrip('-').upper()} VALUE"
            return f"{one_line(flag)} is a config key", mend if takes_keys else NO_KEYS
        key = flag.lstrip("-").replace("-", "_").upper()
        if key in KEYS and takes_keys:
            return f"there is no flag {one_line(flag)}", f"write the config key {KEYS[key]} VALUE"
        nearest = _nearest(flag, self._option_string_actions)
        found = f"there is no flag {one_line(flag)}"
        return found, f"did you mean {nearest}?" if nearest else "--help lists all arguments"


def _commands_of(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """The parsers of a tool's commands, as `plot.py curves`."""
    kinds = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return [command for action in kinds for command in action.choices.values()]


def _nearest(word: str, known) -> str | None:
    """The likest of ``known``; None where nothing is like it."""
    alike = difflib.get_close_matches(word.replace("_", "-"), list(known), n=1)
    return alike[0] if alike else None
