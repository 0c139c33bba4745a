"""Guard tools/reproduce.py: one line for every refusal, and a table from finished runs."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from resnext_det.classification import cardinality, studies

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "configs" / "cifar" / "X29_8x64d_cifar10.yaml"
STUDY = ROOT / "configs" / "cifar" / "cardinality.yaml"


@pytest.fixture
def reproduce(monkeypatch, tmp_path):
    """Run the tool in this process, which saves the seconds of the imports."""
    monkeypatch.chdir(tmp_path)

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["reproduce.py", *map(str, args)])
        runpy.run_path(str(ROOT / "tools" / "reproduce.py"), run_name="__main__")

    return run


@pytest.fixture
def data(tmp_path):
    images, labels = np.zeros((3, 32, 32, 3), np.uint8), np.arange(3)
    whole = {"train_images": images, "train_labels": labels}
    np.savez(tmp_path / "data.npz", **whole, test_images=images, test_labels=labels)
    return tmp_path / "data.npz"


@pytest.fixture
def planned(monkeypatch):
    """What would be run, noted instead: the arguments of `studies.run_all`."""
    found = []

    def run_all(*args):
        found.append(args)
        return [studies.Row(setting.name, (4.0, 5.0)) for setting in args[1]]

    monkeypatch.setattr(studies, "run_all", run_all)
    return found


REFUSALS = {
    "no seeds": (["seeds", "--config-file", RECIPE, "--seeds", "0"], ["--seeds is 0", "1 or more"]),
    "no jobs": (["cifar-cardinality", "--jobs", "0"], ["--jobs is 0", "1 or more"]),
    "fewer jobs": (["cifar-cardinality", "--jobs", "-2"], ["--jobs is -2", "1 or more"]),
    "seeds without a recipe": (["seeds"], ["seeds has no recipe", "--config-file"]),
    "a recipe that is not there": (["seeds", "--config-file", "x.yaml"], ["x.yaml: ", "exist"]),
    "an unknown key": (["cifar-cardinality", "DATA.ROOTS", "x"], ["DATA.ROOTS", "DATA.ROOT?"]),
    "a key without a value": (["cifar-cardinality", "DATA.ROOT"], ["DATA.ROOT has no value"]),
    "a seed": (["cifar-cardinality", "SEED", "5"], ["SEED is given", "--seeds"]),
    "no data": (
        ["cifar-cardinality", "DATA.ROOT", "none.npz"],
        ["none.npz: the file does not exist", "DATA.ROOT"],
    ),
    "no archive": (
        ["seeds", "--config-file", RECIPE],
        ["datasets/cifar-10-batches-py: ", "cifar.html"],
    ),
    "a folder that cannot be made": (
        ["cifar-cardinality", "OUTPUT_DIR", RECIPE],
        [f"{RECIPE}: is no folder", "OUTPUT_DIR"],
    ),
}


@pytest.mark.parametrize("args, words", REFUSALS.values(), ids=REFUSALS)
def test_refusal_is_one_line(reproduce, planned, capsys, args, words):
    with pytest.raises(SystemExit) as caught:
        reproduce(*args)
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1, message
    for word in words:
        assert word in message, message
    assert not planned


def test_an_unknown_study(reproduce, capsys):
    with pytest.raises(SystemExit) as caught:
        reproduce("everything")
    assert caught.value.code == 2
    assert "cifar-cardinality" in capsys.readouterr().err


def test_seeds_of_a_recipe(reproduce, planned, data, tmp_path, capsys):
    opts = ["DATA.ROOT", str(data), "MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path / "out")]
    reproduce("seeds", *opts[:2], "--config-file", RECIPE, "--seeds", "2", *opts[2:], "--jobs", "3")
    tool = ROOT / "tools" / "pretrain_imagenet.py"
    setting = studies.Setting("X29_8x64d_cifar10", RECIPE)
    assert planned == [(tool, [setting], 2, tmp_path / "out", opts, 3)]
    study = json.loads((tmp_path / "out" / "study.json").read_text())
    assert study == {
        "X29_8x64d_cifar10": {"top1_errors": [4.0, 5.0], "mean": 4.5, "standard_error": 0.5}
    }
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == (
        "X29_8x64d_cifar10: top-1 error 4.50 +- 0.50 % (mean and standard error of 2 runs)"
    )


def test_the_study_takes_three_seeds_and_a_core_a_run(reproduce, planned, data, monkeypatch):
    monkeypatch.setattr(studies, "cores", lambda: 5)
    reproduce("cifar-cardinality", "DATA.ROOT", data, "OUTPUT_DIR", "out")
    ((_, settings, seeds, output, opts, jobs),) = planned
    assert [setting.name for setting in settings] == ["1x64d", "2x40d", "4x24d", "32x4d"]
    assert {setting.config_file for setting in settings} == {STUDY}
    assert settings[3].overrides == (
        *("MODEL.RESNETS.NUM_GROUPS", "32"),
        *("MODEL.RESNETS.WIDTH_PER_GROUP", "4"),
    )
    assert (seeds, output, jobs) == (3, Path("out"), 5)
    assert opts == ["DATA.ROOT", str(data), "OUTPUT_DIR", "out"]


def test_the_study_of_another_recipe(reproduce, planned, data, tmp_path):
    """--config-file counts here too."""
    mine = tmp_path / "mine.yaml"
    mine.write_text(f'_BASE_: "{STUDY}"\nMODEL: {{RESNETS: {{DEPTH: 20}}}}\nOUTPUT_DIR: "mine"\n')
    reproduce("cifar-cardinality", "--config-file", mine, "DATA.ROOT", data)
    ((_, settings, _, output, _, _),) = planned
    assert {setting.config_file for setting in settings} == {mine} and output == Path("mine")


def test_a_study_whose_runs_are_finished(reproduce, data, tmp_path):
    """Nothing is trained: table and figure come from the results alone."""
    names = [f"{c}x{d}d" for c, d in cardinality.SETTINGS]
    for number, name in enumerate(names):
        folder = tmp_path / "out" / name / "seed0"
        folder.mkdir(parents=True)
        result = {"classification": {"top1_error": 30.0 - number}}
        (folder / "results.json").write_text(json.dumps(result))
    reproduce("cifar-cardinality", "--seeds", "1", "DATA.ROOT", data, "OUTPUT_DIR", "out")
    study = json.loads((tmp_path / "out" / "study.json").read_text())
    assert [study[name]["mean"] for name in names] == [30, 29, 28, 27]
    rows = (tmp_path / "out" / "table.md").read_text().splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == names
    assert [row.split("|")[4].strip() for row in rows] == ["30.00", "29.00", "28.00", "27.00"]
    assert (tmp_path / "out" / "figure.png").stat().st_size > 5000
