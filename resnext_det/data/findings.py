"""What a check of a data set finds: one record a kind of fault, with a count and examples."""

import logging
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError, shown

logger = logging.getLogger(__name__)

STOPS = "stops"  # training does not start
DROPPED = "dropped"  # left out, because a config key says so
MENDED = "mended"  # put right in memory; the file stays as it is
NOTICED = "noticed"  # nothing is changed; worth knowing
SEVERITIES = (STOPS, DROPPED, MENDED, NOTICED)
EXAMPLES = 3
LONGEST = 600  # characters of an entry's name, of what is found with it, or of a path, as shown
TOOL = "python tools/check_data.py"


@dataclass(frozen=True)
class Finding:
    """All entries of one file that one thing is the matter with.

    Args:
        kind: a few words, the same for every file: "box without area".
        severity: one of `SEVERITIES`.
        file: the annotation file.
        entry: the first of the entries, "annotation 7 (image 3)".
        found: what is the matter with it, as the rest of a sentence that begins with the entry.
        mend: what to do about it, as an imperative; for what needs nothing, the rule that applies.
        count: number of entries.
        examples: up to three of them, each as "<entry> <found>"; the first is that of above.
        picture: path of the first entry's picture, where that is the file at fault.
    """

    kind: str
    severity: str
    file: str
    entry: str
    found: str
    mend: str
    count: int = 1
    examples: tuple[str, ...] = ()
    picture: str = ""

    def as_line(self) -> str:
        """For a log: "<file>: 3 x box without area (annotation 7 (image 3) has ..); <mend>"."""
        return f"{self.file}: {self.count} x {self.kind} ({self.entry} {self.found}); {self.mend}"


class Findings:
    """Collects the findings of one annotation file, in the order in which they are made."""

    def __init__(self, file: str | Path):
        self.file = str(file)
        self.all: list[Finding] = []

    def add(
        self,
        kind: str,
        severity: str,
        entries: Sequence[int],
        say: Callable[[int], tuple[str, str]],
        mend: str,
        picture: Callable[[int], str] | None = None,
    ) -> None:
        """Record a kind of fault; nothing where ``entries`` is empty.

        Args:
            entries: numbers of the entries; ``say`` gives (entry, found) for a number and is
                called for the examples only.
            picture: gives the path for a number, where a picture is at fault.
        """
        if len(entries) == 0:
            return
        first = [int(number) for number in entries[:EXAMPLES]]
        told = [tuple(shown(text, LONGEST) for text in say(number)) for number in first]
        places = [f" ({shown(picture(number), LONGEST)})" if picture else "" for number in first]
        examples = [f"{told[n][0]}{places[n]} {told[n][1]}" for n in range(len(first))]
        self.all.append(
            Finding(
                kind=kind,
                severity=severity,
                file=self.file,
                entry=told[0][0],
                found=told[0][1],
                mend=mend,
                count=len(entries),
                examples=tuple(examples),
                picture=picture(first[0]) if picture else "",
            )
        )


def check_command(
    json_file: str | Path, image_root: str | Path | None, overrides: Sequence[str] = ()
) -> str:
    """The command that lists everything, for a shell.

    Args:
        overrides: ``KEY VALUE`` words, see `coco_checks.Rules.overrides`.
    """
    folder = "IMAGES" if image_root is None else shlex.quote(str(image_root))
    return " ".join([TOOL, shlex.quote(str(json_file)), folder, *overrides])


def raise_first(findings: Iterable[Finding], command: str) -> None:
    """Raises InputError for the first finding that stops; it also says how many more there are.

    Args:
        command: see `check_command`; named where there are more.
    """
    stops = [finding for finding in findings if finding.severity == STOPS]
    if not stops:
        return
    first, others = stops[0], sum(finding.count for finding in stops[1:])
    more = [f"{first.count - 1} more like it"] if first.count > 1 else []
    more += [f"{others} of other kinds"] if others else []
    note = f" (there are {' and '.join(more)}: `{command}` lists all)" if more else ""
    if first.picture:
        found = f"it is {first.entry} of {first.file} and {first.found}{note}"
        raise InputError(shown(first.picture, LONGEST), found, first.mend)
    raise InputError(first.file, f"{first.entry} {first.found}{note}", first.mend)


_logged: set[str] = set()


def log_notices(findings: Iterable[Finding]) -> None:
    """Everything that does not stop, a line a kind; once a process, often as a file may be read."""
    for finding in findings:
        line = finding.as_line()
        if finding.severity != STOPS and line not in _logged:
            _logged.add(line)
            logger.info("%s: %s", finding.severity, line)
