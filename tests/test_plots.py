"""Guard the demo's pictures: they show the run's own records, and each is drawn."""

import json

import cv2
import numpy as np
import pytest

from resnext_det import plots


def write_metrics(path, rows, end=""):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + end)
    return path


@pytest.fixture
def figures(monkeypatch):
    """Every figure that is drawn, to look at its axes."""
    drawn = []

    class Kept(plots.Figure):
        def __init__(self, *args, **others):
            super().__init__(*args, **others)
            drawn.append(self)

    monkeypatch.setattr(plots, "Figure", Kept)
    return drawn


def assert_is_picture(path):
    image = cv2.imread(str(path))
    assert image is not None and min(image.shape[:2]) > 100
    assert image.std() > 5  # not an empty page


# ---- metrics.json ----


def test_read_metrics(tmp_path):
    rows = [
        {"iteration": 19, "loss_cls": 1.5, "lr": 0.1},
        {"iteration": 39, "loss_cls": 1.25, "lr": 0.1},
    ]
    assert plots.read_metrics(write_metrics(tmp_path / "metrics.json", rows)) == {
        "loss_cls": ([19, 39], [1.5, 1.25]),
        "lr": ([19, 39], [0.1, 0.1]),
    }


def test_the_later_line_of_an_iteration_counts(tmp_path):
    """A run that was killed at 45 and resumed from its checkpoint at 20."""
    rows = [{"iteration": i, "loss": v} for i, v in ((19, 3.0), (39, 9.0), (39, 2.0), (59, 1.0))]
    found = plots.read_metrics(write_metrics(tmp_path / "metrics.json", rows))
    assert found["loss"] == ([19, 39, 59], [3.0, 2.0, 1.0])


def test_iterations_are_in_order(tmp_path):
    rows = [{"iteration": i, "loss": float(i)} for i in (19, 39, 59, 29, 49)]
    found = plots.read_metrics(write_metrics(tmp_path / "metrics.json", rows))
    assert found["loss"] == ([19, 29, 39, 49, 59], [19.0, 29.0, 39.0, 49.0, 59.0])


def test_two_lines_of_an_iteration_join(tmp_path):
    """Losses and evaluation results come as separate lines; a series may have gaps."""
    rows = [
        {"iteration": 19, "loss": 3.0},
        {"iteration": 39, "loss": 2.0},
        {"iteration": 39, "classification/top1_error": 40.0},
    ]
    found = plots.read_metrics(write_metrics(tmp_path / "metrics.json", rows))
    assert found == {"loss": ([19, 39], [3.0, 2.0]), "classification/top1_error": ([39], [40.0])}


@pytest.mark.parametrize("end", ['{"iteration": 39, "lo', '{"iteration": 39, "loss": 2.0', "{", ""])
def test_a_cut_off_last_line_is_passed_over(tmp_path, end):
    path = write_metrics(tmp_path / "metrics.json", [{"iteration": 19, "loss": 3.0}], end)
    assert plots.read_metrics(path) == {"loss": ([19], [3.0])}


def test_text_among_the_values_is_no_series(tmp_path):
    rows = [{"iteration": 19, "loss": 3.0, "note": "warm", "none": None}]
    assert set(plots.read_metrics(write_metrics(tmp_path / "metrics.json", rows))) == {"loss"}


# ---- figures ----


def test_training_curves(tmp_path, figures):
    rows = [
        {"iteration": i, "total_loss": 3.0 / i, "loss_cls": 2.0 / i, "loss_box": 1.0 / i, "lr": 1}
        for i in range(20, 200, 20)
    ]
    errors = {"classification/top1_error": 40.0, "classification/top5_error": 5.0}
    first = write_metrics(tmp_path / "a.json", rows)
    second = write_metrics(tmp_path / "b.json", [*rows, {"iteration": 180, **errors}])
    path = tmp_path / "curves.png"
    plots.training_curves({"RPN": first, "classification": second}, path)
    assert_is_picture(path)
    left, middle, right = figures[0].axes
    assert [axis.get_title() for axis in (left, middle)] == ["RPN", "classification"]
    for axis in (left, middle):
        assert [line.get_label() for line in axis.get_lines()] == ["loss_box", "loss_cls"]
    assert list(left.get_lines()[1].get_ydata()) == [row["loss_cls"] for row in rows]
    assert {line.get_label() for line in right.get_lines()} == {
        "validation top1_error",
        "validation top5_error",
    }


