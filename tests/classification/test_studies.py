"""Guard the studies: runs that resume, means that are exact, failures that name their log.

A stand-in for the training tool writes results.json at once; nothing is trained here.
"""

import json
import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from resnext_det import plots
from resnext_det.classification import cardinality, studies
from resnext_det.classification.studies import Row, Setting, folder_for, line, run_all, write_rows
from resnext_det.config import architecture_arguments, load_cfg
from resnext_det.errors import InputError
from resnext_det.models import Architecture

ROOT = Path(__file__).parents[2]
STUDY = ROOT / "configs" / "cifar" / "cardinality.yaml"
TOOL = '''
"""Writes what it was called with; its error is 10 * LR + SEED, if no plan.txt says otherwise."""
import json, os, signal, sys, time
from pathlib import Path

words = sys.argv[1:]
opts = dict(zip(words[3::2], words[4::2]))  # behind --config-file FILE --resume
folder, here = Path(opts["OUTPUT_DIR"]), Path(__file__).parent
name = f"{folder.parent.name}/{folder.name}"
with open(here / "calls.txt", "a") as calls:
    calls.write(json.dumps([name, words, os.environ["OMP_NUM_THREADS"]]) + "\\n")
plan = (here / "plan.txt").read_text() if (here / "plan.txt").exists() else ""
if f"fail {name}" in plan:
    sys.exit("the disk is full")
if "interrupt" in plan:  # as Ctrl-C, which reaches the study and all its runs
    os.kill(os.getppid(), signal.SIGINT)
    time.sleep(0.3)
    (folder / "saved").touch()
    sys.exit(130)
error = 10 * float(opts.get("LR", 0)) + int(opts["SEED"])
(folder / "results.json").write_text(json.dumps({"classification": {"top1_error": error}}))
'''
SETTINGS = [
    Setting("narrow", Path("a.yaml"), ("LR", "1")),
    Setting("wide", Path("b.yaml"), ("LR", "2")),
]


@pytest.fixture
def tool(tmp_path):
    path = tmp_path / "tool" / "tool.py"
    path.parent.mkdir()
    path.write_text(TOOL)
    return path


def calls(tool):
    path = tool.with_name("calls.txt")
    return [json.loads(row) for row in path.read_text().splitlines()] if path.exists() else []


def called(tool):
    return sorted(name for name, *_ in calls(tool))


# ---- runs ----


def test_every_setting_with_every_seed(tool, tmp_path):
    rows = run_all(tool, SETTINGS, 3, tmp_path / "out", ["DATA.PAD", "4"], jobs=2)
    assert rows == [Row("narrow", (10.0, 11.0, 12.0)), Row("wide", (20.0, 21.0, 22.0))]
    assert called(tool) == [f"{n}/seed{i}" for n in ("narrow", "wide") for i in range(3)]
    for name, words, _ in calls(tool):
        setting, seed = name.split("/seed")
        file, rate = {"narrow": ("a.yaml", "1"), "wide": ("b.yaml", "2")}[setting]
        assert words == [
            *("--config-file", file, "--resume"),
            *("LR", rate, "DATA.PAD", "4", "SEED", seed),
            *("OUTPUT_DIR", str(folder_for(tmp_path / "out", Setting(setting, file), seed))),
        ]


def test_a_finished_run_is_not_run_again(tool, tmp_path):
    """Nor are the rows others than if all had run at once; more seeds may come later."""
    out = tmp_path / "out"
    run_all(tool, SETTINGS, 1, out, [], jobs=1)
    assert len(calls(tool)) == 2
    assert run_all(tool, SETTINGS, 1, out, [], jobs=1)[1] == Row("wide", (20.0,))
    assert len(calls(tool)) == 2
    rows = run_all(tool, SETTINGS, 2, out, [], jobs=1)
    assert rows == [Row("narrow", (10.0, 11.0)), Row("wide", (20.0, 21.0))]
    assert called(tool) == ["narrow/seed0", "narrow/seed1", "wide/seed0", "wide/seed1"]


def test_all_settings_of_a_seed_come_first(tool, tmp_path):
    """So that a study that is stopped can be compared as far as it went."""
    run_all(tool, SETTINGS, 2, tmp_path / "out", [], jobs=1)
    order = [name for name, *_ in calls(tool)]
    assert order == ["narrow/seed0", "wide/seed0", "narrow/seed1", "wide/seed1"]


