"""Guard the printed figures: the truth scores 100, nothing scores 0, NaN is never written.

On the demo set and on real COCO images with crowds, gaps in the ids, and images without objects.
"""

import json
import logging

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation.coco_evaluation import _evaluate_box_proposals
from detectron2.structures import Boxes, BoxMode, Instances
from torch import nn

from resnext_det.config import get_cfg
from resnext_det.data.coco import register_coco
from resnext_det.detection.evaluation import (
    RECALLS,
    BoxEvaluator,
    RecallEvaluator,
    evaluate,
    recall_lines,
)
from resnext_det.engine.run import write_json
from resnext_det.errors import InputError

KINDS = ("demo", "coco_val", "coco_train")


@pytest.fixture(params=KINDS)
def name(request):
    """A registered data set; COCO's train images hold two without any object."""
    if request.param == "demo":
        root = request.getfixturevalue("demo_set")
        files = root / "annotations" / "val.json", root / "val"
    else:
        root = request.getfixturevalue("shared_data") / "coco"
        split = request.param.removeprefix("coco_") + "2017"
        files = root / "annotations" / f"instances_{split}.json", root / split
    name = f"evaluation_{request.param}"
    register_coco(name, *files)
    DatasetCatalog.get(name)
    return name


@pytest.fixture
def demo(demo_set):
    register_coco("evaluation_demo", demo_set / "annotations" / "val.json", demo_set / "val")
    DatasetCatalog.get("evaluation_demo")
    return "evaluation_demo"


