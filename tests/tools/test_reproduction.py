"""Guard docs/reproduction.md: it is current, and only runs of a row's own setting fill the row."""

import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from resnext_det import paper
from resnext_det.classification.trainer import with_epochs
from resnext_det.config import load_cfg
from resnext_det.errors import InputError
from resnext_det.reproduction import page, rows
from resnext_det.runs import read_records

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "reproduction.py"
IMAGENET, VAL = 1281167, 50000
R101 = "configs/imagenet/R101_1x64d.yaml"
CIFAR = "configs/cifar/X29_8x64d_cifar10.yaml"
COCO = "configs/faster_rcnn_X50_32x4d.yaml"


@pytest.fixture
def reproduction(monkeypatch, tmp_path):
    """Run the tool in a folder of its own; returns the page that it wrote."""
    monkeypatch.chdir(tmp_path)

    def run(*args):
        words = [*map(str, args), "--records", "records", "--output", "page.md"]
        (tmp_path / "records").mkdir(exist_ok=True)
        monkeypatch.setattr(sys, "argv", ["reproduction.py", *words])
        runpy.run_path(str(TOOL), run_name="__main__")
        return (tmp_path / "page.md").read_text()

    return run


def make_run(folder, config, *opts, images=(IMAGENET, VAL), classes=1000, results, words=()):
    """A finished run folder as the tools leave it."""
    folder.mkdir(parents=True)
    cfg = load_cfg(ROOT / config, ["OUTPUT_DIR", str(folder), *opts])
    train, val = images
    detection = bool(cfg.DATASETS.TRAIN)
    if detection:
        log = f"a INFO: coco_2017_train: {train} images, all entries checked\n"
        log += f"a INFO: coco_2017_val: {val} images, all entries checked\n"
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = classes
    else:
        cfg = with_epochs(cfg, train)
        log = f"a INFO: {train} images, 5 iterations an epoch: ..\n" * ("--eval-only" not in words)
        log += f"a INFO: top-1 error .. among {classes} classes; {val} images (crop 224)\n"
    (folder / "log.txt").write_text(log)
    (folder / "config.yaml").write_text(cfg.dump())
    name = "train_net" if detection else "pretrain_imagenet"
    command = [str(ROOT / "tools" / f"{name}.py"), "--config-file", str(ROOT / config), *words]
    record = {"command": command, "started": str(folder), "environment": {"gpu": "8 x X"}}
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def errors(top1, top5=5.25):
    return {"classification": {"top1_error": top1, "top5_error": top5}}


def section(page, title):
    return re.search(rf"\n## {re.escape(title)}\n(.*?)(?=\n## |\Z)", page, re.DOTALL)[1]


def line(page, title, *words):
    """The cells of the one line of a table that begins with these cells."""
    lines = [
        [cell.strip() for cell in text.split("|")[1:-1]]
        for text in section(page, title).splitlines()
        if text.startswith("|")
    ]
    (found,) = [cells for cells in lines if tuple(cells[: len(words)]) == words]
    return found


# ---- the page of the repository ----


def test_the_page_is_current():
    """After a change of records, configs or the tool: python tools/reproduction.py."""
    fresh = page.document(read_records(ROOT / "docs" / "records"))
    assert (ROOT / "docs" / "reproduction.md").read_text() == fresh


def test_every_row_has_a_config_and_a_command():
    for table in rows.tables():
        for row in table.rows:
            if row.network in paper.OTHERS:
                assert row.config is None
                continue
            words = shlex.split(page.planned_command(row, row.config))
            assert words[0] == "python" and (ROOT / words[1]).is_file()
            assert words[words.index("--config-file") + 1] == row.config


def test_links_of_the_page_lead_somewhere():
    page = ROOT / "docs" / "reproduction.md"
    links = re.findall(r"\]\(([^)]+)\)", page.read_text())
    assert len(links) > 30 and all((page.parent / link).is_file() for link in links)


