"""Guard the command that looks for objects: what it leaves, what it prints, what it refuses."""

import json
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image
from pycocotools.coco import COCO
from test_tools import run_here

from resnext_det.config import load_cfg
from resnext_det.data import coco
from resnext_det.detection.detector import record_of
from resnext_det.weights import save_weights

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "demo" / "detection.yaml"
TINY = {
    "MODEL.DEVICE": "cpu",
    "MODEL.PRECISION": "fp32",
    "MODEL.RESNETS.NUM_GROUPS": 4,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.RESNETS.WIDTH_MULTIPLIER": 0.125,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.01,
    "MODEL.ROI_HEADS.NUM_CLASSES": 6,
    "INPUT.MIN_SIZE_TEST": 96,
    "DATALOADER.NUM_WORKERS": 0,
}


@pytest.fixture(scope="module")
def weights(demo_set, tmp_path_factory):
    """A detector that has learnt nothing, of a run on the demo set."""
    path = tmp_path_factory.mktemp("joined") / "model_final.safetensors"
    train = ["predicted_train", f"{demo_set}/annotations/train.json", f"{demo_set}/train"]
    values = {**TINY, "DATASETS.COCO_JSON": [train], "DATASETS.TRAIN": "('predicted_train',)"}
    cfg = load_cfg(CONFIG, [str(word) for pair in values.items() for word in pair])
    cfg.DATASETS.TEST = ()
    coco.register_from_config(cfg)
    coco.load("predicted_train")
    torch.manual_seed(0)
    record = record_of(cfg, "detector", "predicted_train")
    save_weights(path, build_model(cfg).state_dict(), record)
    return path


def run(monkeypatch, *args):
    run_here(monkeypatch, "predict.py", *map(str, args))


def refused(monkeypatch, capsys, *args):
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, *args)
    assert caught.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: "), error
    return error


def test_a_folder(weights, demo_set, tmp_path, monkeypatch, capsys):
    made = tmp_path / "found"
    run(monkeypatch, "MODEL.WEIGHTS", weights, "--input", demo_set / "val", "--output", made)
    results = json.loads((made / "predictions.json").read_text())
    assert f"wrote: {made} (6 images, {len(results)} detections)" in capsys.readouterr().out
    listed = json.loads((made / "images.json").read_text())
    assert len(list((made / "pictures").iterdir())) == len(listed["images"]) == 6
    assert results and {r["image_id"] for r in results} <= set(range(1, 7))
    assert {r["category_id"] for r in results} <= {c["id"] for c in listed["categories"]}


def test_a_json_with_overrides_after_the_flags(weights, demo_set, tmp_path, monkeypatch, capsys):
    """Its own image ids, no pictures, and a key of the stored config changed."""
    json_file, made = demo_set / "annotations" / "val.json", tmp_path / "found"
    given = ["--json", json_file, "--images", demo_set / "val", "--output", made, "--json-only"]
    run(monkeypatch, *given, "MODEL.WEIGHTS", weights, "TEST.DETECTIONS_PER_IMAGE", 3)
    assert sorted(path.name for path in made.iterdir()) == ["images.json", "predictions.json"]
    loaded = COCO(json_file).loadRes(str(made / "predictions.json"))
    assert 6 < len(loaded.anns) <= 18


def test_images_that_cannot_be_read(weights, tmp_path, monkeypatch, capsys):
    inputs = tmp_path / "in"
    inputs.mkdir()
    (inputs / "1.png").write_bytes(b"no image")
    Image.new("L", (40, 30)).save(inputs / "2.png")
    given = ["MODEL.WEIGHTS", weights, "--input", inputs]
    assert "1.png" in refused(monkeypatch, capsys, *given, "--output", tmp_path / "a")
    run(monkeypatch, *given, "--output", tmp_path / "b", "--skip-unreadable")
    out = capsys.readouterr().out
    assert f"left out: {inputs / '1.png'}: is of no image format" in out and "(1 images" in out
    assert "left out: 1 images" in out
    (inputs / "2.png").unlink()
    nothing = [*given, "--output", tmp_path / "c", "--skip-unreadable"]
    assert "nor any other of the 1 images" in refused(monkeypatch, capsys, *nothing)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "in"]