def test_a_failed_run_is_named_by_its_log(tool, tmp_path):
    plan = tool.with_name("plan.txt")
    plan.write_text("fail wide/seed0")
    out = tmp_path / "out"
    with pytest.raises(InputError) as caught:
        run_all(tool, SETTINGS, 2, out, [], jobs=1)
    message = str(caught.value)
    log = out / "wide" / "seed0" / "output.txt"
    assert message.startswith(f"{log}: 1 of 4 runs failed") and "same command" in message
    assert "the disk is full" in log.read_text()
    assert len(calls(tool)) == 4  # the others were finished first
    plan.unlink()
    rows = run_all(tool, SETTINGS, 2, out, [], jobs=1)
    assert rows[1] == Row("wide", (20.0, 21.0)) and len(calls(tool)) == 5
    assert "the disk is full" in log.read_text()  # the log goes on, it does not start anew


def test_ctrl_c_ends_the_study_behind_the_runs_at_hand(tool, tmp_path, request):
    """No other run is started, and those at hand have saved their state before it returns."""
    tool.with_name("plan.txt").write_text("interrupt")
    # A shell that runs the suite in its background lets it ignore Ctrl-C.
    outer = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, outer))
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run_all(tool, SETTINGS, 4, tmp_path / "out", [], jobs=1)
    assert signal.getsignal(signal.SIGINT) is before
    started = called(tool)
    assert 1 <= len(started) <= 2  # the pool may have taken up the next one already
    for name in started:
        assert (tmp_path / "out" / name / "saved").exists()


@pytest.mark.parametrize("count, jobs, threads", [(8, 2, "4"), (8, 3, "2"), (2, 4, "1")])
def test_runs_share_the_cores(tool, tmp_path, monkeypatch, count, jobs, threads):
    monkeypatch.setattr(studies, "cores", lambda: count)
    run_all(tool, SETTINGS[:1], 1, tmp_path / "out", [], jobs=jobs)
    assert [found for *_, found in calls(tool)] == [threads]


