"""A run in one small JSON file, which stays when its folder is gone."""

import json
import shlex
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any

from ..errors import InputError
from .folders import (
    Run,
    check_types,
    leaves,
    read_counts,
    read_evaluation,
    read_object,
    read_results,
)
from .settings import settings_of


@dataclass(frozen=True)
class Record:
    """A run in one small JSON file.

    Args:
        task: "classification" or "detection".
        architecture: name of the network, "X50_32x4d".
        data_set: a name to read; nothing is decided by it.
        train_images, val_images, classes: numbers, None where the log did not say.
        command: one line for a shell, from the repository's root.
        config_file: the recipe's path in the repository, None if there is none.
        weights, output: MODEL.WEIGHTS and OUTPUT_DIR.
        results: see `read_results`.
        settings: see `settings_of`.
        precision: the arithmetic of the run where the settings say "auto"; None if unknown.
        evaluation: see `read_evaluation`; {} if unknown.
        path: of the file itself; not written.
    """

    task: str
    architecture: str
    data_set: str
    train_images: int | None
    val_images: int | None
    classes: int | None
    command: str
    config_file: str | None
    weights: str
    output: str
    seed: int
    started: str
    results: dict[str, float]
    environment: dict[str, str]
    settings: dict[str, Any]
    precision: str | None = None
    evaluation: dict[str, Any] = field(default_factory=dict)
    path: Path | None = field(default=None, compare=False)

    @property
    def is_evaluation(self) -> bool:
        """Of finished weights, without training."""
        return "--eval-only" in self.command.split()


_COUNT, _OPTIONAL = (int, NoneType), (str, NoneType)
_TYPES = {"task": str, "architecture": str, "data_set": str, "train_images": _COUNT}
_TYPES |= {"val_images": _COUNT, "classes": _COUNT, "command": str, "config_file": _OPTIONAL}
_TYPES |= {"weights": str, "output": str, "seed": int, "started": str}
_TYPES |= {"results": dict, "environment": dict, "settings": dict}
_LATER = {"precision": _OPTIONAL, "evaluation": dict}  # which the first records did not have


def record_of(run: Run, architecture: str, data_set: str | None = None) -> Record:
    """The record of a finished run.

    Args:
        architecture: the name of its network.
        data_set: None: what the config calls it.

    Raises:
        InputError: see `read_results`.
    """
    words = [_from_root(word, run.command[0]) for word in run.command]
    counts, evaluation = read_counts(run), read_evaluation(run)
    if evaluation:
        counts["val_images"] = evaluation["images"]
        evaluation["weights"] = _from_root(evaluation["weights"], run.command[0])
    data = run.cfg.DATA.ROOT if run.task == "classification" else "+".join(run.cfg.DATASETS.TRAIN)
    return Record(
        task=run.task,
        architecture=architecture,
        data_set=data_set or Path(data).name,
        **counts,
        command=shlex.join(["python", *words]),
        config_file=_config_file(words),
        weights=_from_root(run.cfg.MODEL.WEIGHTS, run.command[0]),
        output=_from_root(run.cfg.OUTPUT_DIR, run.command[0]),
        seed=run.cfg.SEED,
        started=run.started,
        results=read_results(run),
        environment=run.environment,
        settings=settings_of(run.cfg),
        precision=run.precision,
        evaluation=evaluation,
    )


def _from_root(word: str, tool: str) -> str:
    """Without the folder of the checkout, which the tool's own path begins with."""
    root = Path(tool).parent.parent
    return word.replace(f"{root}/", "") if root.is_absolute() else word


def _config_file(words: list[str]) -> str | None:
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == "--config-file":
            return following
        if word.startswith("--config-file="):
            return word.partition("=")[2]
    return None


def as_json(record: Record) -> str:
    """The text of a record's file."""
    values = {name: value for name, value in asdict(record).items() if name != "path"}
    return json.dumps(values, indent=2, sort_keys=True) + "\n"


def read_record(path: Path) -> Record:
    """Raises InputError where the file is no record, naming the field."""
    mend = "write it anew with tools/reproduction.py --add, or remove it"
    found = read_object(path, mend)
    types = _TYPES | {name: wanted for name, wanted in _LATER.items() if name in found}
    check_types(found, types, path, mend)
    if unknown := sorted(set(found) - set(types)):
        raise InputError(path, f"has an unknown field {unknown[0]}", mend)
    results = dict(leaves(found["results"], path))
    return Record(**{**found, "results": results}, path=path)


def read_records(folder: Path) -> list[Record]:
    """All of ``folder``, by file name; none if there is no such folder. Raises as `read_record`."""
    return [read_record(path) for path in sorted(folder.glob("*.json"))]