def make_precision(classes, absent=()):
    """(10 IoUs, 101 recalls, classes), falling with both; class k lies at 1 - k / 40."""
    iou, recall, k = np.ogrid[0:10, 0:101, 0:classes]
    precision = (1 - k / 40) * (1 - recall / 200) * (1 - iou / 20)
    precision[:, :, list(absent)] = np.nan
    return precision


def drawn_stage(tmp_path, figures, rows):
    """(left axis, right axis) of a stage with these lines of metrics.json."""
    metrics = write_metrics(tmp_path / "metrics.json", rows)
    plots.training_curves({"stage": metrics}, tmp_path / "curves.png")
    assert_is_picture(tmp_path / "curves.png")
    return figures[-1].axes


@pytest.mark.parametrize(
    "group, names, ylabel",
    [
        ("bbox", ["AP", "AP50"], "average precision (%)"),
        ("proposals", ["AR@1000"], "average recall (%)"),
    ],
)
def test_figures_of_evaluations_are_drawn(tmp_path, figures, group, names, ylabel):
    """With the best one ringed, of two equal ones the first: that is the one that is kept."""
    measured = [10.0, 31.5, 31.5, 20.0]
    rows = [
        {"iteration": 20 * k + 19, "loss_cls": 1.0, **{f"{group}/{name}": v for name in names}}
        | {f"{group}/APs": 99.0, f"{group}/AR@100": 99.0, "other/bbox/AP": 99.0}
        for k, v in enumerate(measured)
    ]
    left, right = drawn_stage(tmp_path, figures, rows)
    assert [line.get_label() for line in left.get_lines()] == ["loss_cls"]
    lines = {line.get_label(): line for line in right.get_lines()}
    for name in names:
        line = lines[f"validation {name}"]
        assert list(line.get_xdata()) == [19, 39, 59, 79] and list(line.get_ydata()) == measured
        assert line.get_marker() == "o" and line.get_color() == "black"
    ring = lines[f"best {names[0]}: 31.5 (model_best)"]
    assert (ring.get_xdata()[0], ring.get_ydata()[0]) == (39, 31.5)
    assert right.get_ylabel() == ylabel and right.get_ylim() == (0, 35)
    (upright,) = [line for line in right.get_lines() if list(line.get_ydata()) == [0, 1]]
    assert list(upright.get_xdata()) == [39, 39]
    told = [text.get_text() for text in left.get_legend().get_texts()]
    assert len(told) == len(names) + 2  # the line upright has no entry


def test_the_best_error_is_the_lowest(tmp_path, figures):
    errors = [(19, 50.0), (39, 30.0), (59, 40.0)]
    rows = [{"iteration": i, "total_loss": 1.0, "classification/top1_error": e} for i, e in errors]
    _, right = drawn_stage(tmp_path, figures, rows)
    assert "best top1_error: 30.0 (model_best)" in [line.get_label() for line in right.get_lines()]


@pytest.mark.parametrize("values", [[12.0], [float("nan")] * 3], ids=["one", "no objects"])
def test_nothing_to_choose_has_no_ring(tmp_path, figures, values):
    rows = [{"iteration": k, "total_loss": 1.0, "bbox/AP": v} for k, v in enumerate(values)]
    _, right = drawn_stage(tmp_path, figures, rows)
    assert [line.get_label() for line in right.get_lines()] == ["validation AP"]


@pytest.mark.parametrize("parts", [["loss_box_reg", "loss_cls"], []], ids=["parts", "total"])
def test_validation_losses_are_dashed_in_the_same_colour(tmp_path, figures, parts):
    names = [*parts, "total_loss"]
    rows = [
        {"iteration": k, **{name: 2.0 for name in names}}
        | {f"validation/{name}": 3.0 + k for name in names}
        | {f"other/validation/{name}": 9.0 for name in names}  # of a second data set
        for k in (19, 39)
    ]
    (axis,) = drawn_stage(tmp_path, figures, rows)
    lines = {line.get_label(): line for line in axis.get_lines()}
    shown = parts or ["total_loss"]
    assert set(lines) == {*shown, *(f"validation {name}" for name in shown)}
    for name in shown:
        own, other = lines[name], lines[f"validation {name}"]
        assert list(other.get_ydata()) == [22.0, 42.0] and other.get_linestyle() == "--"
        assert own.get_color() == other.get_color() and own.get_linestyle() == "-"


AP = {"AP": 31.25, "AP50": 52.0}


