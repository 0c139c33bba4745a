"""Guard tools/plot.py: figures show what run folders and studies hold, or say what they lack."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from resnext_det import plots
from resnext_det.classification.trainer import with_epochs
from resnext_det.config import load_cfg

ROOT = Path(__file__).parents[2]
X50 = "configs/imagenet/X50_32x4d.yaml"
CIFAR = "configs/cifar/X29_8x64d_cifar10.yaml"


@pytest.fixture
def plot(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["plot.py", *map(str, args)])
        runpy.run_path(str(ROOT / "tools" / "plot.py"), run_name="__main__")

    return run


@pytest.fixture
def drawn(monkeypatch):
    """The arguments of the functions that draw, which still draw."""
    found = []

    def noting(draw):
        def noted(*args, **others):
            found.append((args, others))
            draw(*args, **others)

        return noted

    for name in ("error_curves", "errors_with_bars"):
        monkeypatch.setattr(plots, name, noting(getattr(plots, name)))
    return found


def make_run(folder, config, images, rows, *opts):
    """A run folder as training leaves it, after as many log lines as ``rows``."""
    folder.mkdir(parents=True)
    cfg = with_epochs(load_cfg(ROOT / config, list(opts)), images)
    (folder / "config.yaml").write_text(cfg.dump())
    record = {"command": ["tools/pretrain_imagenet.py"], "started": "2026-01-01", "environment": {}}
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "metrics.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def evaluations(**errors):
    """{"at_<iteration>": top-1 error} as metrics.json holds them."""
    return [
        {"iteration": int(key[3:]), "classification/top1_error": error}
        for key, error in errors.items()
    ]


@pytest.fixture
def x50(tmp_path):
    """Four epochs of ten iterations; an evaluation after each second one, as the trainer logs."""
    training = [
        {"iteration": 2 * k + 1, "train_top1_error": 80.0 - k, "total_loss": 1.0} for k in range(20)
    ]
    rows = training + evaluations(at_19=60.0, at_40=41.5)
    return make_run(tmp_path / "x50", X50, 2560, rows, "SOLVER.MAX_EPOCHS", "4.0")


# ---- curves ----


def test_curves_in_epochs(plot, drawn, x50, tmp_path):
    r50 = make_run(
        tmp_path / "r50",
        "configs/imagenet/R50_1x64d.yaml",
        2560,
        evaluations(at_9=70.0),
        *("SOLVER.MAX_EPOCHS", "4.0"),
    )
    plot("curves", x50, r50, "--output", "new/curves.png")
    assert (tmp_path / "new" / "curves.png").stat().st_size > 5000
    (((first, second), path), others) = drawn[0]
    assert others == {"xlabel": "epochs", "ylabel": "top-1 error (%)", "ylim": None}
    assert (first.label, second.label) == ("X50_32x4d", "R50_1x64d")
    assert first.validation == ([2.0, 4.0], [60.0, 41.5])
    assert second.validation == ([1.0], [70.0]) and not len(second.training[0])
    # The mean over an epoch, which holds five log lines: the first is of 80, 79, 78, 77, 76.
    x, errors = first.training
    assert list(x[:2]) == [1.0, 1.2] and list(errors[:2]) == [78.0, 77.0]
    assert (x[-1], errors[-1]) == (4.0, 63.0)


def test_curves_in_iterations(plot, drawn, x50):
    plot("curves", x50, "--output", "a.svg", "--x", "iterations", "--ylim", "15", "50")
    (((curve,), _), others) = drawn[0]
    assert curve.validation == ([20, 40], [60.0, 41.5]) and list(curve.training[0][:2]) == [10, 12]
    assert others["xlabel"] == "iterations" and others["ylim"] == [15.0, 50.0]


FIVE_K = "configs/imagenet5k/X50_32x4d.yaml"


def test_errors_of_imagenet5k(plot, drawn, tmp_path):
    """Fig. 6: the 1K-way error, against mini-batches."""
    rows = [{"iteration": 4, "classification/top1_error_1000way": 30.0, "train_top1_error": 1.0}]
    run = make_run(tmp_path / "run", FIVE_K, 100, rows)
    plot("curves", run, "--output", "a.png", "--x", "iterations", "--error", "top1_error_1000way")
    (((curve,), _), others) = drawn[0]
    assert curve.validation == ([5], [30.0]) and not len(curve.training[0])
    assert others["ylabel"] == "top-1 error, 1000-way (%)"


def test_runs_of_one_network_are_told_apart(plot, drawn, tmp_path):
    folders = [
        make_run(tmp_path / name, X50, 2560, evaluations(at_9=70.0)) for name in ("seed0", "seed1")
    ]
    plot("curves", *folders, "--output", "a.png")
    labels = [curve.label for curve in drawn[0][0][0]]
    assert labels == [f"X50_32x4d ({folder})" for folder in folders]


CURVE_REFUSALS = {
    "no run": ("there is no folder", [], ["is no run folder", "run.json"]),
    "no metrics": ("metrics.json", None, ["metrics.json: cannot be read"]),
    "no evaluation": ("metrics.json", '{"iteration": 3, "loss": 1.0}\n', ["found: none"]),
    "another error": (
        "metrics.json",
        '{"iteration": 3, "classification/top5_error": 1.0}\n',
        ["no validation error classification/top1_error", "found: classification/top5_error"],
    ),
    "no iteration": ("metrics.json", '{"loss": 1.0}\n', ["metrics.json: ", "no metrics"]),
    "no object": ("metrics.json", "3\n", ["metrics.json: ", "no metrics"]),
    "no error": (
        "metrics.json",
        '{"iteration": 3, "classification/top1_error": NaN}\n',
        ["classification/top1_error is nan at iteration 3"],
    ),
    "no network": ("config.yaml", "MODEL: {RESNETS: {DEPTH: 7}}", ["config.yaml: DEPTH is 7"]),
}


def assert_refused(run, capsys, *words):
    with pytest.raises(SystemExit) as caught:
        run()
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1, message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize("name, text, words", CURVE_REFUSALS.values(), ids=CURVE_REFUSALS)
def test_runs_without_curves(plot, x50, capsys, name, text, words):
    folder = x50 if (x50 / name).exists() else x50 / name
    if folder is x50:
        (x50 / name).unlink()
        if text is not None:
            (x50 / name).write_text(text)
    assert_refused(lambda: plot("curves", folder, "--output", "a.png"), capsys, str(x50), *words)


def test_epochs_that_nobody_knows(plot, capsys, tmp_path):
    run = make_run(tmp_path / "run", FIVE_K, 100, evaluations(at_9=70.0))
    assert_refused(lambda: plot("curves", run, "--output", "a.png"), capsys, "--x iterations")


@pytest.mark.parametrize(
    "output, words",
    [
        ("a.xyz", ["a.xyz: is no kind of picture", ".png"]),
        ("curves", ["curves: is no kind of picture"]),
        ("file/a.png", ["file: cannot be made"]),
        ("folder.png", ["folder.png: cannot be written"]),
    ],
)
def test_outputs_that_cannot_be(plot, x50, capsys, tmp_path, output, words):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    assert_refused(lambda: plot("curves", x50, "--output", output), capsys, *words)


# ---- error against parameters ----


def make_study(folder, **rows):
    """study.json, as `studies.write_rows` writes it: {row: (mean, standard error)}."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {
        name: {"top1_errors": [mean], "mean": mean, "standard_error": bar}
        for name, (mean, bar) in rows.items()
    }
    (folder / "study.json").write_text(json.dumps(values))
    return folder / "study.json"


