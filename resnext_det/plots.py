"""Pictures from a run's own records; matplotlib draws them."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

LOSS_MARK = "loss"


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


def _extremes(precision: np.ndarray, known: list[int], most: int = 10) -> list[int]:
    if len(known) <= most:
        return known
    ranked = sorted(known, key=lambda k: precision[0, :, k].mean())
    return ranked[: most // 2] + ranked[-(most - most // 2) :]


def sheet(
    images: Sequence[np.ndarray], path: str | Path, *, columns: int, titles: Sequence[str] = ()
) -> None:
    """RGB images in a grid, row by row; the titles repeat along the top row."""
    rows = -(-len(images) // columns)
    height = max(image.shape[0] / image.shape[1] for image in images)
    figure = Figure(figsize=(4 * columns, 4 * height * rows + 0.4), layout="constrained")
    for axis, image in zip(
        figure.subplots(rows, columns, squeeze=False).flat, images, strict=False
    ):
        axis.imshow(image)
    for position, axis in enumerate(figure.axes):
        axis.axis("off")
        if titles and position < columns:
            axis.set_title(titles[position % len(titles)], fontsize=10)
    figure.savefig(path, dpi=90)


def errors_with_bars(
    series: dict[str, Sequence[tuple[float, float, float, str]]],
    path: str | Path,
    *,
    xlabel: str,
    ylabel: str = "test error (%)",
    log_x: bool = False,
) -> None:
    """Mean errors with standard-error bars, a line a series, each point labelled (paper, Fig. 7).

    Args:
        series: {name: [(x, mean error, standard error, label), ...]}; a NaN bar is left out.
    """
    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axis = figure.subplots()
    for name, points in series.items():
        x, means, bars, labels = zip(*points, strict=True)
        axis.errorbar(x, means, bars, marker="o", capsize=4, label=name)
        for place, mean, label in zip(x, means, labels, strict=True):
            axis.annotate(label, (place, mean), textcoords="offset points", xytext=(6, 6))
    if log_x:
        axis.set_xscale("log", base=2)
        ticks = sorted({point[0] for points in series.values() for point in points})
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.margins(x=0.12, y=0.15)
    axis.grid(alpha=0.3)
    if len(series) > 1:
        axis.legend()
    figure.savefig(path, dpi=110)
