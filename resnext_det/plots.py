"""Pictures from a run's own records; matplotlib draws them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation

LOSS_MARK = "loss"
FEW_POINTS = 30  # up to so many, each is marked
VALIDATION = "validation/"  # before the names of losses that were measured, not trained on


@dataclass(frozen=True)
class Measured:
    """Figures of evaluations while a stage trains, percent.

    Args:
        group: before their names in metrics.json.
        names: the first is the one that model_best.pth is kept by.
        ylabel: of their axis.
        limits: of the axis; None: from 0 to the next five above.
    """

    group: str
    names: tuple[str, ...]
    ylabel: str
    limits: tuple[float, float] | None = None

    @property
    def lower_is_better(self) -> bool:
        return self.names[0].endswith("error")

    def found_in(self, series: dict) -> list[str]:
        return [name for name in self.names if f"{self.group}/{name}" in series]


MEASURED = (
    Measured("classification", ("top1_error", "top5_error"), "error (%)", (0, 100)),
    Measured("bbox", ("AP", "AP50"), "average precision (%)"),
    Measured("proposals", ("AR@1000",), "average recall (%)"),
)


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


def label(text: str, most: int = 24) -> str:
    """A name out of a file as one line that matplotlib draws as it stands.

    Args:
        most: characters; of a longer name both ends are kept.
    """
    text = "".join(c if c.isprintable() else "?" for c in text)
    if len(text) > most:
        end = most // 3
        text = f"{text[: most - end - 1]}…{text[len(text) - end :]}"
    # "$" would begin a formula, and an "_" in front keeps a line out of its legend.
    return (" " + text if text.startswith("_") else text).replace("$", r"\$")


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
    figure = Figure(figsize=(7, 5 + 0.2 * len(curves)), layout="constrained")
    axis = figure.subplots()
    for number, curve in enumerate(curves):
        colour, name = f"C{number % 10}", label(curve.label, 60)
        for kind, (x, errors), line in (
            ("validation", curve.validation, {"markersize": 4}),
            ("training", curve.training, {"linestyle": "--", "linewidth": 1, "markersize": 3}),
        ):
            if len(x):
                said = f"{name}: {kind} {errors[-1]:.1f}"
                axis.plot(x, errors, label=said, color=colour, marker=_marker(x), **line)
    axis.set(xlabel=xlabel, ylabel=ylabel, ylim=ylim or _whole_fives(axis))
    _whole_numbers(axis, axis.dataLim.x1)
    handles, labels = axis.get_legend_handles_labels()
    _legend_below(axis, handles, labels, 2 if max(map(len, labels)) < 40 else 1)
    axis.grid(alpha=0.3)
    figure.savefig(path, dpi=130)


def _whole_fives(axis) -> tuple[float, float]:
    values = np.concatenate([line.get_ydata() for line in axis.get_lines()])
    low, high = 5 * np.floor(values.min() / 5 - 0.1), 5 * np.ceil(values.max() / 5 + 0.1)
    return max(0.0, low), min(100.0, max(high, low + 5))


def training_curves(metrics: dict[str, str | Path], path: str | Path) -> None:
    """Losses of several stages beside each other, and what evaluations measured meanwhile.

    Validation losses are dashed in the colour of the training's. Errors, AP and AP50 or, of an
    RPN alone, average recall have an axis of their own; of several evaluations the best one,
    which model_best.pth holds, is ringed, on a vertical line.

    Args:
        metrics: {title: metrics.json}.
    """
    figure = Figure(figsize=(5 * len(metrics), 4.6), layout="constrained")
    axes = figure.subplots(1, len(metrics), squeeze=False)[0]
    for axis, (title, file) in zip(axes, metrics.items(), strict=True):
        _draw_stage(axis, title, read_metrics(file))
    figure.savefig(path, dpi=110)


def _draw_stage(axis, title: str, series: dict) -> None:
    _draw_losses(axis, series)
    axis.set(title=title, xlabel="iteration", ylabel="loss", ylim=(0, None))
    handles, labels = axis.get_legend_handles_labels()
    measured = next((one for one in MEASURED if one.found_in(series)), None)
    if measured:
        right = axis.twinx()
        _draw_measured(right, measured, series)
        more, names = right.get_legend_handles_labels()
        handles, labels = handles + more, labels + names
    last = max((x[-1] for x, _ in series.values()), default=0)
    _whole_numbers(axis, last)
    _legend_below(axis, handles, labels)
    axis.grid(alpha=0.3)


def _draw_losses(axis, series: dict) -> None:
    # Of names with a "/" those are no losses of the training: they are measured, one a data set.
    losses = [name for name in sorted(series) if LOSS_MARK in name and "/" not in name]
    parts = [name for name in losses if name != "total_loss"]
    for name in parts or ["total_loss"]:  # a single loss is written as the total alone
        x, values = series.get(name, ([], []))
        small = {"linewidth": 1, "markersize": 3}
        (line,) = axis.plot(x, values, label=name, marker=_marker(x), **small)
        if VALIDATION + name in series:
            dashed = {"color": line.get_color(), "linestyle": "--", "marker": "o", **small}
            axis.plot(*series[VALIDATION + name], label=f"validation {name}", **dashed)


def _draw_measured(axis, measured: Measured, series: dict) -> None:
    found = measured.found_in(series)
    for name, style in zip(found, ("-", "--"), strict=False):
        line = {"color": "black", "marker": "o", "markersize": 3, "linestyle": style}
        axis.plot(*series[f"{measured.group}/{name}"], label=f"validation {name}", **line)
    known = np.concatenate([series[f"{measured.group}/{name}"][1] for name in found])
    top = max(known[np.isfinite(known)], default=0)  # without objects AP is no number
    limits = measured.limits or (0, max(5, 5 * np.ceil(1.02 * top / 5)))
    axis.set(ylabel=measured.ylabel, ylim=limits)
    _ring_best(axis, measured, *series.get(f"{measured.group}/{measured.names[0]}", ([], [])))


def _ring_best(axis, measured: Measured, x: Sequence[float], values: Sequence[float]) -> None:
    """Of equal figures the first, as ``engine.hooks.KeepBest`` has it."""
    if len(x) < 2 or not np.isfinite(values).any():  # of one there is nothing to choose
        return
    best = int(np.nanargmin(values) if measured.lower_is_better else np.nanargmax(values))
    ring = {"marker": "o", "mfc": "none", "mec": "red", "markersize": 10, "linestyle": ""}
    said = f"best {measured.names[0]}: {values[best]:.1f} (model_best)"
    axis.axvline(x[best], color="red", linewidth=0.8, linestyle=":")
    axis.plot(x[best], values[best], label=said, **ring)


def _marker(x: Sequence[float]) -> str:
    """A line of one point shows nothing without one."""
    return "o" if len(x) <= FEW_POINTS else ""


def _whole_numbers(axis, last: float) -> None:
    """Iterations or epochs from 0 to ``last``; ticks are whole where there is room for two."""
    axis.set_xlim(0, 1.02 * (last or 1))
    axis.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=(1, 2, 2.5, 5, 10)))
    axis.xaxis.set_major_formatter("{x:,g}")


def _legend_below(axis, handles: Sequence, labels: Sequence[str], columns: int = 2) -> None:
    """Where it covers no curve; the space for it is the constrained layout's to find."""
    if not handles:
        return
    inches = axis.figure.dpi_scale_trans
    axis.legend(
        handles,
        labels,
        fontsize=9,
        loc="upper center",
        ncols=min(columns, len(handles)),
        frameon=False,
        bbox_to_anchor=(0.5, 0),
        bbox_transform=axis.transAxes + ScaledTranslation(0, -0.5, inches),  # below the axis' name
    )


