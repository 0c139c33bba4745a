"""The folder of a run: whose it is, whether it can be written, where an evaluation's is."""

import itertools
import json
import os
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode

from ..errors import InputError

TRAINING, EVALUATION = "training", "evaluation"  # kinds of a run, in run.json
_OTHER_PLACE = "choose an OUTPUT_DIR that can be written"


def folder_of(cfg: CfgNode, *parts: str) -> Path:
    return Path(cfg.OUTPUT_DIR, *parts)


def kind_of_run(folder: str | Path) -> str | None:
    """ "training" or "evaluation", by the folder's run.json; None where there is none.

    A run.json that cannot be read counts as training's, so that nothing takes its place.
    """
    try:
        found = json.loads(Path(folder, "run.json").read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError):
        return TRAINING
    found = found if isinstance(found, dict) else {}
    # Without "kind" it is of an earlier version; the tools' flag tells.
    command = found.get("command")
    flagged = isinstance(command, list) and "--eval-only" in command
    kind = found.get("kind", EVALUATION if flagged else TRAINING)
    return EVALUATION if kind == EVALUATION else TRAINING


def refuse_other(folder: Path, kind: str) -> None:
    """Raises InputError where the folder holds a run of the other kind."""
    there = kind_of_run(folder)
    if there in (None, kind):
        return
    mend = "choose another OUTPUT_DIR"
    if kind == EVALUATION:
        mend += f", such as {folder / 'eval'}: an evaluation would replace the run's results.json"
    what = {TRAINING: "a training run", EVALUATION: "an evaluation"}[there]
    raise InputError(folder, f"holds {what} (run.json)", mend)


def check_place(folder: Path) -> None:
    """Raises InputError where a folder cannot be made or written."""
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        why = "is no folder"
    elif not os.access(there, os.W_OK | os.X_OK):
        why = "cannot be written"
    else:
        return
    where = "" if there == folder else f": {there}"
    raise InputError(folder, f"cannot be made{where} {why}" if where else why, _OTHER_PLACE)


def make_folder(folder: str | Path) -> Path:
    """Make a folder and those above it. Raises InputError where that cannot be."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(folder, f"cannot be made ({error.strerror})", _OTHER_PLACE) from error
    return folder


def evaluation_folder(cfg: CfgNode, name: str, keys: tuple[str, ...]) -> Path:
    """Where an evaluation goes unless OUTPUT_DIR is named: beside its weights, not into their run.

    Args:
        cfg: the evaluation's; MODEL.WEIGHTS says where.
        name: of the folder. Where it holds an evaluation with other settings, ``name_2``,
            ``name_3`` .. are tried: the same evaluation again takes the place of its former self,
            another one never does.
        keys: settings that tell evaluations apart, keys or groups such as "DATA".
    """
    weights = Path(cfg.MODEL.WEIGHTS)
    ours = _settings(yaml.safe_load(cfg.dump()), keys, weights)
    for number in itertools.count(1):
        folder = weights.parent / (name if number == 1 else f"{name}_{number}")
        if not folder.exists() or _stored_settings(folder, keys) == ours:
            return folder
    raise AssertionError("unreachable")


def _stored_settings(folder: Path, keys: tuple[str, ...]) -> dict[str, Any] | None:
    if kind_of_run(folder) != EVALUATION:
        return None
    try:
        stored = yaml.safe_load((folder / "config.yaml").read_text())
        return _settings(stored, keys, Path(stored["MODEL"]["WEIGHTS"]))
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, RecursionError):
        return None  # damaged: left as it is


def _settings(values: dict, keys: tuple[str, ...], weights: Path) -> dict[str, Any]:
    found = {"MODEL.WEIGHTS": weights.name}  # the folder is beside them
    for key in keys:
        node = values
        for part in key.split("."):
            node = node[part]
        found[key] = node
    return found