def test_rows_of_cifar_are_told_apart():
    (table,) = [table for table in rows.tables() if table.title == "Table 7"]
    configs = {(row.network, row.part): row.config for row in table.rows}
    assert configs["X29_16x64d", "CIFAR-100"] == "configs/cifar/X29_16x64d_cifar100.yaml"
    assert configs["X29_16x64d", "CIFAR-10"] == "configs/cifar/X29_16x64d_cifar10.yaml"


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """The package where no configs/ stands beside it, as in a wheel."""
    monkeypatch.setattr(rows, "ROOT", tmp_path)
    rows.recipes.cache_clear()
    yield tmp_path
    rows.recipes.cache_clear()


def test_no_page_without_the_configs(installed):
    with pytest.raises(InputError) as caught:
        page.document([])
    words = "holds no config; run it from a checkout of the repository"
    assert str(caught.value) == f"{installed / 'configs'}: {words}"


# ---- runs that fill rows ----


def test_a_run_fills_all_its_rows(reproduction, tmp_path):
    run = make_run(tmp_path / "any_name", R101, results=errors(22.134, 6.05))
    page = reproduction(run)
    ours = {"Table 3": "22.13", "Table 4": "22.13 / 6.05"}
    for title, number in ours.items():
        name, _, found, command, config = line(page, title, "R101_1x64d")
        assert found == number
        assert command == f"`python tools/pretrain_imagenet.py --config-file {R101}`"
        assert config.startswith(f"[{R101}]")
    assert line(page, "Table 5", "R101_1x64d", "224")[3] == "22.13 / 6.05"
    assert "\n3 of 41 rows have a run." in page and "None is recorded" in page


OTHER = {
    "a slice": {"images": (100000, VAL)},
    "other test images": {"images": (IMAGENET, 10000)},
    "other classes": {"classes": 100},
    "a shorter schedule": {"opts": ["SOLVER.MAX_EPOCHS", "90.0"]},
    "another crop": {"opts": ["DATA.CROP_SIZE", "320"]},
    "other arithmetic": {"opts": ["MODEL.PRECISION", "bf16"]},
    "another network": {"opts": ["MODEL.RESNETS.WIDTH_MULTIPLIER", "0.5"]},
}


@pytest.mark.parametrize("change", OTHER.values(), ids=OTHER)
def test_other_runs_fill_none(reproduction, tmp_path, change):
    """Whatever the folder is called."""
    change = dict(change)
    opts = change.pop("opts", [])
    folder = tmp_path / "imagenet_R101_1x64d"
    page = reproduction(make_run(folder, R101, *opts, results=errors(22.1), **change))
    assert line(page, "Table 3", "R101_1x64d")[2] == "not run" and "\n0 of 41" in page
    others = section(page, "Other runs")
    assert "top1_error 22.10, top5_error 5.25" in others
    if opts:
        assert f"`{opts[0]} {opts[1]}`" in others.replace("'", "")
    else:
        assert "| nothing |" in others and f"{change.get('images', (IMAGENET, VAL))[0]:,}" in others


def test_a_run_whose_log_says_nothing(reproduction, tmp_path):
    run = make_run(tmp_path / "run", R101, results=errors(22.1))
    (run / "log.txt").unlink()
    page = reproduction(run)
    assert "\n0 of 41" in page and line(page, "Other runs", "imagenet")[1] == "? / ?"


def test_seeds_are_averaged(reproduction, tmp_path):
    """Table 7: means; the standard error of 3.5, 3.7, 3.9 is 0.2 / sqrt(3)."""
    given = {"images": (50000, 10000), "classes": 10}
    for seed, error in enumerate((3.5, 3.7, 3.9)):
        run = make_run(
            tmp_path / f"s{seed}", CIFAR, "SEED", str(seed), results=errors(error), **given
        )
        page = reproduction("--add", run)
    ours = line(page, "Table 7", "X29_8x64d", "CIFAR-10")[3]
    name = "X29_8x64d_cifar-10-batches-py_classification_seed"
    links = " ".join(f"[{k + 1}](records/{name}{k}.json)" for k in range(3))
    assert ours == f"3.70 ± 0.12 (3 runs: {links})"
    assert line(page, "Table 7", "X29_8x64d", "CIFAR-100")[3] == "not run"


