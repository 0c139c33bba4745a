"""Error while training, of several runs in one picture (paper, Figs. 5 and 6)."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from .. import plots, runs
from ..config import architecture_arguments
from ..errors import InputError
from ..models import Architecture

TRAINING = "train_top1_error"


def network_of(run: runs.Run) -> Architecture:
    try:
        return Architecture(**architecture_arguments(run.cfg))
    except InputError as error:
        raise InputError(run.folder / "config.yaml", error.found, error.mend) from error


def read_curve(run: runs.Run, label: str, x_axis: str, error: str) -> plots.ErrorCurve:
    """Validation and training errors of one run; ``x_axis`` is "epochs" or "iterations"."""
    path, epoch = run.folder / "metrics.json", runs.iterations_per_epoch(run)
    if x_axis == "epochs" and epoch is None:
        raise InputError(
            run.folder, "counts in mini-batches, and its log names no epoch", "add --x iterations"
        )
    unit = epoch if x_axis == "epochs" else 1
    series = read_metrics(path)
    name = f"classification/{error}"
    if name not in series:
        there = ", ".join(n for n in series if n.startswith("classification/")) or "none"
        raise InputError(
            path,
            f"has no validation error {name} (found: {there})",
            "give a classification run that has been evaluated, or another --error",
        )
    training = ((), ())
    if TRAINING in series and error == "top1_error":
        x, errors = series[TRAINING]
        window = epoch or run.cfg.TEST.EVAL_PERIOD or 1
        x, errors = plots.trailing_mean([i + 1 for i in x], errors, window)
        training = (x / unit, errors)
    # An evaluation amid training is logged at the last iteration before it, the final one after.
    last = run.cfg.SOLVER.MAX_ITER
    x, errors = series[name]
    return plots.ErrorCurve(label, ([min(i + 1, last) / unit for i in x], errors), training)


def read_metrics(path: Path) -> dict:
    mend = "give a run folder as the tool left it"
    try:
        series = plots.read_metrics(path)
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})", mend) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(path, f"has a line that is no metrics ({error!r})", mend) from error
    for name, (iterations, values) in series.items():
        for iteration, value in zip(iterations, values, strict=True):
            if not math.isfinite(value) and name.endswith("_error"):
                raise InputError(path, f"{name} is {value} at iteration {iteration}", mend)
    return series


def labels_of(found: list[runs.Run]) -> list[str]:
    """Names of the networks, and the folder's after a name that several runs have."""
    names = [network_of(run).name for run in found]
    several = {name for name, count in Counter(names).items() if count > 1}
    return [
        f"{name} ({run.folder})" if name in several else name
        for name, run in zip(names, found, strict=True)
    ]


def draw_curves(
    folders: Sequence[str | Path],
    output: str | Path,
    *,
    x_axis: str = "epochs",
    error: str = "top1_error",
    ylim: tuple[float, float] | None = None,
) -> None:
    """Validation errors, and training errors as far as they were logged, into one picture.

    Args:
        folders: of classification runs.
        output: the picture; its ending says which kind.
        x_axis: "epochs" or "iterations".
        error: "top1_error", "top5_error", or one of these with "_1000way" (ImageNet-5K).
        ylim: lowest and highest error shown, percent; None: all.

    Raises:
        InputError: a folder is no run, or lacks what is asked for.
        OSError: the picture cannot be written.
    """
    found = [runs.read_run(folder) for folder in folders]
    curves = [
        read_curve(run, label, x_axis, error)
        for run, label in zip(found, labels_of(found), strict=True)
    ]
    rank, _, way = error.partition("_error")
    name = f"{rank.replace('top', 'top-')} error{way.replace('_', ', ').replace('way', '-way')}"
    plots.error_curves(curves, Path(output), xlabel=x_axis, ylabel=f"{name} (%)", ylim=ylim)