def test_precision_recall(tmp_path, figures):
    path = tmp_path / "pr.png"
    plots.precision_recall(make_precision(3, absent=[1]), ["cat", "dog", "owl"], AP, path)
    assert_is_picture(path)
    left, right = figures[0].axes
    labels = [line.get_label() for line in left.get_lines()]
    assert [label.split()[0] for label in labels] == ["cat", "owl"]  # no dog in the data
    assert labels[0] == "cat (75)"  # the mean over recall, in percent
    assert len(right.get_lines()) == 5
    assert all(np.isfinite(line.get_ydata()).all() for line in right.get_lines())
    assert figures[0].get_suptitle() == "AP 31.2, AP50 52.0"


@pytest.mark.parametrize("classes", [1, 3])
def test_titles_of_precision_recall(tmp_path, figures, classes):
    """Of one class there is no mean over classes."""
    names, precision = ["cat", "dog", "owl"], make_precision(3, absent=range(classes, 3))
    plots.precision_recall(precision, names, AP, tmp_path / "pr.png", title="pets (classes: cat)")
    assert figures[0].get_suptitle() == "pets (classes: cat): AP 31.2, AP50 52.0"
    titles = [axis.get_title() for axis in figures[0].axes]
    if classes == 1:
        assert titles == ["IoU 0.5 (AP50)", "several IoUs (AP at that IoU)"]
    else:
        assert titles == ["IoU 0.5, by class (AP50)", "mean over classes (AP at that IoU)"]


def test_of_many_classes_the_extremes_are_shown(tmp_path, figures):
    names = [f"c{k}" for k in range(30)]
    plots.precision_recall(make_precision(30), names, AP, tmp_path / "pr.png")
    labels = {line.get_label().split()[0] for line in figures[0].axes[0].get_lines()}
    assert labels == {f"c{k}" for k in (0, 1, 2, 3, 4, 25, 26, 27, 28, 29)}


@pytest.mark.parametrize("classes, shown", [(1, 1), (10, 10), (80, 10)])
def test_legends_of_precision_recall_cover_no_curve(tmp_path, figures, classes, shown):
    """They stand below the axes' names, on the page, and name every line."""
    names = [f"class {k} of a long name {k}" for k in range(classes)]
    path, colors = tmp_path / "pr.png", [(k / 80, 0.5, 0.5) for k in range(classes)]
    plots.precision_recall(make_precision(classes), names, AP, path, colors=colors)
    left, right = figures[0].axes
    assert len(left.get_lines()) == shown and left.get_lines()[0].get_color()[1:] == (0.5, 0.5)
    for axis in (left, right):
        assert_legend_is_below(axis)
        assert len(axis.get_legend().get_texts()) == len(axis.get_lines())
    assert left.get_position().y0 == pytest.approx(right.get_position().y0)
    assert ("10 of 80" in left.get_title()) is (classes == 80)
    assert left.title.get_window_extent().x1 < right.title.get_window_extent().x0


def assert_legend_is_below(axis):
    axis.figure.draw_without_rendering()  # it was saved with other dots per inch
    legend, page = axis.get_legend().get_window_extent(), axis.figure.bbox
    assert legend.y1 < axis.xaxis.label.get_window_extent().y0
    assert legend.y1 < axis.get_window_extent().y0
    assert legend.y0 >= 0 and legend.x0 >= 0 and legend.x1 <= page.x1


def ticks_of(axis):
    """Those that are seen."""
    first, last = axis.get_xlim()
    return [float(tick) for tick in axis.get_xticks() if first <= tick <= last]


@pytest.mark.parametrize("last", [0, 1, 3, 19, 139, 90000])
def test_one_point_is_seen(tmp_path, figures, last):
    """A line between points shows nothing of a single one; no iteration is half."""
    rows = [{"iteration": last, "loss_cls": 2.0, "classification/top1_error": 40.0}]
    path = tmp_path / "curves.png"
    plots.training_curves({"RPN": write_metrics(tmp_path / "a.json", rows)}, path)
    left, right = figures[0].axes
    for axis in (left, right):
        (line,) = axis.get_lines()
        assert line.get_marker() == "o" and list(line.get_xdata()) == [last]
        assert axis.get_xlim()[0] == 0 and axis.get_xlim()[1] >= last
    assert len(ticks_of(left)) >= 2 and all(tick == int(tick) for tick in ticks_of(left))
    assert_legend_is_below(left)
    assert_is_picture(path)


def test_of_many_points_none_is_marked(tmp_path, figures):
    rows = [{"iteration": k, "loss_cls": 1.0} for k in range(31)]
    for count in (30, 31):
        path = write_metrics(tmp_path / f"{count}.json", rows[:count])
        plots.training_curves({"RPN": path}, tmp_path / "a.png")
    few, many = (figure.axes[0].get_lines()[0].get_marker() for figure in figures)
    assert (few, many) == ("o", "")