def test_seeds_of_another_setting_are_averaged_too(reproduction, tmp_path):
    given = {"images": (10000, 2000), "classes": 10}
    runs = [
        make_run(tmp_path / f"s{seed}", CIFAR, "SEED", str(seed), results=errors(e), **given)
        for seed, e in enumerate((30.0, 32.0))
    ]
    runs.append(make_run(tmp_path / "x", CIFAR, "DATA.PAD", "2", results=errors(33.0), **given))
    others = section(reproduction(*runs), "Other runs")
    assert "top1_error 31.00 ± 1.00, top5_error 5.25 ± 0.00 (2 runs)" in others
    assert "top1_error 33.00, top5_error 5.25" in others and "`DATA.PAD 2`" in others


@pytest.mark.parametrize("ours", [True, False], ids=["of a row's run", "of unknown weights"])
def test_a_320_crop(reproduction, tmp_path, ours):
    """Table 5: another test of weights that the row's own training left."""
    config = "configs/imagenet/X101_64x4d.yaml"
    trained = make_run(tmp_path / "trained", config, results=errors(20.5, 5.4))
    weights = f"{trained if ours else tmp_path}/model_final.safetensors"
    opts = ["MODEL.WEIGHTS", weights, "DATA.RESIZE_SIZE", "320", "DATA.CROP_SIZE", "320"]
    words = ["--eval-only", *opts]
    tested = make_run(tmp_path / "320", config, *opts, results=errors(19.2, 4.5), words=words)
    page = reproduction(trained, tested)
    assert line(page, "Table 5", "X101_64x4d", "224")[3] == "20.50 / 5.40"
    assert line(page, "Table 4", "X101_64x4d")[2] == "20.50 / 5.40"
    assert line(page, "Table 5", "X101_64x4d", "320")[3] == ("19.20 / 4.50" if ours else "not run")
    assert ("evaluation only" in page) is not ours


TESTS = {
    "as the row": ({"protocol": "single", "crop": 224, "resize": 256}, True),
    "ten crops": ({"protocol": "ten_crop", "crop": 224, "resize": 256}, False),
    "a larger crop": ({"protocol": "single", "crop": 320, "resize": 320}, False),
    "another short side": ({"protocol": "single", "crop": 224, "resize": 224}, False),
    "dense": ({"protocol": "dense", "crop": 224, "scales": [224]}, False),
    "other images": ({"protocol": "single", "crop": 224, "resize": 256, "images": 9}, False),
}


@pytest.mark.parametrize("how, fills", TESTS.values(), ids=TESTS)
def test_the_test_that_the_results_name(reproduction, tmp_path, how, fills):
    """Whatever config.yaml and the log say."""
    entry = {"precision": "fp32", "images": VAL, "weights": "model_final.safetensors", **how}
    results = {**errors(22.1), "evaluation": entry}
    page = reproduction("--add", make_run(tmp_path / "run", R101, results=results))
    assert line(page, "Table 4", "R101_1x64d")[2].startswith("22.10 / 5.25" if fills else "not run")
    (record,) = read_records(tmp_path / "records")
    assert record.evaluation == entry


def test_imagenet5k(reproduction, tmp_path):
    config = "configs/imagenet5k/X50_32x4d.yaml"
    results = errors(42.5, 17.0)
    results["classification"] |= {"top1_error_1000way": 24.5, "top5_error_1000way": 6.7}
    page = reproduction(
        make_run(tmp_path / "run", config, images=(6790000, VAL), classes=5000, results=results)
    )
    assert line(page, "Table 6", "X50_32x4d", "5K-way")[3] == "42.50 / 17.00"
    assert line(page, "Table 6", "X50_32x4d", "1K-way")[3] == "24.50 / 6.70"
    assert line(page, "Table 3", "X50_32x4d")[2] == "not run"


BOXES = {"bbox": {"AP": 27.44, "AP50": 49.66, "APs": None}, "proposals": {"AR@100": 40.0}}


def test_detection(reproduction, tmp_path):
    given = {"images": (118287, 5000), "classes": 80, "results": BOXES}
    page = reproduction(make_run(tmp_path / "a", COCO, **given))
    assert line(page, "Table 8", "X50_32x4d")[1:3] == ["27.5 / 49.7", "27.4 / 49.7"]
    page = reproduction(make_run(tmp_path / "b", COCO, "MODEL.WEIGHTS", "x.pth", **given))
    assert line(page, "Table 8", "X50_32x4d")[2] == "not run"
    assert "AP 27.4, AP50 49.7" in page and "`MODEL.WEIGHTS 'x.pth'`" in page