# recipes.md of the paper's Fig. 7: parameters in millions, ten classes
SIZES = {"1x64d": 4.91, "2x64d": 9.13, "8x64d": 34.43, "1x128d": 13.78, "1x192d": 27.28}


def test_error_against_parameters(plot, drawn, tmp_path):
    files = [
        make_study(tmp_path / name, **{f"{name}_cifar10": (mean, 0.1)})
        for name, mean in (
            *(("X29_8x64d", 3.7), ("R29_1x64d", 5.2), ("X29_2x64d", 4.4)),
            *(("R29_1x192d", 4.3), ("R29_1x128d", 4.6)),
        )
    ]
    plot("params", *files, "--output", "a.png")
    ((series, _), others) = drawn[0]
    grown, wider = series.values()
    assert [name.partition(",")[0] for name in series] == ["cardinality C grows", "width d grows"]
    assert [point[1:] for point in grown] == [
        (5.2, 0.1, "1x64d"),
        (4.4, 0.1, "2x64d"),
        (3.7, 0.1, "8x64d"),
    ]
    assert [point[3] for point in wider] == ["1x64d", "1x128d", "1x192d"]
    for size, *_, label in (*grown, *wider):
        assert round(size, 2) == SIZES[label]
    assert others["xlabel"] == "parameters (millions)"
    assert others["printed"] == {
        "paper, Table 7 (CIFAR-10)": [(34.4, 3.65, "8x64d"), (68.1, 3.58, "16x64d")]
    }