def test_nothing_logged_yet(tmp_path, figures):
    plots.training_curves({"RPN": write_metrics(tmp_path / "a.json", [])}, tmp_path / "a.png")
    assert_is_picture(tmp_path / "a.png")


ODD_NAMES = ["a" * 200, "$\\frac$", "_hidden", "杯子", "two\nlines", "\ud800", ""]


@pytest.mark.filterwarnings("ignore:Glyph")
def test_names_of_any_kind(tmp_path, figures):
    """A formula's sign, an underscore, other alphabets and line ends are drawn as they stand."""
    plots.precision_recall(make_precision(7), ODD_NAMES, AP, tmp_path / "pr.png")
    texts = [text.get_text() for text in figures[0].axes[0].get_legend().get_texts()]
    assert len(texts) == 7 and texts[1].startswith("\\$\\frac\\$ (") and "two?lines (" in texts[4]
    curves = [plots.ErrorCurve(name, ([1, 2], [40.0, 30.0])) for name in ODD_NAMES]
    plots.error_curves(curves, tmp_path / "a.png", xlabel="epochs")
    assert len(figures[1].axes[0].get_legend().get_texts()) == 7


@pytest.mark.parametrize(
    "text, most, shown",
    [
        ("mug", 24, "mug"),
        ("traffic light, left 96%", 12, "traffic… 96%"),
        ("abcdef", 6, "abcdef"),
        ("a$b$", 24, "a\\$b\\$"),
        ("_a", 24, " _a"),
        ("a\tb\u2028c", 24, "a?b?c"),
    ],
)
def test_label(text, most, shown):
    assert plots.label(text, most) == shown and len(text) < most or len(shown) <= most


# ---- errors of several runs ----


def test_trailing_mean():
    """Ten values an epoch of 100 iterations; the first whole epoch ends at 100."""
    x = [10 * (k + 1) for k in range(25)]
    values = [float(k) for k in range(25)]
    at, means = plots.trailing_mean(x, values, 100)
    assert list(at) == x[9:]
    assert list(means) == [np.mean(values[k - 9 : k + 1]) for k in range(9, 25)]


def test_trailing_mean_of_less_than_a_window():
    at, means = plots.trailing_mean([20, 40], [50.0, 40.0], 100)
    assert (list(at), list(means)) == ([40], [45])


CURVES = [
    plots.ErrorCurve("R50_1x64d", ([1, 2, 3], [60.0, 40.0, 23.94]), ([1, 3], [70.0, 21.5])),
    plots.ErrorCurve("X50_32x4d", ([1, 2, 3], [58.0, 38.0, 22.2])),
]


def test_error_curves(tmp_path, figures):
    path = tmp_path / "curves.png"
    plots.error_curves(CURVES, path, xlabel="epochs")
    assert_is_picture(path)
    (axis,) = figures[0].axes
    lines = axis.get_lines()
    assert [(line.get_label(), line.get_linestyle()) for line in lines] == [
        ("R50_1x64d: validation 23.9", "-"),
        ("R50_1x64d: training 21.5", "--"),
        ("X50_32x4d: validation 22.2", "-"),
    ]
    assert [list(line.get_ydata()) for line in lines][1:] == [[70.0, 21.5], [58.0, 38.0, 22.2]]
    colours = [line.get_color() for line in lines]
    assert colours[0] == colours[1] != colours[2]
    assert axis.get_xlim()[0] == 0 and axis.get_ylim() == (20, 75)
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("epochs", "top-1 error (%)")


@pytest.mark.parametrize(
    "errors, given, limits",
    [
        ([99.9, 0.2], None, (0, 100)),
        ([3.0, 3.0], None, (0, 5)),
        ([90.0, 22.2], (15, 50), (15, 50)),
    ],
)
def test_limits_of_errors(tmp_path, figures, errors, given, limits):
    curve = plots.ErrorCurve("a", ([1, 2], errors))
    plots.error_curves([curve], tmp_path / "a.png", xlabel="epochs", ylim=given)
    assert figures[0].axes[0].get_ylim() == limits