def test_a_missing_image_of_a_json(weights, demo_set, tmp_path, monkeypatch, capsys):
    content = json.loads((demo_set / "annotations" / "val.json").read_text())
    content["images"][0]["file_name"] = "none.png"
    (tmp_path / "val.json").write_text(json.dumps(content))
    given = ["MODEL.WEIGHTS", weights, "--json", tmp_path / "val.json", "--images"]
    given += [demo_set / "val", "--output", tmp_path / "found", "--json-only"]
    assert "none.png" in refused(monkeypatch, capsys, *given)
    run(monkeypatch, *given, "--skip-unreadable")
    out = capsys.readouterr().out
    assert "none.png: cannot be opened (No such file" in out and "(5 images" in out


def test_a_bad_end_leaves_nothing(weights, tmp_path, monkeypatch, capsys):
    """A film that is none, and an image that only decoding finds damaged."""
    (tmp_path / "in").mkdir()
    film, good, bad = (
        tmp_path / "in" / "f.mp4",
        tmp_path / "in" / "1.png",
        tmp_path / "in" / "2.png",
    )
    film.write_bytes(b"no film")
    Image.new("L", (40, 30)).save(good)
    Image.effect_noise((80, 60), 99).save(bad)
    content = bytearray(bad.read_bytes())
    content[200:400] = bytes(200)
    bad.write_bytes(content)
    for given, word in (([film], "no frame"), ([good, bad], "2.png: cannot be read")):
        words = ["--input", *given, "--output", tmp_path / "a" / "b", "--batch-size", 1]
        assert word in refused(monkeypatch, capsys, "MODEL.WEIGHTS", weights, *words)
        assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_the_output_is_looked_at_first(demo_set, tmp_path, monkeypatch, capsys):
    """Before the weights, which are not there."""
    (tmp_path / "old").write_text("")
    given = ["MODEL.WEIGHTS", tmp_path / "none.safetensors", "--input", demo_set / "val"]
    error = refused(monkeypatch, capsys, *given, "--output", tmp_path)
    assert error.startswith(f"error: {tmp_path}: is there already")


def test_chosen_classes(weights, demo_set, tmp_path, monkeypatch, capsys):
    made = tmp_path / "found"
    given = ["MODEL.WEIGHTS", weights, "--input", demo_set / "val", "--output", made]
    assert "choose from mug" in refused(monkeypatch, capsys, *given, "TEST.CLASSES", "zebra")
    run(monkeypatch, *given, "--json-only", "TEST.CLASSES", "mug")
    ids = {c["name"]: c["id"] for c in json.loads((made / "images.json").read_text())["categories"]}
    results = json.loads((made / "predictions.json").read_text())
    assert results and {r["category_id"] for r in results} == {ids["mug"]}


def test_refusals(weights, demo_set, tmp_path, monkeypatch, capsys):
    made, images = ["--output", tmp_path / "found"], ["--input", demo_set / "val"]
    given = ["MODEL.WEIGHTS", weights, *made]
    assert "MODEL.WEIGHTS: is empty" in refused(monkeypatch, capsys, *made, *images)
    assert "no images are named" in refused(monkeypatch, capsys, *given)
    assert "no images are named" in refused(monkeypatch, capsys, *given, "--json", "a.json")
    both = ["--json", "a.json", "--images", demo_set / "val", *images]
    assert "or two kinds" in refused(monkeypatch, capsys, *given, *both)
    assert "--score is 50" in refused(monkeypatch, capsys, *given, *images, "--score", 50)
    assert "none.mp4" in refused(monkeypatch, capsys, *given, "--input", tmp_path / "none.mp4")
    assert not list(tmp_path.iterdir())
    (tmp_path / "old").write_text("")
    here = ["MODEL.WEIGHTS", weights, *images, "--output", tmp_path]
    assert f"{tmp_path}: is there already" in refused(monkeypatch, capsys, *here)