def test_without_the_paper_and_for_a_hundred_classes(plot, drawn, tmp_path):
    file = make_study(tmp_path, X29_8x64d_cifar100=(17.8, None))
    plot("params", file, "--output", "a.png", "--without-paper")
    plot("params", file, "--output", "a.png", "--num-classes", "100")
    assert drawn[0][1]["printed"] == {}
    ((series, _), others) = drawn[1]
    assert others["printed"]["paper, Table 7 (CIFAR-100)"][0] == (34.4, 17.77, "8x64d")
    ((size, mean, bar, _),) = next(iter(series.values()))
    assert round(size * 1e6) == 34518948 and mean == 17.8 and bar != bar  # one seed has no bar


def add_seed(study, row, root, *opts):
    rows = evaluations(at_9=5.0)
    run = make_run(study.parent / row / "seed0", CIFAR, 50000, rows, "DATA.ROOT", root, *opts)
    (run / "log.txt").write_text("a INFO: X29 with 10 classes, 1.00 M parameters\n")


def test_rows_named_by_their_runs(plot, drawn, tmp_path):
    """The rows of the cardinality study are "1x64d", ..; what they are stands in the folders."""
    file = make_study(tmp_path, **{"1x64d": (30.0, 0.1), "2x40d": (29.0, 0.2)})
    for groups, width in ((1, 64), (2, 40)):
        keys = {"DEPTH": 11, "NUM_GROUPS": groups, "WIDTH_PER_GROUP": width}
        keys["WIDTH_MULTIPLIER"] = 0.25
        opts = [str(word) for k, v in keys.items() for word in (f"MODEL.RESNETS.{k}", v)]
        add_seed(file, f"{groups}x{width}d", "data/subset.npz", *opts)
    plot("params", file, "--output", "a.png", "--without-paper")
    series = drawn[0][0][0]
    assert {name: points[0][3] for name, points in series.items()} == {
        "cardinality C grows, d = 64": "1x64d",
        "other C x d": "2x40d",
    }
    assert all(size < 1 for points in series.values() for size, *_ in points)


def test_depths_are_kept_apart(plot, drawn, tmp_path):
    rows = {"X29_2x64d": (4.4, 0.1), "X29_4x64d": (4.0, 0.1), "X11_2x64d": (9.0, 0.1)}
    plot("params", make_study(tmp_path, **rows), "--output", "a.png")
    labels = {name: [point[3] for point in points] for name, points in drawn[0][0][0].items()}
    assert labels == {
        "cardinality C grows, d = 64 (29)": ["2x64d", "4x64d"],
        "cardinality C grows, d = 64 (11)": ["2x64d"],
    }


STUDY_REFUSALS = {
    "no file": (None, ["study.json: ", "does not exist"]),
    "no JSON": ("{", ["study.json: ", "is not JSON"]),
    "no row": ("{}", ["study.json: ", "holds no row"]),
    "no mean": ('{"X29_8x64d": {"mean": null}}', ["study.json: ", "X29_8x64d has no mean"]),
    "a list": ('{"X29_8x64d": [1]}', ["study.json: ", "X29_8x64d has no mean"]),
    "no network": ('{"1x64d": {"mean": 1.5}}', ["study.json: ", "row 1x64d names no network"]),
    "twice": (
        '{"X29_8x64d_a": {"mean": 1.5}, "X29_8x64d_b": {"mean": 1.5}}',
        ["X29_8x64d 2 times"],
    ),
}


@pytest.mark.parametrize("text, words", STUDY_REFUSALS.values(), ids=STUDY_REFUSALS)
def test_studies_that_are_none(plot, capsys, tmp_path, text, words):
    if text is not None:
        (tmp_path / "study.json").write_text(text)
    assert_refused(lambda: plot("params", "study.json", "--output", "a.png"), capsys, *words)


def test_studies_of_different_data(plot, capsys, tmp_path):
    files = [
        make_study(tmp_path / name, **{name: (4.0, 0.1)}) for name in ("X29_2x64d", "X29_4x64d")
    ]
    add_seed(files[0], "X29_2x64d", "data/subset.npz", "MODEL.RESNETS.NUM_GROUPS", "2")
    add_seed(files[1], "X29_4x64d", "data/cifar-10-batches-py", "MODEL.RESNETS.NUM_GROUPS", "4")
    words = ["of different data", "subset.npz (10 classes)", "cifar-10-batches-py (10 classes)"]
    assert_refused(lambda: plot("params", *files, "--output", "a.png"), capsys, *words)