def test_cores_are_those_that_may_be_used(monkeypatch):
    """In a container or under taskset, fewer than the machine has."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert studies.cores() == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    assert studies.cores() == 64


def test_finished_runs_of_other_options_are_no_part_of_the_mean(tool, tmp_path):
    out = tmp_path / "out"
    run_all(tool, SETTINGS, 1, out, ["LR", "3", "OUTPUT_DIR", "here"], jobs=1)
    with pytest.raises(InputError) as caught:
        run_all(tool, SETTINGS, 1, out, ["LR", "4"], jobs=1)
    message = str(caught.value)
    assert message.startswith(f"{out / 'narrow' / 'options.json'}: ")
    for words in ('"a.yaml LR 1 LR 3"', '"a.yaml LR 1 LR 4"', "another OUTPUT_DIR"):
        assert words in message
    assert len(calls(tool)) == 2
    # Where the folder stands is no matter.
    run_all(tool, SETTINGS, 1, out, ["LR", "3", "OUTPUT_DIR", "there"], jobs=1)
    run_all(tool, SETTINGS, 1, tmp_path / "other", ["LR", "4"], jobs=1)
    assert len(calls(tool)) == 4


def test_options_may_change_while_nothing_is_kept(tool, tmp_path):
    """A first try that failed at once is mended by an option."""
    plan = tool.with_name("plan.txt")
    plan.write_text("fail narrow/seed0")
    with pytest.raises(InputError):
        run_all(tool, SETTINGS[:1], 1, tmp_path / "out", ["LR", "3"], jobs=1)
    plan.unlink()
    assert run_all(tool, SETTINGS[:1], 1, tmp_path / "out", ["LR", "4"], jobs=1)[0].mean == 40
    (tmp_path / "out" / "narrow" / "seed0" / "results.json").unlink()
    (tmp_path / "out" / "narrow" / "seed0" / "model_0000009.pth").touch()
    with pytest.raises(InputError, match="options.json"):
        run_all(tool, SETTINGS[:1], 1, tmp_path / "out", ["LR", "5"], jobs=1)


# ---- rows ----


def test_mean_and_standard_error():
    row = Row("x", (3.0, 4.0, 8.0))
    assert row.mean == 5.0
    assert row.standard_error == pytest.approx(math.sqrt(7 / 3), rel=1e-15)  # variance 14 / 2
    errors = np.random.default_rng(0).normal(4, 0.2, 10)
    row = Row("x", tuple(errors))
    assert row.mean == pytest.approx(errors.mean(), rel=1e-14)
    assert row.standard_error == pytest.approx(errors.std(ddof=1) / 10**0.5, rel=1e-12)
    assert Row("x", (4.25, 4.25)).standard_error == 0
    assert math.isnan(Row("x", (4.25,)).standard_error)


@pytest.mark.parametrize(
    "row, text",
    [
        (
            Row("X29", (3.6, 3.7)),
            "X29: top-1 error 3.65 +- 0.05 % (mean and standard error of 2 runs)",
        ),
        (Row("X29", (3.654,)), "X29: top-1 error 3.65 % (one run)"),
    ],
)
def test_line(row, text):
    assert line(row) == text


def test_write_rows(tmp_path):
    write_rows([Row("a", (1.0, 3.0)), Row("b", (2.0,))], tmp_path / "study.json")
    assert json.loads((tmp_path / "study.json").read_text()) == {
        "a": {"top1_errors": [1.0, 3.0], "mean": 2.0, "standard_error": 1.0},
        "b": {"top1_errors": [2.0], "mean": 2.0, "standard_error": None},  # JSON has no NaN
    }


# ---- cardinality ----


@pytest.fixture
def drawn(monkeypatch):
    """Every figure that is drawn, to look at its axes."""
    figures = []

    class Kept(plots.Figure):
        def __init__(self, *args, **others):
            super().__init__(*args, **others)
            figures.append(self)

    monkeypatch.setattr(plots, "Figure", Kept)
    return figures


def write_data(path, classes):
    """An .npz with an image a class; nothing is trained on it."""
    images = np.zeros((classes, 32, 32, 3), np.uint8)
    labels = np.arange(classes)
    np.savez(path, train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    return path


def test_the_members_have_equal_complexity():
    """Table 2 at the study's depth and width: both numbers stay within the 8 % its config names."""
    members = cardinality.architectures(load_cfg(STUDY))
    assert [(m.cardinality, m.bottleneck_width) for m in members] == [
        (1, 64),
        (2, 40),
        (4, 24),
        (32, 4),
    ]
    assert {(m.depth, m.width_multiplier) for m in members} == {(11, 0.25)}
    rows = [Row("x", (1.0,))] * 4
    lines = cardinality.table(members, rows, 32, 10).splitlines()[2:]
    numbers = np.array(
        [[float(word.replace(",", "").split()[0]) for word in x.split("|")[2:4]] for x in lines]
    )
    assert (numbers.max(0) / numbers.min(0) < 1.085).all()


def test_study_of_finished_runs(tool, tmp_path, drawn):
    """Table, figure and study.json from results.json files alone."""
    errors = {
        "1x64d": (30.0, 32.0),
        "2x40d": (29.0, 29.5),
        "4x24d": (28.0, 29.0),
        "32x4d": (25, 27),
    }
    for name, values in errors.items():
        for seed, value in enumerate(values):
            folder = tmp_path / "out" / name / f"seed{seed}"
            folder.mkdir(parents=True)
            result = {"classification": {"top1_error": value, "top5_error": 1.0}}
            (folder / "results.json").write_text(json.dumps(result))
    opts = [
        "DATA.ROOT",
        str(write_data(tmp_path / "d.npz", 7)),
        "OUTPUT_DIR",
        str(tmp_path / "out"),
    ]
    cfg = load_cfg(STUDY, opts)
    rows = cardinality.study(tool, STUDY, cfg, 2, opts, jobs=1)
    assert not calls(tool)
    assert rows == [Row(name, values) for name, values in errors.items()]

    study = json.loads((tmp_path / "out" / "study.json").read_text())
    assert study["32x4d"] == {"top1_errors": [25, 27], "mean": 26.0, "standard_error": 1.0}
    text = (tmp_path / "out" / "table.md").read_text().splitlines()
    assert text[0].split("|")[1].strip() == "C x d" and len(text) == 6
    cells = [cell.strip() for cell in text[5].split("|")[1:-1]]
    member = cardinality.architectures(cfg)[3]
    assert cells[0] == "32x4d" and cells[3:] == ["26.00 +- 1.00", "25.00, 27.00"]
    assert int(cells[1].replace(",", "")) == parameters(member, num_classes=7)

    (axis,) = drawn[0].axes
    (bars,) = axis.containers
    points, caps, (segments,) = bars.lines
    np.testing.assert_allclose(points.get_xydata(), [[1, 31], [2, 29.25], [4, 28.5], [32, 26]])
    ends = np.array([segment[:, 1] for segment in segments.get_segments()])
    np.testing.assert_allclose(ends, [[30, 32], [29, 29.5], [28, 29], [25, 27]])
    assert [note.get_text() for note in axis.texts] == list(errors)
    assert axis.get_xlabel() == "cardinality" and axis.get_xscale() == "log"
    assert [label.get_text() for label in axis.get_xticklabels()] == ["1", "2", "4", "32"]
    assert (tmp_path / "out" / "figure.png").read_bytes().startswith(b"\x89PNG")


