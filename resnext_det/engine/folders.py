"""The folder of a run: whose it is, whether it can be written, where an evaluation's is.

And the outputs of tools: folders and files that must be new.
"""

import errno
import itertools
import json
import os
import shutil
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode

from ..errors import InputError
from ..writing import told_of_writing

TRAINING, EVALUATION = "training", "evaluation"  # kinds of a run, in run.json
# What a run leaves that another one must not be mixed with; run.json first, which names it best.
OF_A_RUN = ("run.json", "model_*.pth", "model_final.safetensors", "metrics.json", "results.json")
OF_AN_EVALUATION = ("inference", "pictures")  # folders, beside results.json
_OTHER_PLACE = "choose an OUTPUT_DIR that can be written"
OTHER_OUTPUT = "choose another --output"


def folder_of(cfg: CfgNode, *parts: str) -> Path:
    return Path(cfg.OUTPUT_DIR, *parts)


def record_in(folder: str | Path) -> dict[str, Any] | None:
    """The folder's run.json; None where there is none, {} where it cannot be read."""
    try:
        found = json.loads(Path(folder, "run.json").read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def kind_of_run(folder: str | Path) -> str | None:
    """ "training" or "evaluation", by the folder's run.json; None where there is none.

    A run.json that cannot be read counts as training's, so that nothing takes its place.
    """
    found = record_in(folder)
    if found is None:
        return None
    # Without "kind" it is of an earlier version; the tools' flag tells.
    command = found.get("command")
    flagged = isinstance(command, list) and "--eval-only" in command
    kind = found.get("kind", EVALUATION if flagged else TRAINING)
    return EVALUATION if kind == EVALUATION else TRAINING


def refuse_used(folder: Path) -> None:
    """Raises InputError where the folder holds anything of a run: a new one would mix with it."""
    for pattern in OF_A_RUN:
        for path in sorted(folder.glob(pattern)):
            raise InputError(
                folder,
                f"holds a run already ({path.name})",
                "add --resume to go on with it, or choose another OUTPUT_DIR",
            )


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


def refuse_other_task(folder: Path, cfg: CfgNode) -> None:
    """Raises InputError where a detector's run would go on in a classifier's folder, or vice versa.

    Both name their final weights alike. A folder whose config.yaml cannot be read is passed.
    """
    then, now = _task(_read_config(folder)), _task(yaml.safe_load(cfg.dump()))
    if then not in (None, now):
        raise InputError(folder, f"holds a {then} run (config.yaml)", "choose another OUTPUT_DIR")


def _task(values: Any) -> str | None:
    try:
        return "detection" if values["DATASETS"]["TRAIN"] else "classification"
    except (KeyError, TypeError):
        return None


def _read_config(folder: Path) -> Any:
    try:
        return yaml.safe_load((folder / "config.yaml").read_text())
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return None


def forget_evaluation(folder: Path) -> None:
    """Remove an earlier evaluation's figures and pictures, which are of other settings."""
    is_evaluation = kind_of_run(folder) == EVALUATION
    with told_of_writing(folder):
        (folder / "results.json").unlink(missing_ok=True)
        for name in OF_AN_EVALUATION:
            if is_evaluation and (folder / name).is_dir() and not (folder / name).is_symlink():
                shutil.rmtree(folder / name)


def _check_inside(folder: Path) -> None:
    """Raises InputError where a file stands in the place of a folder that results go to."""
    for path in (folder / name for name in OF_AN_EVALUATION):
        if os.path.lexists(path) and not path.is_dir():
            raise InputError(path, "is no folder, and results go there", "remove or rename it")


def check_place(folder: Path) -> None:
    """Raises InputError where a folder cannot be made or written."""
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        why = "is no folder"
    elif not os.access(there, os.W_OK | os.X_OK):
        why = "cannot be written"
    else:
        _check_inside(folder)
        return
    where = "" if there == folder else f": {there}"
    raise InputError(folder, f"cannot be made{where} {why}" if where else why, _OTHER_PLACE)


def make_folder(folder: str | Path, elsewhere: str = _OTHER_PLACE) -> Path:
    """Make a folder and those above it. Raises InputError where that cannot be.

    Args:
        elsewhere: the mend.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        # "File exists" would say of a file in the place of the folder what is not meant.
        number = errno.ENOTDIR if isinstance(error, FileExistsError) else error.errno
        found = f"cannot be made ({os.strerror(number)})"
        raise InputError(folder, found, elsewhere) from error
    return folder


def new_folder(output: str | Path) -> Path:
    """Make the folder that a tool writes to; of two tools that would make it, one is refused.

    Raises:
        InputError: it holds something already, or cannot be made.
    """
    folder = Path(output)
    if folder.is_dir() and not any(folder.iterdir()):
        return folder
    if not folder.exists():
        make_folder(folder.parent, OTHER_OUTPUT)
    try:
        folder.mkdir()
    except FileExistsError as error:
        raise InputError(folder, "is there already", f"remove it, or {OTHER_OUTPUT}") from error
    except OSError as error:
        raise InputError(folder, f"cannot be made ({error.strerror})", OTHER_OUTPUT) from error
    return folder


def new_file(output: str | Path) -> Path:
    """Make the folder for the file that a tool writes.

    Raises:
        InputError: the file is there already, or its folder cannot be made.
    """
    path = Path(output)
    if path.exists():
        raise InputError(path, "is there already", f"remove it, or {OTHER_OUTPUT}")
    with told_of_writing(path, OTHER_OUTPUT):
        path.parent.mkdir(parents=True, exist_ok=True)
    return path


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
    stored = _read_config(folder)
    try:
        return _settings(stored, keys, Path(stored["MODEL"]["WEIGHTS"]))
    except (KeyError, TypeError):
        return None  # damaged: left as it is


def _settings(values: dict, keys: tuple[str, ...], weights: Path) -> dict[str, Any]:
    found = {"MODEL.WEIGHTS": weights.name}  # the folder is beside them
    for key in keys:
        node = values
        for part in key.split("."):
            node = node[part]
        found[key] = node
    return found
