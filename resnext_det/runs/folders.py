"""Run folders: what was run, and what came of it.

A training tool leaves in its OUTPUT_DIR what it was given and what came of it: run.json (command
and machine), config.yaml, log.txt, metrics.json and, at the end, results.json.
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from ..config import cfg_from_text
from ..errors import InputError
from .settings import task_of

# What the log says about the data, one line each, the number as the first group.
_LOG = {
    "train_images": r"INFO: (\d+) images, \d+ iterations an epoch",
    "val_images": r"; (\d+) images \(",
    "classes": r" (?:with|among) (\d+) classes",
}
EVALUATION = "evaluation"  # the entry of results.json that is no figure
_LOG_DETECTION = r"INFO: {}: (\d+) images, all entries checked"


@dataclass(frozen=True)
class Run:
    """What was run.

    Args:
        folder: its OUTPUT_DIR.
        command: words of the command line, the tool's path first.
        started: local time, "2026-11-25 13:08:14"; of the last part, if it was resumed.
        environment: versions and machine, see `compat.describe_environment`.
        cfg: config.yaml; its MAX_ITER and STEPS are what was really run.
        precision: the arithmetic used, where cfg says "auto"; None where run.json does not say.
    """

    folder: Path
    command: tuple[str, ...]
    started: str
    environment: dict[str, str]
    cfg: CfgNode
    precision: str | None = None

    @property
    def task(self) -> str:
        return task_of(self.cfg)


def _text(path: Path, mend: str) -> str:
    try:
        return path.read_text()
    except FileNotFoundError as error:
        raise InputError(path, "the file does not exist", mend) from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(path, f"cannot be read ({error})", mend) from error


def read_object(path: Path, mend: str) -> dict:
    """A JSON file that holds an object. Raises InputError, with ``mend``, for anything else."""
    try:
        found = json.loads(_text(path, mend))
    except (ValueError, RecursionError) as error:
        raise InputError(path, f"is not JSON ({error})", mend) from error
    if not isinstance(found, dict):
        raise InputError(path, f"holds {found!r:.40}, not an object", mend)
    return found


def check_types(values: dict, types: dict[str, Any], path: Path, mend: str) -> None:
    for name, wanted in types.items():
        if name not in values:
            raise InputError(path, f"has no {name}", mend)
        if not isinstance(values[name], wanted) or isinstance(values[name], bool):
            raise InputError(path, f"{name} is {values[name]!r:.60}", mend)


def read_run(folder: str | Path) -> Run:
    """What run.json and config.yaml say.

    Raises:
        InputError: the folder is no run, or one of the two is damaged.
    """
    folder = Path(folder)
    if not (folder / "run.json").is_file():
        raise InputError(
            folder,
            "is no run folder (it has no run.json)",
            "give the OUTPUT_DIR of a run of tools/pretrain_imagenet.py or tools/train_net.py",
        )
    mend = "give the folder of a run, as it was left"
    found = read_object(folder / "run.json", mend)
    types = {"command": list, "started": str, "environment": dict}
    types |= {"precision": str} if "precision" in found else {}
    check_types(found, types, folder / "run.json", mend)
    text = _text(folder / "config.yaml", mend)
    if not text.strip():
        raise InputError(folder / "config.yaml", "is empty", mend)
    return Run(
        folder=folder,
        command=tuple(map(str, found["command"])),
        started=found["started"],
        environment={name: str(value) for name, value in found["environment"].items()},
        cfg=cfg_from_text(text, str(folder / "config.yaml")),
        precision=found.get("precision"),
    )


def iterations_per_epoch(run: Run) -> float | None:
    """None for a run that counts in mini-batches, if its log names no number of images either."""
    solver = run.cfg.SOLVER
    if solver.MAX_EPOCHS > 0:
        return solver.MAX_ITER / solver.MAX_EPOCHS
    images = read_counts(run)["train_images"]
    return None if images is None else math.ceil(images / solver.IMS_PER_BATCH)


def read_counts(run: Run) -> dict[str, int | None]:
    """{"train_images", "val_images", "classes"} by the log's last word; None if it has none."""
    path = run.folder / "log.txt"
    text = path.read_text(errors="replace") if path.is_file() else ""
    if run.task == "classification":
        return {name: _last(pattern, text) for name, pattern in _LOG.items()}
    return {
        "train_images": _sum_of(run.cfg.DATASETS.TRAIN, text),
        "val_images": _sum_of(run.cfg.DATASETS.TEST, text),
        "classes": run.cfg.MODEL.ROI_HEADS.NUM_CLASSES,
    }


def _last(pattern: str, text: str) -> int | None:
    found = re.findall(pattern, text)
    return int(found[-1]) if found else None


def _sum_of(names: tuple[str, ...], text: str) -> int | None:
    counts = [_last(_LOG_DETECTION.format(re.escape(name)), text) for name in names]
    return None if None in counts else sum(counts)


def read_results(run: Run) -> dict[str, float]:
    """results.json as {"classification/top1_error": 22.2, ..} or {"bbox/AP": 27.5, ..}; percent.

    What could not be measured (AP of a size that no object has) is left out.

    Raises:
        InputError: the run is not finished, its results are damaged, or they are of a later
            evaluation in the same folder and not the run's own.
    """
    path = run.folder / "results.json"
    mend = "let the run finish (the same command with --resume), or give another run"
    found = {k: v for k, v in read_object(path, mend).items() if k != EVALUATION}
    results = dict(leaves(found, path))
    if not results:
        raise InputError(path, "holds no result", mend)
    for name, last in _last_evaluation(run.folder / "metrics.json").items():
        if name in results and abs(results[name] - last) > 1e-6:
            raise InputError(
                path,
                f"{name} is {results[name]:g}, but the training ended with {last:g} (metrics.json)",
                "evaluate into an OUTPUT_DIR of its own, and give a folder as training left it",
            )
    return results


def read_evaluation(run: Run) -> dict[str, Any]:
    """How the results were measured: protocol, sizes, precision, images, weights.

    {} where results.json does not say, as those of earlier versions and of detection.

    Raises:
        InputError: the run is not finished, or the entry is damaged.
    """
    path = run.folder / "results.json"
    mend = "give the folder of a run, as it was left"
    found = read_object(path, mend).get(EVALUATION, {})
    if not isinstance(found, dict):
        raise InputError(path, f"{EVALUATION} is {found!r:.40}", mend)
    if found:
        types = {"protocol": str, "precision": str, "images": int, "weights": str}
        check_types(found, types, path, mend)
    return found


def leaves(values: dict, path: Path, prefix: str = ""):
    for name, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, path, f"{prefix}{name}/")
        elif value is not None:
            if type(value) not in (int, float) or not math.isfinite(value):
                raise InputError(path, f"{prefix}{name} is {value!r:.40}", "give a number there")
            yield prefix + name, float(value)


def _last_evaluation(path: Path) -> dict[str, float]:
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    for line in reversed(lines):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # a line that a kill cut off
            continue
        if isinstance(row, dict) and "classification/top1_error" in row:
            return {k: v for k, v in row.items() if type(v) is float}
    return {}