# ---- records ----


def test_a_record_outlives_its_folder(reproduction, tmp_path):
    run = make_run(tmp_path / "run", CIFAR, images=(500, 100), classes=10, results=errors(30.0))
    kept = reproduction("--add", run, "--name", "mine", "--data-set", "a | slice")
    run.rename(tmp_path / "gone")
    assert reproduction() == kept
    assert "a \\| slice | 500 / 100 | X29_8x64d |" in kept and "[record](records/mine.json)" in kept
    record = json.loads((tmp_path / "records" / "mine.json").read_text())
    assert record["config_file"] == CIFAR and record["environment"] == {"gpu": "8 x X"}
    assert str(ROOT) not in json.dumps(record["command"])


def test_a_run_with_a_record_is_shown_once(reproduction, tmp_path):
    run = make_run(tmp_path / "run", R101, results=errors(22.1))
    kept = reproduction("--add", run)
    assert reproduction(run) == kept == reproduction("--add", run)


def test_a_config_outside_the_repository(reproduction, tmp_path):
    """The nearest one of the repository is named, with what differs from it."""
    run = make_run(tmp_path / "run", R101, "DATA.PAD", "4", results=errors(22.1))
    record = json.loads((run / "run.json").read_text())
    record["command"] = ["tools/pretrain_imagenet.py", "--config-file", "/home/me/mine.yaml"]
    (run / "run.json").write_text(json.dumps(record))
    found = line(reproduction(run), "Other runs", "imagenet")
    assert found[4] == "`DATA.PAD 4`" and found[6].startswith(f"[{R101}]")


def assert_refused(run, capsys, *words):
    with pytest.raises(SystemExit) as caught:
        run()
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1, message
    for word in words:
        assert word in message, message


def test_another_run_of_that_name(reproduction, tmp_path, capsys):
    first, second = (
        make_run(tmp_path / name, R101, results=errors(22.1)) for name in ("first", "second")
    )
    reproduction("--add", first)
    words = ["R101_1x64d_imagenet_classification_seed0.json", "another run", "--name"]
    assert_refused(lambda: reproduction("--add", second), capsys, *words)


def test_an_unfinished_run(reproduction, tmp_path, capsys):
    run = make_run(tmp_path / "run", R101, results=errors(22.1))
    (run / "results.json").unlink()
    assert_refused(lambda: reproduction("--add", run), capsys, "results.json: ", "does not exist")
    assert not list((tmp_path / "records").iterdir())


def test_a_record_that_is_no_json(reproduction, tmp_path, capsys):
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "a.json").write_text("{")
    assert_refused(reproduction, capsys, "records/a.json: is not JSON", "--add")


def test_a_network_that_is_none(reproduction, tmp_path, capsys):
    run = make_run(tmp_path / "run", R101, results=errors(22.1))
    text = (run / "config.yaml").read_text().replace("DEPTH: 101", "DEPTH: 102")
    (run / "config.yaml").write_text(text)
    assert_refused(lambda: reproduction(run), capsys, "run/config.yaml: DEPTH is 102")


REFUSALS = {
    "no run": (["there"], ["there: is no run folder"]),
    "a name for nothing": (["--name", "a"], ["--name is given for 0 records", "--add"]),
    "a name that is a path": (["--add", "x", "--name", "../a"], ["--name is '../a'"]),
    "no records": (["--records", "none"], ["none: is no folder"]),
    "a page that is a folder": (["--output", "records"], ["records: cannot be written"]),
}


@pytest.mark.parametrize("args, words", REFUSALS.values(), ids=REFUSALS)
def test_refusals(monkeypatch, tmp_path, capsys, args, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "records").mkdir()
    monkeypatch.setattr(sys, "argv", ["reproduction.py", *args])
    assert_refused(lambda: runpy.run_path(str(TOOL), run_name="__main__"), capsys, *words)