def truth_of(record):
    """Boxes (N, 4) XYXY and classes (N,) of an image's objects, crowds left out."""
    objects = [entry for entry in record["annotations"] if not entry["iscrowd"]]
    boxes = [BoxMode.convert(e["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS) for e in objects]
    classes = torch.tensor([entry["category_id"] for entry in objects], dtype=torch.int64)
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), classes


def perfect(record):
    boxes, classes = truth_of(record)
    size = record["height"], record["width"]
    found = Instances(
        size, pred_boxes=Boxes(boxes), scores=torch.ones(len(boxes)), pred_classes=classes
    )
    best = Instances(size, proposal_boxes=Boxes(boxes), objectness_logits=torch.ones(len(boxes)))
    return {"instances": found, "proposals": best}


def nothing(record):
    empty = perfect({**record, "annotations": []})
    return {"instances": empty["instances"]}


def run(evaluator, name, predict):
    evaluator.reset()
    for record in DatasetCatalog.get(name):
        evaluator.process([record], [predict(record)])
    return evaluator.evaluate()


def test_the_truth_scores_100(name, tmp_path):
    evaluator = BoxEvaluator(name, str(tmp_path), max_dets=100)
    results = run(evaluator, name, perfect)["bbox"]
    occurring = {
        entry["category_id"]
        for record in DatasetCatalog.get(name)
        for entry in record["annotations"]
        if not entry["iscrowd"]
    }
    for index, class_name in enumerate(MetadataCatalog.get(name).thing_classes):
        found = results[f"AP-{class_name}"]
        assert found == pytest.approx(100) if index in occurring else np.isnan(found)
    assert [results[key] for key in ("AP", "AP50", "AP75")] == pytest.approx([100] * 3)
    classes = len(MetadataCatalog.get(name).thing_classes)
    assert evaluator.precision.shape == (10, 101, classes)
    assert np.nanmin(evaluator.precision) == pytest.approx(1)
    assert set(np.flatnonzero(~np.isnan(evaluator.precision[0, 0]))) == occurring


def test_wrong_classes_score_0(demo, tmp_path):
    """Right boxes under the next class's name: the map from ids to 0..K-1 is seen to matter."""

    def shifted(record):
        output = perfect(record)
        output["instances"].pred_classes = (output["instances"].pred_classes + 1) % 6
        return output

    results = run(BoxEvaluator(demo, str(tmp_path), 100), demo, shifted)["bbox"]
    assert results["AP50"] < 30


def test_a_worse_box_scores_less(demo, tmp_path):
    """IoU 0.64 (0.8 of each side): right at 0.5 to 0.6, wrong from 0.65 on: AP 30."""

    def smaller(record):
        output = perfect(record)
        boxes = output["instances"].pred_boxes.tensor
        boxes[:, 2:] -= 0.2 * (boxes[:, 2:] - boxes[:, :2])
        return output

    results = run(BoxEvaluator(demo, str(tmp_path), 100), demo, smaller)["bbox"]
    assert results["AP50"] == pytest.approx(100) and results["AP75"] == 0
    assert results["AP"] == pytest.approx(30)


def test_nothing_found_scores_0(name, tmp_path, caplog):
    evaluator = BoxEvaluator(name, str(tmp_path), max_dets=100)
    with caplog.at_level(logging.WARNING, logger="resnext_det"):
        results = run(evaluator, name, nothing)["bbox"]
    assert {key: results[key] for key in ("AP", "AP50", "AP75", "APs", "APm", "APl")} == (
        dict.fromkeys(("AP", "AP50", "AP75", "APs", "APm", "APl"), 0.0)
    )
    assert evaluator.precision is None
    assert "every AP is 0" in caplog.text


def test_perfect_proposals_have_recall_100(name):
    results = run(RecallEvaluator(name), name, perfect)["proposals"]
    limits = (100, 300, 1000)
    assert list(results) == [
        f"AR{size}@{limit}" for size in ("", "s", "m", "l") for limit in limits
    ]
    assert list(results.values()) == pytest.approx([100] * 12, abs=1e-3)


def test_recall_counts_the_first_by_score(demo):
    """Behind 150 boxes of higher score the truth counts at 300, but not at 100."""

    def late(record):
        best = perfect(record)["proposals"]
        junk = torch.tensor([[0.0, 0, 1, 1]]).repeat(150, 1)
        boxes = torch.cat([best.proposal_boxes.tensor, junk])
        logits = torch.cat([torch.zeros(len(best)), torch.ones(150)])
        both = Instances(best.image_size, proposal_boxes=Boxes(boxes), objectness_logits=logits)
        return {"proposals": both}

    results = run(RecallEvaluator(demo), demo, late)["proposals"]
    assert list(results.values()) == pytest.approx([0, 100, 100] * 4, abs=1e-3)


def noisy(record):
    """Every object moved and stretched a little, with junk; 200 boxes, unsorted."""
    rng = np.random.default_rng(record["image_id"])
    truth = truth_of(record)[0].numpy()
    side = np.linalg.norm(truth[:, 2:] - truth[:, :2], axis=1, keepdims=True)
    moved = truth + rng.normal(size=truth.shape) * 0.08 * side
    corners = rng.uniform(0, 200, (200 - len(moved), 2))
    boxes = np.concatenate([moved, np.concatenate([corners, corners + 30], 1)])
    boxes = torch.tensor(boxes, dtype=torch.float32)
    logits = torch.tensor(rng.normal(size=200), dtype=torch.float32)
    size = record["height"], record["width"]
    return {"proposals": Instances(size, proposal_boxes=Boxes(boxes), objectness_logits=logits)}


def test_every_figure_is_detectron2s(name):
    """Which takes all images at once; here they are taken one by one."""
    evaluator = RecallEvaluator(name)
    found = run(evaluator, name, noisy)["proposals"]
    predictions = [
        {"image_id": record["image_id"], **noisy(record)} for record in DatasetCatalog.get(name)
    ]
    for key, (area, limit) in RECALLS.items():
        theirs = _evaluate_box_proposals(predictions, evaluator.coco, area=area, limit=limit)
        assert found[key] == pytest.approx(100 * float(theirs["ar"]), abs=1e-4), key
        assert 5 < found[key] < 95 or "s@" in key
    assert found["AR@100"] < found["AR@300"] == found["AR@1000"]


def test_no_object_of_a_size(demo_set, tmp_path):
    """Said in words, and null in results.json, never 0."""
    content = json.loads((demo_set / "annotations" / "val.json").read_text())
    content["annotations"] = [e for e in content["annotations"] if e["area"] > 96**2][:3]
    (tmp_path / "large.json").write_text(json.dumps(content))
    register_coco("evaluation_large", tmp_path / "large.json", demo_set / "val")
    DatasetCatalog.get("evaluation_large")
    found = run(RecallEvaluator("evaluation_large"), "evaluation_large", perfect)["proposals"]
    assert np.isnan(found["ARs@100"]) and found["ARl@100"] == pytest.approx(100, abs=1e-3)
    everything, small, *_ = recall_lines(found)
    assert everything == "AR@100 100.0, AR@300 100.0, AR@1000 100.0"
    assert small == "small objects: ARs@100 no objects, ARs@300 no objects, ARs@1000 no objects"


def test_no_proposals_have_recall_0(demo):
    assert set(run(RecallEvaluator(demo), demo, nothing)["proposals"].values()) == {0.0}


def test_an_image_without_proposals_counts_as_missed(demo):
    records = DatasetCatalog.get(demo)
    missed = records[0]["image_id"]
    objects = {record["image_id"]: len(truth_of(record)[0]) for record in records}
    expected = 100 * (1 - objects[missed] / sum(objects.values()))
    assert expected < 95

    def all_but_one(record):
        return nothing(record) if record["image_id"] == missed else perfect(record)

    results = run(RecallEvaluator(demo), demo, all_but_one)["proposals"]
    assert results["AR@1000"] == pytest.approx(expected, abs=1e-3)


class Oracle(nn.Module):
    """A detector that has read the annotations."""

    def __init__(self, name, predict):
        super().__init__()
        self.records = {record["image_id"]: record for record in DatasetCatalog.get(name)}
        self.predict = predict

    def forward(self, batch):
        return [self.predict(self.records[x["image_id"]]) for x in batch]


def make_cfg(folder) -> CfgNode:
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.OUTPUT_DIR = str(folder)
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 32, 48
    cfg.DATALOADER.NUM_WORKERS = 0
    return cfg


def test_whole_evaluation_on_resized_images(name, tmp_path):
    """Through the loader: whatever size an image is shown in, scores are in its own pixels."""
    results = evaluate(make_cfg(tmp_path), Oracle(name, perfect), name)
    assert results["bbox"]["AP"] == pytest.approx(100)
    assert results["proposals"]["AR@100"] == pytest.approx(100, abs=1e-3)
    assert (tmp_path / "inference" / name / "precision.npy").exists()


@pytest.mark.parametrize("predict", [perfect, nothing])
def test_results_are_json_without_nan(name, tmp_path, predict):
    """Classes that do not occur have no AP; ``NaN`` is not JSON, and jq or a browser refuse it."""
    results = evaluate(make_cfg(tmp_path), Oracle(name, predict), name)
    write_json(tmp_path / "results.json", results)
    text = (tmp_path / "results.json").read_text()
    found = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert found["bbox"]["AP"] == pytest.approx(100 if predict is perfect else 0)
    values = [v for group in found.values() for v in group.values()]
    assert all(v is None or 0 <= v <= 100.001 for v in values)


def test_curves_of_an_earlier_evaluation_are_not_kept(demo, tmp_path):
    """The pictures are drawn from this file: an old one would show another detector's curves."""
    for predict in (perfect, nothing):
        evaluate(make_cfg(tmp_path), Oracle(demo, predict), demo)
    assert not (tmp_path / "inference" / demo / "precision.npy").exists()


def test_a_set_of_crowds_only_is_refused(demo_set, tmp_path):
    content = json.loads((demo_set / "annotations" / "val.json").read_text())
    for entry in content["annotations"]:
        entry["iscrowd"] = 1
    path = tmp_path / "crowds.json"
    path.write_text(json.dumps(content))
    register_coco("evaluation_crowds", path, demo_set / "val")
    DatasetCatalog.get("evaluation_crowds")
    with pytest.raises(InputError, match=f"{path}: .*no object"):
        evaluate(make_cfg(tmp_path), Oracle("evaluation_crowds", nothing), "evaluation_crowds")


@pytest.mark.parametrize("field", ["iscrowd", "area"])
def test_files_without_crowd_or_area_are_scored(demo_set, tmp_path, field):
    content = json.loads((demo_set / "annotations" / "val.json").read_text())
    content["annotations"] = [entry for entry in content["annotations"] if not entry["iscrowd"]]
    for entry in content["annotations"]:
        del entry[field], entry["segmentation"]
    (tmp_path / "val.json").write_text(json.dumps(content))
    name = f"evaluation_without_{field}"
    register_coco(name, tmp_path / "val.json", demo_set / "val")
    DatasetCatalog.get(name)
    results = run(BoxEvaluator(name, str(tmp_path), 100), name, perfect)["bbox"]
    assert results["AP"] == pytest.approx(100)