def precision_recall(
    precision: np.ndarray,
    class_names: Sequence[str],
    ap: dict[str, float],
    path: str | Path,
    *,
    colors: Sequence | None = None,
    title: str = "",
) -> None:
    """Precision against recall at IoU 0.5, a line a class, and their mean at several IoUs.

    Args:
        precision: (10 IoUs 0.5..0.95, 101 recalls, classes), NaN where a class has no object.
        ap: {"AP": .., "AP50": .., ..} in percent, for the title.
        colors: of the classes; None: matplotlib's.
        title: before the figures, for instance the data set's name.
    """
    recall = np.linspace(0, 1, precision.shape[1])
    known = [k for k in range(precision.shape[2]) if not np.isnan(precision[0, :, k]).all()]
    shown = _extremes(precision, known)
    figure = Figure(figsize=(10, 4.6 + 0.1 * len(shown)), layout="constrained")
    left, right = figure.subplots(1, 2)
    for place, k in enumerate(shown):
        name = f"{label(class_names[k])} ({100 * precision[0, :, k].mean():.0f})"
        color = colors[k] if colors else f"C{place % 10}"
        left.plot(recall, precision[0, :, k], label=name, color=color)
    # More lines than these cannot be told apart.
    some = f", the best and worst {len(shown)} of {len(known)} classes"
    some = some if len(shown) < len(known) else ", by class" if len(known) > 1 else ""
    left.set(title=f"IoU 0.5{some} (AP50)")
    for i, iou in ((0, 0.5), (2, 0.6), (4, 0.7), (6, 0.8), (8, 0.9)):
        mean = np.nanmean(precision[i][:, known], axis=1)
        right.plot(recall, mean, label=f"IoU {iou:.1f} ({100 * mean.mean():.0f})")
    what = "mean over classes" if len(known) > 1 else "several IoUs"
    right.set(title=f"{what} (AP at that IoU)")
    for axis in (left, right):
        axis.title.set_fontsize(11)
        axis.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
        _legend_below(axis, *axis.get_legend_handles_labels())
        axis.grid(alpha=0.3)
    figures = f"AP {ap['AP']:.1f}, AP50 {ap['AP50']:.1f}"
    figure.suptitle(f"{title}: {figures}" if title else figures)
    figure.savefig(path, dpi=110)


