"""Pictures from a run's own records; matplotlib draws them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

LOSS_MARK = "loss"
FEW_POINTS = 30  # up to so many, each is marked


def read_metrics(path: str | Path) -> dict[str, tuple[list[int], list[float]]]:
    """A metrics.json (one JSON object a line) as {name: (iterations, values)}.

    A resumed run writes some iterations again; the later line counts. A line cut off by a
    kill is passed over.
    """
    rows: dict[int, dict] = {}
    for line in Path(path).read_text().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        rows.setdefault(row["iteration"], {}).update(row)
    series: dict[str, tuple[list[int], list[float]]] = {}
    for iteration in sorted(rows):
        for name, value in rows[iteration].items():
            if name != "iteration" and isinstance(value, int | float):
                iterations, values = series.setdefault(name, ([], []))
                iterations.append(iteration)
                values.append(value)
    return series


@dataclass(frozen=True)
class ErrorCurve:
    """One run's errors while it trains, percent.

    Args:
        label: of the run; the last validation error is put after it.
        validation, training: (x, errors), x ascending, in any unit that all curves share;
            ``training`` may be empty.
    """

    label: str
    validation: tuple[Sequence[float], Sequence[float]]
    training: tuple[Sequence[float], Sequence[float]] = ((), ())


def trailing_mean(
    x: Sequence[float], values: Sequence[float], window: float
) -> tuple[np.ndarray, np.ndarray]:
    """(x, mean of the values in (x - window, x]), from the first whole window on.

    The values are taken to be evenly spaced and to begin near x = 0; fewer values than fill a
    window give their one mean.
    """
    x, sums = np.asarray(x, float), np.concatenate([[0.0], np.cumsum(values)])
    first = np.searchsorted(x, x - window, side="right")
    last = np.arange(1, len(x) + 1)
    whole = np.flatnonzero(x >= window)
    kept = whole if len(whole) else last[-1:] - 1
    return x[kept], ((sums[last] - sums[first]) / (last - first))[kept]


def error_curves(
    curves: Sequence[ErrorCurve],
    path: str | Path,
    *,
    xlabel: str,
    ylabel: str = "top-1 error (%)",
    ylim: tuple[float, float] | None = None,
) -> None:
    """Validation (solid) and training errors (dashed) of several runs (paper, Figs. 5 and 6).

    Args:
        ylim: percent; None: what the curves cover, to the next multiples of five.
    """
    figure = Figure(figsize=(7, 5), layout="constrained")
    axis = figure.subplots()
    for number, curve in enumerate(curves):
        colour, (x, errors) = f"C{number % 10}", curve.validation
        marker = "o" if len(x) <= FEW_POINTS else ""
        style = {"color": colour, "marker": marker, "markersize": 4}
        axis.plot(x, errors, label=f"{curve.label}: validation {errors[-1]:.1f}", **style)
        x, errors = curve.training
        if len(x):
            name = f"{curve.label}: training {errors[-1]:.1f}"
            axis.plot(x, errors, label=name, color=colour, linestyle="--", linewidth=1)
    axis.set(xlabel=xlabel, ylabel=ylabel, xlim=(0, 1.01 * axis.dataLim.x1))
    axis.set_ylim(ylim or _whole_fives(axis))
    axis.xaxis.set_major_formatter("{x:,g}")
    axis.legend(fontsize=9, loc="upper right")
    axis.grid(alpha=0.3)
    figure.savefig(path, dpi=130)


def _whole_fives(axis) -> tuple[float, float]:
    values = np.concatenate([line.get_ydata() for line in axis.get_lines()])
    low, high = 5 * np.floor(values.min() / 5 - 0.1), 5 * np.ceil(values.max() / 5 + 0.1)
    return max(0.0, low), min(100.0, max(high, low + 5))


def training_curves(metrics: dict[str, str | Path], path: str | Path) -> None:
    """Losses (and errors, where measured) of several stages beside each other.

    Args:
        metrics: {title: metrics.json}.
    """
    figure = Figure(figsize=(5 * len(metrics), 4), layout="constrained")
    axes = figure.subplots(1, len(metrics), squeeze=False)[0]
    for axis, (title, file) in zip(axes, metrics.items(), strict=True):
        _draw_stage(axis, title, read_metrics(file))
    figure.savefig(path, dpi=110)


def _draw_stage(axis, title: str, series: dict) -> None:
    losses = [name for name in sorted(series) if LOSS_MARK in name and name != "total_loss"]
    for name in losses or ["total_loss"]:  # a single loss is written as the total alone
        axis.plot(*series.get(name, ([], [])), label=name, linewidth=1)
    axis.set(title=title, xlabel="iteration", ylabel="loss", ylim=(0, None))
    handles, labels = axis.get_legend_handles_labels()
    errors = [name for name in ("top1_error", "top5_error") if f"classification/{name}" in series]
    if errors:
        right = axis.twinx()
        for name, style in zip(errors, ("-", "--"), strict=False):
            right.plot(
                *series[f"classification/{name}"],
                color="black",
                marker="o",
                markersize=3,
                linestyle=style,
                label=f"validation {name}",
            )
        right.set(ylabel="error (%)", ylim=(0, 100))
        more, names = right.get_legend_handles_labels()
        handles, labels = handles + more, labels + names
    axis.legend(handles, labels, fontsize=8, loc="upper right")
    axis.grid(alpha=0.3)


def precision_recall(
    precision: np.ndarray, class_names: Sequence[str], ap: dict[str, float], path: str | Path
) -> None:
    """Precision against recall at IoU 0.5, a line a class, and their mean at several IoUs.

    Args:
        precision: (10 IoUs 0.5..0.95, 101 recalls, classes), NaN where a class has no object.
        ap: {"AP": .., "AP50": .., ..} in percent, for the title.
    """
    recall = np.linspace(0, 1, precision.shape[1])
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    known = [k for k in range(precision.shape[2]) if not np.isnan(precision[0, :, k]).all()]
    # More lines than this cannot be told apart; then the best and worst classes are shown.
    for k in _extremes(precision, known):
        left.plot(
            recall,
            precision[0, :, k],
            label=f"{class_names[k]} ({100 * precision[0, :, k].mean():.0f})",
        )
    left.set(title="IoU 0.5, by class (AP50)")
    for i, iou in ((0, 0.5), (2, 0.6), (4, 0.7), (6, 0.8), (8, 0.9)):
        mean = np.nanmean(precision[i][:, known], axis=1)
        right.plot(recall, mean, label=f"IoU {iou:.1f} ({100 * mean.mean():.0f})")
    right.set(title="mean over classes (AP at that IoU)")
    for axis in (left, right):
        axis.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
        axis.legend(fontsize=8, loc="lower left")
        axis.grid(alpha=0.3)
    figure.suptitle(f"AP {ap['AP']:.1f}, AP50 {ap['AP50']:.1f}")
    figure.savefig(path, dpi=110)


def confusion(
    counts: np.ndarray, names: Sequence[str], path: str | Path, *, title: str, most: int = 20
) -> None:
    """Counts as a heat map, each row by its own sum: which class is taken for which.

    Args:
        counts: (K + 1, K + 1), rows true, columns detected, background last.
        names: K + 1.
        most: of more classes than this, those with most mistakes are shown.
    """
    shown = _most_confused(counts, most)
    counts, names = counts[np.ix_(shown, shown)], [names[k] for k in shown]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 2.2 + 0.55 * len(names)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axis = figure.subplots()
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), number in np.ndenumerate(counts):
        if number:
            color = "white" if shares[row, column] > 0.5 else "black"
            axis.text(column, row, number, ha="center", va="center", color=color, fontsize=8)
    rows = [*names[:-1], "no object"]
    columns = [*names[:-1], "missed"]
    axis.set_xticks(range(len(names)), columns, rotation=45, ha="right", fontsize=8)
    axis.set_yticks(range(len(names)), rows, fontsize=8)
    axis.set(xlabel="detected as", ylabel="object", title=title)
    figure.savefig(path, dpi=110)


def _most_confused(counts: np.ndarray, most: int) -> list[int]:
    """The classes to show, in order, and the background."""
    classes = len(counts) - 1
    wrong = counts.sum(axis=0) + counts.sum(axis=1) - 2 * np.diag(counts)
    ranked = sorted(range(classes), key=lambda k: (-wrong[k], k))[:most]
    return [*sorted(ranked), classes]


def _extremes(precision: np.ndarray, known: list[int], most: int = 10) -> list[int]:
    if len(known) <= most:
        return known
    ranked = sorted(known, key=lambda k: precision[0, :, k].mean())
    return ranked[: most // 2] + ranked[-(most - most // 2) :]


def sheet(
    images: Sequence[np.ndarray], path: str | Path, *, columns: int, titles: Sequence[str] = ()
) -> None:
    """RGB images in a grid, row by row.

    Args:
        titles: one an image; fewer repeat along the top row.
    """
    rows = -(-len(images) // columns)
    height = max(image.shape[0] / image.shape[1] for image in images)
    figure = Figure(figsize=(4 * columns, 4 * height * rows + 0.4), layout="constrained")
    for axis, image in zip(
        figure.subplots(rows, columns, squeeze=False).flat, images, strict=False
    ):
        axis.imshow(image)
    for position, axis in enumerate(figure.axes):
        axis.axis("off")
        has_title = position < columns or len(titles) == len(images)
        if titles and has_title and position < len(images):
            axis.set_title(titles[position % len(titles)], fontsize=10)
    figure.savefig(path, dpi=90)


def errors_with_bars(
    series: dict[str, Sequence[tuple[float, float, float, str]]],
    path: str | Path,
    *,
    xlabel: str,
    ylabel: str = "test error (%)",
    log_x: bool = False,
    printed: dict[str, Sequence[tuple[float, float, str]]] | None = None,
) -> None:
    """Mean errors with standard-error bars, a line a series, each point labelled (paper, Fig. 7).

    Args:
        series: {name: [(x, mean error, standard error, label), ...]}; a NaN bar is left out.
        printed: {name: [(x, error, label), ...]}, numbers of another source, hollow, without lines.
    """
    figure = Figure(figsize=(6.5, 4.5), layout="constrained")
    axis = figure.subplots()
    handles = [
        axis.errorbar(*list(zip(*points, strict=True))[:3], marker="o", capsize=4, label=name)
        for name, points in series.items()
    ]
    _label_points(axis, list(series.values()))
    labelled = {point[-1] for points in series.values() for point in points}
    for name, points in (printed or {}).items():
        x, errors, _ = zip(*points, strict=True)
        handles += axis.plot(x, errors, "D", color="black", mfc="none", markersize=9, label=name)
        _label_points(axis, [[point for point in points if point[-1] not in labelled]])
    if log_x:
        axis.set_xscale("log", base=2)
        ticks = sorted({point[0] for points in series.values() for point in points})
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.margins(x=0.12, y=0.15)
    if not log_x:
        axis.set_xlim(0, 1.18 * axis.dataLim.x1)  # the last label is right of its point
    axis.grid(alpha=0.3)
    if len(handles) > 1:
        axis.legend(handles=handles)
    figure.savefig(path, dpi=110)


def _label_points(axis, series: Sequence[Sequence[tuple]]) -> None:
    """The last element of each point beside it: right above, and for the first of several series,
    which lies lowest, left below. A point of two series has one label.
    """
    end = axis.dataLim.x1
    seen = set()
    for number, points in reversed(list(enumerate(series))):
        for x, error, *_, label in points:
            # Near the axis there is no room to the left.
            below = number == 0 < len(series) - 1 and x > 0.1 * end
            place = {"ha": "right", "va": "top"} if below else {"ha": "left", "va": "bottom"}
            offset = (-8, -4) if below else (5, 4)
            if (x, error, label) not in seen:
                axis.annotate(label, (x, error), offset, textcoords="offset points", **place)
            seen.add((x, error, label))
