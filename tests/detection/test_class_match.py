"""Guard that a detector and a data set speak of the same classes: by name, or not at all."""

import json

import pytest
import torch
from detectron2.structures import Instances
from test_pipeline import refusal
from tiny import make_cfg, write_start_weights

from resnext_det.detection import pipeline
from resnext_det.detection.class_match import Renumbered, match


@pytest.mark.parametrize(
    ("theirs", "ours", "expected"),
    [
        (["a", "b"], ["a", "b"], [0, 1]),
        (["a", "b"], ["b", "a"], [1, 0]),
        (["Traffic Light", "bus"], ["bus", "traffic_light"], [1, 0]),
        (["a", "b", "c"], ["b"], [-1, 0, -1]),
        (["cup", "Cup"], ["Cup", "cup"], [1, 0]),  # as they are first
        (["cup", "CUP"], ["Cup"], [-1, -1]),  # which of the two?
        ([], ["a"], []),
    ],
)
def test_match(theirs, ours, expected):
    assert match(theirs, ours) == expected


def test_renumbered():
    found = Instances((10, 10))
    found.pred_classes = torch.tensor([0, 2, 1, 2])
    found.scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    model = Renumbered(lambda inputs: [{"instances": found, "proposals": 3}], [1, -1, 0])
    (output,) = model([{}])
    assert output["instances"].pred_classes.tolist() == [1, 0, 0]
    assert output["instances"].scores.tolist() == pytest.approx([0.9, 0.8, 0.6])
    assert output["proposals"] == 3


# ---- a whole evaluation ----


@pytest.fixture(scope="module")
def run(demo_set, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    weights = write_start_weights(tmp_path_factory.mktemp("classification"))
    pipeline.run(make_cfg(demo_set, folder, weights), resume=False)
    return folder


def evaluated(run, demo_set, tmp_path, change, **others):
    """results.json on the validation set with another file of annotations."""
    content = json.loads((demo_set / "annotations" / "val.json").read_text())
    change(content)
    path = tmp_path / "other.json"
    path.write_text(json.dumps(content))
    cfg = pipeline.evaluation_cfg(None, str(run / "model_final.safetensors"))
    cfg.DATASETS.COCO_JSON = [["other_val", str(path), str(demo_set / "val")]]
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (), ("other_val",)
    cfg.OUTPUT_DIR = str(tmp_path)
    for key, value in others.items():
        cfg.TEST[key] = value
    pipeline.evaluate_only(cfg, str(run / "model_final.safetensors"))
    return json.loads((tmp_path / "results.json").read_text())


def other_ids_and_order(content):
    """Ids run the other way round, and names are written otherwise."""
    last = max(c["id"] for c in content["categories"]) + 7
    for entry in content["categories"]:
        entry["id"], entry["name"] = last - entry["id"], entry["name"].upper()
    for entry in content["annotations"]:
        entry["category_id"] = last - entry["category_id"]


def test_other_ids_give_the_same_figures(run, demo_set, tmp_path):
    before = json.loads((run / "results.json").read_text())
    after = evaluated(run, demo_set, tmp_path, other_ids_and_order)
    assert before["bbox"]["AP50"] > 0
    for name, value in before["bbox"].items():
        named = f"AP-{name[3:].upper()}" if name.startswith("AP-") else name
        assert after["bbox"][named] == pytest.approx(value), name
    assert (tmp_path / "pictures" / "detections.png").exists()


def without(content, name):
    gone = next(c["id"] for c in content["categories"] if c["name"] == name)
    content["categories"] = [c for c in content["categories"] if c["id"] != gone]
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] != gone]


def test_classes_that_the_data_set_lacks_are_left_out(run, demo_set, tmp_path):
    before = json.loads((run / "results.json").read_text())["bbox"]
    after = evaluated(run, demo_set, tmp_path, lambda c: without(c, "mug"))["bbox"]
    assert "AP-mug" not in after
    for name in ("leaf", "star", "ring", "cube", "cross"):
        assert after[f"AP-{name}"] == pytest.approx(before[f"AP-{name}"], abs=1.0)


def rename(content, name, new):
    for entry in content["categories"]:
        if entry["name"] == name:
            entry["name"] = new


def test_classes_that_the_detector_lacks(run, demo_set, tmp_path):
    """Refused, for its AP would be 0 for no fault of the detector's; unless the user leaves it."""
    refusal(
        lambda: evaluated(run, demo_set, tmp_path, lambda c: rename(c, "mug", "horse")),
        "it does not know horse",
        "other.json",
        "TEST.CLASSES",
    )
    known = ("leaf", "star", "ring", "cube", "cross")
    results = evaluated(run, demo_set, tmp_path, lambda c: rename(c, "mug", "horse"), CLASSES=known)
    assert "AP-leaf" in results["bbox"]


def test_nothing_in_common(run, demo_set, tmp_path):
    def change(content):
        for entry in content["categories"]:
            entry["name"] = f"other {entry['id']}"

    refusal(lambda: evaluated(run, demo_set, tmp_path, change), "other 1", "mug")