def _extremes(precision: np.ndarray, known: list[int], most: int = 10) -> list[int]:
    if len(known) <= most:
        return known
    ranked = sorted(known, key=lambda k: precision[0, :, k].mean())
    return ranked[: most // 2] + ranked[-(most - most // 2) :]


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
        axis.set_xlim(*_with_room(axis.dataLim.x0, axis.dataLim.x1))
    axis.grid(alpha=0.3)
    if len(handles) > 1:
        _legend_below(axis, handles, [handle.get_label() for handle in handles])
    figure.savefig(path, dpi=110)


def _with_room(first: float, last: float) -> tuple[float, float]:
    """Limits from 0, or near points that are all far from it; the last label is right of its
    point.
    """
    if 2 * first < last:
        return 0, 1.18 * last
    room = max(0.4 * (last - first), 0.05 * last)
    return first - room, last + 1.5 * room


def _label_points(axis, series: Sequence[Sequence[tuple]]) -> None:
    """The last element of each point beside it: right above, and for the first of several series,
    which lies lowest, left below. A point of two series has one label.
    """
    end = axis.dataLim.x1
    bright = [withStroke(linewidth=2.5, foreground="white")]  # lines and bars pass behind
    seen = set()
    for number, points in reversed(list(enumerate(series))):
        for x, error, *_, words in points:
            # Near the axis there is no room to the left.
            below = number == 0 < len(series) - 1 and x > 0.1 * end
            place = {"ha": "right", "va": "top"} if below else {"ha": "left", "va": "bottom"}
            place |= {"textcoords": "offset points", "path_effects": bright, "zorder": 5}
            if (x, error, words) not in seen:
                axis.annotate(words, (x, error), (-8, -4) if below else (5, 4), **place)
            seen.add((x, error, words))
