"""docs/reproduction.md: the paper's numbers beside the runs that were done, as Markdown."""

import itertools
import math
import os
import statistics
from pathlib import Path

from .. import runs
from ..runs import Record
from .rows import (
    ROOT,
    Row,
    Table,
    alike,
    command_in,
    is_here,
    recipes,
    runs_of,
    settings_in,
    tables,
)

PAGE, RECORDS = ROOT / "docs" / "reproduction.md", ROOT / "docs" / "records"
INTRODUCTION = """A run fills a row when its network, its numbers of images and classes, and all
settings that change the result are those of the row's config; every other run stands at the end.
The command of a row without a run is the one that would fill it. After a run,

    python tools/reproduction.py --add OUTPUT_DIR

keeps its record in docs/records/ and writes this page. Of several runs that differ in their seed,
the mean and its standard error are given."""
# Results that the page shows, and their decimals.
DIGITS = {"AP": 1, "AP50": 1, "top1_error": 2, "top5_error": 2}
DIGITS |= {"top1_error_1000way": 2, "top5_error_1000way": 2}


def code(text: str) -> str:
    return f"`{text}`"


def link(text: str, path: str | Path, page: Path) -> str:
    return f"[{text}]({Path(os.path.relpath(ROOT / path, page.parent)).as_posix()})"


def averaged(records: list[Record], name: str) -> str:
    """One result: "3.65", or "3.65 ± 0.05" with the standard error of the mean."""
    values = [record.results[name] for record in records]
    digits = DIGITS[name.rpartition("/")[2]]
    mean = f"{statistics.fmean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(values) / math.sqrt(len(values)):.{digits}f}"


def sources(records: list[Record], page: Path) -> str:
    """How many runs, and where their records are."""
    kept = [r.path for r in records if r.path is not None]
    if len(records) == 1:
        return f" ({link('record', kept[0], page)})" if kept else ""
    links = [link(str(number), path, page) for number, path in enumerate(kept, 1)]
    return f" ({len(records)} runs{': ' * bool(links)}{' '.join(links)})"


def as_table(headers: list[str], lines: list[list[str]]) -> str:
    lines = [[" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in lines]
    rule = ["---"] * len(headers)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headers, rule, *lines))


def line_of(row: Row, digits: int, records: list[Record], page: Path) -> list[str]:
    printed = " / ".join(f"{value:.{digits}f}" for value in row.paper)
    config = row.config
    if config is None:
        return [row.network, row.part, printed, "not a network of this package", "", ""]
    found = runs_of(row, records)
    command, ours = planned_command(row, config), "not run"
    if found:
        ours = " / ".join(averaged(found, name) for name in row.measures) + sources(found, page)
        command = found[0].command
    return [row.network, row.part, printed, ours, code(command), link(config, config, page)]


def planned_command(row: Row, config: str) -> str:
    if not row.opts:
        return command_in(config)
    output = recipes()[config].OUTPUT_DIR
    return (
        f"python tools/pretrain_imagenet.py --config-file {config} --eval-only "
        f"MODEL.WEIGHTS {output}/model_final.safetensors DATA.ROOT /data/imagenet "
        f"{' '.join(row.opts)} OUTPUT_DIR {output}/crop{row.opts[-1]}"
    )


def section(table: Table, records: list[Record], page: Path) -> str:
    lines = [line_of(row, table.digits, records, page) for row in table.rows]
    headers = ["network", "paper", "ours", "command", "config"]
    if table.part:
        headers.insert(1, table.part)
    else:
        lines = [[first, *rest] for first, _, *rest in lines]
    return f"## {table.title}\n\n{table.numbers}\n\n{as_table(headers, lines)}"


def other_line(group: list[Record], page: Path) -> list[str]:
    first = group[0]
    counts = [f"{n:,}" if n is not None else "?" for n in (first.train_images, first.val_images)]
    config = first.config_file
    return [
        first.data_set + ", evaluation only" * first.is_evaluation,
        " / ".join(counts),
        first.architecture,
        results_of(group) + sources(group, page),
        changes(first),
        code(first.command),
        link(config, config, page) if is_here(config) else "",
    ]


def results_of(group: list[Record]) -> str:
    """ "AP 46.5, AP50 80.6"; with the name of the data set where several were tested."""
    common = [name for name in group[0].results if all(name in r.results for r in group)]
    shown = {name: name.rpartition("/")[2] for name in common}
    texts = []
    for name, short in shown.items():
        if short in DIGITS:
            unique = list(shown.values()).count(short) == 1
            texts.append(f"{short if unique else name} {averaged(group, name)}")
    return ", ".join(texts)


def changes(record: Record) -> str:
    """Settings in which a run differs from the config that it was begun with."""
    if not is_here(record.config_file):
        return "?"
    expected = settings_in(record.config_file)
    found = runs.differences(record.settings, expected, of_the_test=record.is_evaluation)
    return ", ".join(code(f"{key} {ours!r}") for key, (ours, _) in found.items()) or "nothing"


def others(records: list[Record], page: Path) -> str:
    head = (
        "## Other runs\n\nRuns of other data, networks or settings than a row's: not "
        'reproductions. Errors and AP in percent; "differs": from the config.'
    )
    if not records:
        return f"{head}\n\nNone is recorded."
    headers = ["data", "training / validation images", "network", "results", "differs"]
    ordered = sorted(records, key=lambda r: (alike(r), r.seed, r.started))
    groups = [list(group) for _, group in itertools.groupby(ordered, alike)]
    lines = [other_line(group, page) for group in groups]
    return f"{head}\n\n{as_table([*headers, 'command', 'config'], lines)}"


def document(records: list[Record], page: Path = PAGE) -> str:
    """The whole page; ``page`` is where it will stand, for its links."""
    rows = [row for table in tables() for row in table.rows if row.config is not None]
    found = [runs_of(row, records) for row in rows]
    used = [record for several in found for record in several]
    parts = [
        "# The paper's numbers and ours",
        "<!-- Written by tools/reproduction.py from docs/records/*.json: change those. -->",
        f"{sum(map(bool, found))} of {len(rows)} rows have a run. {INTRODUCTION}",
        *(section(table, records, page) for table in tables()),
        others([record for record in records if record not in used], page),
    ]
    return "\n\n".join(parts) + "\n"
