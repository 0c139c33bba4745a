"""Run records in docs/records: made from a run folder, named, written."""

import re
from dataclasses import replace
from pathlib import Path

from .. import runs
from ..errors import InputError
from ..runs import Record
from ..writing import write_text
from .rows import is_here, nearest_recipe, network_of

NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")


def record_in(folder: str, data_set: str | None) -> Record:
    run = runs.read_run(folder)
    try:
        record = runs.record_of(run, network_of(run.cfg), data_set)
    except InputError as error:
        if error.file != "MODEL.RESNETS":
            raise
        raise InputError(run.folder / "config.yaml", error.found, error.mend) from error
    if not is_here(record.config_file):
        record = replace(record, config_file=nearest_recipe(record))
    return record


def default_name(record: Record) -> str:
    words = f"{record.architecture}_{record.data_set}_{record.task}_seed{record.seed}"
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", words)


def keep(record: Record, name: str, folder: Path) -> Record:
    """Write the record; another run's is not replaced."""
    path = folder / f"{name}.json"
    if path.exists():
        there = runs.read_record(path)
        if (there.started, there.output) != (record.started, record.output):
            raise InputError(
                path,
                f"is the record of another run ({there.output}, {there.started})",
                "give another --name, or remove it",
            )
    write(path, runs.as_json(record))
    return replace(record, path=path.resolve())


def write(path: Path, text: str) -> None:
    """Whole or not at all. Raises InputError where it cannot be written."""
    write_text(path, text, "give another path")
