"""Guard tools/check_data.py: one command, all faults, exit status, JSON; training says the same."""

import copy
import json
import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

from resnext_det.config import load_cfg
from resnext_det.detection import pipeline
from resnext_det.errors import InputError

ROOT = Path(__file__).parents[2]
GOOD = {
    "images": [{"id": n, "file_name": f"{n}.jpg", "width": 60, "height": 40} for n in range(1, 5)],
    "annotations": [
        {"id": n, "image_id": n, "category_id": 1, "bbox": [5, 5, 10 + n, 20]} for n in range(1, 5)
    ],
    "categories": [{"id": 1, "name": "cup"}],
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    for image in GOOD["images"]:
        Image.new("RGB", (60, 40), "green").save(tmp_path / "images" / image["file_name"])
    return tmp_path


@pytest.fixture
def run(monkeypatch, capsys):
    """The tool in this process: (status, output, errors)."""

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["check_data.py", *map(str, args)])
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(str(ROOT / "tools" / "check_data.py"), run_name="__main__")
        said = capsys.readouterr()
        return caught.value.code, said.out, said.err

    return run


def write(folder, content, name="a.json"):
    (folder / name).write_text(json.dumps(content))
    return name


def faulty():
    """Several kinds of faults in one file and its pictures."""
    content = copy.deepcopy(GOOD)
    content["annotations"] += [
        {"id": 5, "image_id": 1, "category_id": 1, "bbox": [1, 1, 0, 5]},
        {"id": 6, "image_id": 1, "category_id": 9, "bbox": [1, 1, 5, 5]},
        {"id": 7, "image_id": 1, "category_id": 1, "bbox": [99, 1, 5, 5]},
    ]
    content["images"][3]["width"] = 80
    return content


def test_a_good_set(folder, run):
    status, out, _ = run(write(folder, GOOD), "images", "--json", "report.json")
    assert status == 0
    assert "4 images (0 without objects), 4 annotations" in out
    assert "4 x missing iscrowd" in out and "mended by itself" in out
    assert "stops" not in out
    (report,) = json.loads((folder / "report.json").read_text())
    assert report["counts"]["images"] == 4
    sheet = Path(report["sheet"]["path"])
    assert sheet == Path("output/check_data/a.png") and sheet.is_file()


def test_everything_wrong_is_listed_at_once(folder, run):
    (folder / "images" / "2.jpg").write_bytes(b"")
    (folder / "images" / "3.jpg").unlink()
    args = [write(folder, faulty()), "images", "--json", "report.json", "--pictures", ""]
    status, out, _ = run(*args)
    assert status == 2
    (report,) = json.loads((folder / "report.json").read_text())
    assert {f["kind"] for f in report["findings"] if f["severity"] == "stops"} == {
        "box without area",
        "box wholly outside its image",
        "undeclared category",
        "missing image",
        "unreadable picture",
        "picture of another size than its entry",
    }
    for words in ("annotation 5 (image 1)", "annotation 6 (image 1)", "images/2.jpg", "(60, 40)"):
        assert words in out
    assert "sheet" not in report and not (folder / "output").exists()


def test_choices_are_config_keys(folder, run):
    content = faulty()
    del content["annotations"][5], content["images"][3]["width"]
    (folder / "images" / "2.jpg").write_bytes(b"")
    keys = ["DATASETS.DROP_EMPTY_BOXES", "True", "DATASETS.DROP_BAD_IMAGES", "True"]
    status, out, _ = run(write(folder, content), "images", *keys)
    assert status == 0, out
    assert "left out, as the config says" in out and "1 x box without area" in out
    assert "3 images (0 without objects)" in out


def test_two_sets(folder, run):
    other = copy.deepcopy(GOOD)
    other["categories"][0]["name"] = "mug"
    write(folder, other, "b.json")
    status, out, _ = run(
        write(folder, GOOD), "images", "--val-json", "b.json", "--val-images", "images"
    )
    assert status == 2
    assert "categories differ from those of a.json" in out and "4 x picture in two sets" in out
    assert out.count("anchors that would serve better") == 1  # not by the validation set
    names = {path.name for path in (folder / "output" / "check_data").iterdir()}
    assert names == {"a.png", "b.png"}


def test_two_files_of_one_name_have_two_sheets(folder, run):
    (folder / "other").mkdir()
    write(folder / "other", GOOD)
    second = ["--val-json", "other/a.json", "--val-images", "images"]
    run(write(folder, GOOD), "images", *second, "--pictures", "sheets")
    assert {path.name for path in (folder / "sheets").iterdir()} == {"a.png", "a_2.png"}


def test_another_config(folder, run):
    config = ROOT / "configs" / "faster_rcnn_X50_32x4d.yaml"
    args = [write(folder, GOOD), "images", "--pictures", "", "--config-file", config]
    status, out, _ = run(*args, "MODEL.ANCHOR_GENERATOR.SIZES", "[[7, 9]]")
    assert status == 0
    assert "short side 600, long side at most 1000" in out and "sizes [[7.0, 9.0]]" in out


@pytest.mark.parametrize(
    "args, words",
    [
        (["none.json", "images"], "none.json: the annotation file does not exist"),
        (["a.json", "images", "--val-json", "b.json"], "--val-json is given alone"),
        (["a.json", "images", "DATASETS.DROP_EMPTY", "1"], "DATASETS.DROP_EMPTY_BOXES"),
    ],
)
def test_refusals_are_one_line(folder, run, args, words):
    write(folder, GOOD)
    status, _, err = run(*args)
    assert status == 2 and err.startswith("error: ") and err.count("\n") == 1 and words in err


def test_decoding_is_a_choice(folder, run):
    whole = Image.effect_noise((60, 40), 90).convert("RGB")
    whole.save(folder / "images" / "1.bmp")
    path = folder / "images" / "1.bmp"
    path.write_bytes(path.read_bytes()[:-900])
    content = copy.deepcopy(GOOD)
    content["images"][0]["file_name"] = "1.bmp"
    args = [write(folder, content), "images", "--pictures", ""]
    assert run(*args)[0] == 0
    status, out, _ = run(*args, "--decode", "--workers", 2)
    assert status == 2 and "images/1.bmp" in out


def test_training_stops_at_the_first_and_names_the_tool(folder):
    write(folder, faulty())
    write(folder, GOOD, "val.json")
    sets = '[["mine", "a.json", "images"], ["val", "val.json", "images"]]'
    opts = ["DATASETS.COCO_JSON", sets, "DATASETS.TRAIN", "mine", "DATASETS.TEST", "val"]
    cfg = load_cfg(ROOT / "configs" / "custom" / "small.yaml", [*opts, "MODEL.WEIGHTS", ""])
    with pytest.raises(InputError) as caught:
        pipeline.prepare(cfg)
    message = str(caught.value)
    assert message.startswith("a.json: annotation 6 (image 1) has the undeclared category 9")
    assert "3 of other kinds: `python tools/check_data.py a.json images` lists all" in message


@pytest.mark.parametrize(
    "json_file, images, count",
    [
        ("bccd/annotations/instances_train.json", "bccd/images", "2,805 annotations"),
        ("coco/annotations/instances_train2017.json", "coco/train2017", "935 annotations"),
    ],
)
def test_real_sets(shared_data, run, tmp_path, json_file, images, count):
    args = [shared_data / json_file, shared_data / images, "--pictures", tmp_path]
    status, out, _ = run(*args)
    assert status == 0 and count in out and "stops" not in out
    assert (tmp_path / f"{Path(json_file).stem}.png").is_file()