@pytest.mark.parametrize("points", [1, 2, 31])
@pytest.mark.parametrize("last", [0.015, 1.0, 24.0, 100.0])
def test_error_curves_of_any_length(tmp_path, figures, points, last):
    """Few points are marked, in training too; ticks are whole epochs where there are two."""
    x, errors = [last * (k + 1) / points for k in range(points)], [40.0] * points
    curve = plots.ErrorCurve("a", (x, errors), (x, errors))
    plots.error_curves([curve], tmp_path / "a.png", xlabel="epochs")
    (axis,) = figures[0].axes
    assert [line.get_marker() for line in axis.get_lines()] == ["" if points == 31 else "o"] * 2
    assert len(ticks_of(axis)) >= 2
    assert all(tick == int(tick) for tick in ticks_of(axis)) is (last >= 1)
    assert_legend_is_below(axis)


def test_legend_of_many_runs_with_folders_as_names(tmp_path, figures):
    curves = [
        plots.ErrorCurve(f"X50_32x4d (output/a/folder/of/long/name_{n})", ([1, 2], [40.0, 30.0]))
        for n in range(9)
    ]
    plots.error_curves(curves, tmp_path / "a.png", xlabel="epochs")
    assert_legend_is_below(figures[0].axes[0])


SERIES = {
    "C grows": [(4.9, 5.2, 0.1, "1x64d"), (9.1, 4.4, float("nan"), "2x64d")],
    "d grows": [(4.9, 5.2, 0.1, "1x64d"), (13.8, 4.6, 0.1, "1x128d")],
}


def texts(axis):
    return sorted(text.get_text() for text in axis.texts)


def test_errors_with_bars(tmp_path, figures):
    path, printed = tmp_path / "bars.png", {"paper": [(9.2, 4.3, "2x64d"), (34.4, 3.65, "8x64d")]}
    plots.errors_with_bars(SERIES, path, xlabel="parameters", printed=printed)
    assert_is_picture(path)
    (axis,) = figures[0].axes
    # A point of two series, and one that both sources have, are labelled once.
    assert texts(axis) == ["1x128d", "1x64d", "2x64d", "8x64d"]
    names = [text.get_text() for text in axis.get_legend().get_texts()]
    assert names == ["C grows", "d grows", "paper"]
    hollow = axis.get_lines()[-1]
    assert hollow.get_markerfacecolor() == "none" and hollow.get_linestyle() == "None"
    assert list(hollow.get_xdata()) == [9.2, 34.4] and list(hollow.get_ydata()) == [4.3, 3.65]
    assert axis.get_xlim()[0] == 0 and axis.get_xlim()[1] > 34.4


@pytest.mark.parametrize("others", [{}, {"d": [(5, 5.0, 0.1, "1x64d")]}], ids=["one", "two"])
def test_labels_lie_inside_the_picture(tmp_path, figures, others):
    series = {"C": [(5, 5.0, 0.1, "1x64d"), (68, 3.5, 0.1, "16x64d")], **others}
    plots.errors_with_bars(series, tmp_path / "a.png", xlabel="parameters")
    (axis,) = figures[0].axes
    frame = axis.get_window_extent()
    for text in axis.texts:
        box = text.get_window_extent()
        assert frame.x0 < box.x0 and box.x1 < frame.x1, text.get_text()
        assert frame.y0 < box.y0 and box.y1 < frame.y1, text.get_text()


def test_errors_against_cardinality(tmp_path, figures):
    """One series on a logarithmic axis: a tick for every point and no legend."""
    points = [(1, 30.0, 0.4, "1x64d"), (2, 29.0, 0.3, "2x40d"), (32, 28.0, 0.3, "32x4d")]
    plots.errors_with_bars({"equal": points}, tmp_path / "a.png", xlabel="C", log_x=True)
    (axis,) = figures[0].axes
    assert [text.get_text() for text in axis.get_xticklabels()] == ["1", "2", "32"]
    assert axis.get_legend() is None and texts(axis) == ["1x64d", "2x40d", "32x4d"]


def test_points_far_from_zero_fill_the_figure(tmp_path, figures):
    """Studies of equal complexity: four networks of nearly one size."""
    points = [(0.118, 32.9, 0.2, "32x4d"), (0.125, 33.2, 0.5, "2x40d"), (0.128, 34.6, 0.3, "1x64d")]
    series = {"C grows": points[2:], "other C x d": points[:2]}
    plots.errors_with_bars(series, tmp_path / "a.png", xlabel="parameters")
    (axis,) = figures[0].axes
    first, last = axis.get_xlim()
    assert 0.1 < first < 0.118 and 0.128 < last < 0.15
    assert_legend_is_below(axis)
    frame = axis.get_window_extent()
    for text in axis.texts:
        box = text.get_window_extent()
        assert frame.x0 < box.x0 and box.x1 < frame.x1, text.get_text()