def parameters(member, num_classes):
    """Summed over the layers of Table 1's CIFAR counterpart: norms with scale and shift."""
    total = 9 * 3 * member.stem_channels + 2 * member.stem_channels
    before = member.stem_channels
    for stage in member.stages:
        inner, after = member.bottleneck_channels(stage), member.out_channels(stage)
        total += before * inner + 2 * inner
        total += 9 * inner * inner // member.cardinality + 2 * inner
        total += inner * after + 2 * after + before * after + 2 * after  # and the projection
        before = after
    return total + before * num_classes + num_classes


def test_the_count_used_above():
    """The known 34,426,698 of X29_8x64d (paper, Table 7: 34.4 M), with two more blocks a stage."""
    base = Architecture(29, 8, 64)
    total = parameters(base, 10)
    for stage in base.stages:
        inner, after = base.bottleneck_channels(stage), base.out_channels(stage)
        total += 2 * (2 * inner * after + 9 * inner * inner // 8 + 4 * inner + 2 * after)
    assert total == 34_426_698


def test_a_single_run_has_no_bar(tmp_path, drawn):
    """Neither in the table nor, as a bar of length 0 would say, in the figure."""
    members = [Architecture(**architecture_arguments(load_cfg(STUDY)))]
    rows = [Row("x", (25.0,))]
    assert cardinality.table(members, rows, 32, 10).splitlines()[2].split("|")[4].strip() == "25.00"
    cardinality.draw(members, rows, tmp_path / "figure.png")
    (bars,) = drawn[0].axes[0].containers
    points, caps, (segments,) = bars.lines
    np.testing.assert_allclose(points.get_xydata(), [[1, 25]])
    assert np.isnan(np.array([cap.get_ydata() for cap in caps], float)).all()
    assert not any(np.isfinite(part).any() for part in segments.get_segments())


def test_two_series_have_a_legend(tmp_path, drawn):
    """Fig. 7: test error against model size, cardinality raised or width."""
    series = {
        "cardinality": [(4.9, 5.0, 0.1, "1x64d"), (34.4, 3.65, 0.05, "8x64d")],
        "width": [(4.9, 5.0, 0.1, "1x64d"), (45.4, 4.2, 0.1, "1x256d")],
    }
    plots.errors_with_bars(series, tmp_path / "figure.png", xlabel="parameters (M)")
    (axis,) = drawn[0].axes
    assert [text.get_text() for text in axis.get_legend().get_texts()] == list(series)
    assert (axis.get_ylabel(), axis.get_xscale()) == ("test error (%)", "linear")


def test_data_that_cannot_be_used_is_named_before_any_run(tool, tmp_path):
    opts = ["DATA.ROOT", str(tmp_path / "none.npz"), "OUTPUT_DIR", str(tmp_path / "out")]
    with pytest.raises(InputError, match="none.npz: the file does not exist"):
        cardinality.study(tool, STUDY, load_cfg(STUDY, opts), 2, opts, jobs=1)
    assert not calls(tool)
