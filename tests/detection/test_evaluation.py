"""Guard the printed figures: the truth scores 100, nothing scores 0, NaN is never written, and
what was counted, or why there is no figure, is said.

On the demo set and on real COCO images with crowds, gaps in the ids, and images without objects.
"""

import json
import logging
import tracemalloc

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation.coco_evaluation import _evaluate_box_proposals
from detectron2.structures import Boxes, BoxMode, Instances
from torch import nn

from resnext_det.config import get_cfg
from resnext_det.data.coco import register_coco
from resnext_det.detection import scorer_evaluator
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
    truth = run(BoxEvaluator(name, str(tmp_path), max_dets=100), name, perfect)["bbox"]
    assert list(results) == list(truth)
    for key, value in truth.items():  # 0 where there is an object to find
        assert np.isnan(results[key]) if np.isnan(value) else results[key] == 0, key
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


# ---- beside Detectron2's evaluator ----


def moved(record):
    """The objects moved a little, some under the next class, in 60 boxes with equal scores."""
    rng = np.random.default_rng(record["image_id"])
    boxes, classes = truth_of(record)
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2).numpy()
    boxes = boxes.numpy() + rng.normal(size=boxes.shape) * rng.choice([0, 0.04, 0.12]) * sides
    corners = rng.uniform(0, 200, (60 - len(boxes), 2))
    boxes = np.concatenate([boxes, np.concatenate([corners, corners + 20], 1)])
    classes = np.concatenate([classes.numpy(), rng.integers(0, 6, 60 - len(classes))])
    scores = np.round(rng.random(60), 2) + 0.7 * (np.arange(60) < len(sides))
    found = Instances(
        (record["height"], record["width"]),
        pred_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32)),
        scores=torch.tensor(scores / 2, dtype=torch.float32),
        pred_classes=torch.tensor(classes),
    )
    return {"instances": found}


@pytest.mark.parametrize("scorer", ["auto", "pycocotools"])
@pytest.mark.parametrize("cap", [100, 20])
def test_figures_are_detectron2s_to_the_bit(name, tmp_path, scorer, cap):
    """Keys, their order, and the values that results.json holds; and the results file."""
    ours = BoxEvaluator(name, str(tmp_path / "ours"), cap, scorer=scorer)
    results = run(ours, name, moved)
    theirs = COCOEvaluator(
        name,
        tasks=("bbox",),
        output_dir=str(tmp_path / "theirs"),
        max_dets_per_image=cap,
        use_fast_impl=False,
    )
    expected = run(theirs, name, moved)
    assert json.dumps(results) == json.dumps(expected)
    assert 10 < results["bbox"]["AP"] < 95
    written = [json.loads((tmp_path / who / RESULTS).read_text()) for who in ("ours", "theirs")]
    assert written[0] == written[1]


RESULTS = "coco_instances_results.json"


def with_masks(record):
    """Upper two thirds of every box as its mask."""
    output = moved(record)["instances"]
    masks = torch.zeros(len(output), *output.image_size, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, output.pred_boxes.tensor.round().int(), strict=True):
        mask[max(y0, 0) : max(y0 + 2 * (y1 - y0) // 3, 0), max(x0, 0) : max(x1, 0)] = True
    output.pred_masks = masks
    return {"instances": output}


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # Detectron2's own
def test_figures_of_masks_are_detectron2s(demo, tmp_path):
    ours = BoxEvaluator(demo, str(tmp_path / "ours"), 100, tasks=("bbox", "segm"))
    results = run(ours, demo, with_masks)
    theirs = COCOEvaluator(
        demo, tasks=("bbox", "segm"), output_dir=str(tmp_path / "theirs"), use_fast_impl=False
    )
    assert json.dumps(results) == json.dumps(dict(run(theirs, demo, with_masks)))
    assert 1 < results["segm"]["AP"] < results["bbox"]["AP"] < 95
    written = [json.loads((tmp_path / who / RESULTS).read_text()) for who in ("ours", "theirs")]
    assert written[0] == written[1]


# ---- cap, classes, scorer: TEST keys ----


def test_the_cap_is_followed_and_printed(demo, tmp_path, caplog):
    """One detection of an image and class counts."""
    cfg = make_cfg(tmp_path)
    cfg.TEST.DETECTIONS_PER_IMAGE = 1
    with caplog.at_level(logging.INFO, logger="resnext_det"):
        results = evaluate(cfg, Oracle(demo, perfect), demo)
    assert 0 < results["bbox"]["AP"] < 95
    assert "at most 1 detections of an image and class" in caplog.text
    assert "(1 detections an image at most)" in caplog.text


def test_a_choice_of_classes(demo, tmp_path, caplog):
    """Only one is right, and only it is scored; curves keep all classes, for the pictures."""
    names = MetadataCatalog.get(demo).thing_classes

    def one_class(record):
        output = perfect(record)
        output["instances"].pred_classes[output["instances"].pred_classes != 2] = 3
        return output

    cfg = make_cfg(tmp_path)
    cfg.TEST.CLASSES = (names[2],)
    with caplog.at_level(logging.INFO, logger="resnext_det"):
        results = evaluate(cfg, Oracle(demo, one_class), demo)
    assert [key for key in results["bbox"] if key.startswith("AP-")] == [f"AP-{names[2]}"]
    assert results["bbox"]["AP"] == results["bbox"][f"AP-{names[2]}"] == pytest.approx(100)
    curves = np.load(tmp_path / "inference" / demo / "precision.npy")
    assert set(np.flatnonzero(~np.isnan(curves[0, 0]))) == {2}
    assert f"of {names[2]} only" in caplog.text and "1 of 6 classes" in caplog.text
    cfg.TEST.CLASSES = ("zebra",)
    with pytest.raises(InputError, match=r"TEST.CLASSES: holds 'zebra', no class of .*val\.json"):
        evaluate(cfg, Oracle(demo, one_class), demo)


def test_an_unknown_scorer_is_refused_before_the_images(demo, tmp_path):
    cfg = make_cfg(tmp_path)
    cfg.TEST.SCORER = "faster"
    with pytest.raises(InputError, match='TEST.SCORER: is "faster"'):
        evaluate(cfg, None, demo)


# ---- why there is no figure ----


def test_sizes_without_objects_are_named(demo_set, tmp_path, caplog):
    content = json.loads((demo_set / "annotations" / "val.json").read_text())
    content["annotations"] = [e for e in content["annotations"] if e["area"] > 32**2]
    (tmp_path / "large.json").write_text(json.dumps(content))
    register_coco("evaluation_not_small", tmp_path / "large.json", demo_set / "val")
    DatasetCatalog.get("evaluation_not_small")
    evaluator = BoxEvaluator("evaluation_not_small", "", 100)
    with caplog.at_level(logging.INFO, logger="resnext_det"):
        results = run(evaluator, "evaluation_not_small", perfect)["bbox"]
    assert np.isnan(results["APs"]) and results["APm"] == pytest.approx(100)
    assert "| no objects |" in caplog.text and "nan" not in caplog.text


class Threshold(nn.Module):
    """A detector whose scores are all 0.02; it stands for Detectron2's box predictor too."""

    def __init__(self):
        super().__init__()
        self.test_score_thresh = 0.05

    def forward(self, batch):
        found = Instances(
            (100, 100),
            pred_boxes=Boxes(torch.tensor([[0.0, 0, 50, 50]] * 3)),
            scores=torch.tensor([0.02, 0.004, 0.0001]),
            pred_classes=torch.zeros(3, dtype=torch.int64),
        )
        return [{"instances": found[found.scores > self.test_score_thresh]} for _ in batch]


def test_the_best_score_is_told_where_none_passes(demo, tmp_path, caplog):
    cfg, model = make_cfg(tmp_path), Threshold()
    evaluate(cfg, model, demo)
    assert "SCORE_THRESH_TEST is 0.05; without it the first images have: best score 0.02; " in (
        caplog.text
    )
    assert "0 to 0.001: 6, 0.001 to 0.01: 6, 0.01 to 0.05: 6" in caplog.text
    assert model.test_score_thresh == 0.05  # as before


def test_an_ap_of_0_shows_the_scores(demo, caplog):
    def elsewhere(record):
        output = perfect(record)
        output["instances"].pred_boxes.tensor += 5000
        output["instances"].scores *= 0.3
        return output

    assert run(BoxEvaluator(demo, "", 100), demo, elsewhere)["bbox"]["AP"] == 0
    assert "AP is 0, though there are" in caplog.text
    assert "best score 0.3; 0.2 to 0.5: " in caplog.text


# ---- which images ----


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda id_: id_ + 10**6, "0 of 6 .*of type int, there .* of type int; give the results"),
        (str, ".* of type str, there .* of type int; give image ids as the whole numbers"),
        (
            torch.tensor,
            ".* of type Tensor, there .* of type int; give image ids as the whole numbers",
        ),
    ],
)
def test_images_of_another_set_are_refused(demo, change, message):
    evaluator = BoxEvaluator(demo, "", 100)
    for record in DatasetCatalog.get(demo):
        evaluator.process([{"image_id": change(record["image_id"])}], [perfect(record)])
    with pytest.raises(InputError, match=f"{demo}: does not match .*val.json: {message}"):
        evaluator.evaluate()


def test_an_image_that_comes_twice_is_refused(demo):
    evaluator = BoxEvaluator(demo, "", 100)
    records = DatasetCatalog.get(demo)
    for record in (*records, records[1]):
        evaluator.process([record], [perfect(record)])
    with pytest.raises(InputError, match=f"image {records[1]['image_id']} was evaluated 2 times"):
        evaluator.evaluate()


def test_images_that_were_left_out_are_told(demo, caplog):
    evaluator = BoxEvaluator(demo, "", 100)
    record = DatasetCatalog.get(demo)[0]
    evaluator.process([record], [perfect(record)])
    evaluator.evaluate()
    assert "5 images were not evaluated; their objects count as missed" in caplog.text


def test_shares_of_several_processes_are_one(demo, monkeypatch, caplog):
    """Three shares gathered: the figures of one process; totals and shares in the log."""
    records = DatasetCatalog.get(demo)
    alone = run(BoxEvaluator(demo, "", 100), demo, moved)
    shares = []
    for own in (records[:3], records[3:4], records[4:]):
        evaluator = BoxEvaluator(demo, "", 100)
        for record in own:
            evaluator.process([record], [moved(record)])
        with monkeypatch.context() as patch:
            patch.setattr(scorer_evaluator.comm, "gather", lambda own: shares.append(own) or [own])
            patch.setattr(scorer_evaluator.comm, "is_main_process", lambda: False)
            assert evaluator.evaluate() == {}
    monkeypatch.setattr(scorer_evaluator.comm, "gather", lambda _: shares)
    with caplog.at_level(logging.INFO, logger="resnext_det"):
        assert evaluator.evaluate() == alone
    assert (
        "6 of 6 images, 360 detections (process 0: 3 images, 180; process 1: 1 images, 60; "
        "process 2: 2 images, 120)" in caplog.text
    )


# ---- what a network gives ----


def test_a_class_beyond_the_data_sets_is_refused(demo):
    record = DatasetCatalog.get(demo)[0]
    output = perfect(record)
    output["instances"].pred_classes += 6
    with pytest.raises(InputError, match="hold class number .*has 6 classes, 0 to 5"):
        BoxEvaluator(demo, "", 100).process([record], [output])


def test_numbers_that_are_not_finite_are_refused(demo):
    record = DatasetCatalog.get(demo)[0]
    output = perfect(record)
    output["instances"].scores[0] = float("nan")
    with pytest.raises(InputError, match="not finite: score nan, box"):
        BoxEvaluator(demo, "", 100).process([record], [output])


def test_memory_of_many_detections(demo):
    """48 bytes a detection, and what 2,000 small arrays need; dicts take over 400."""
    record = DatasetCatalog.get(demo)[0]
    evaluator = BoxEvaluator(demo, "", 100)
    images, each = 2000, 100
    found = Instances(
        (100, 100),
        pred_boxes=Boxes(torch.rand(each, 4)),
        scores=torch.rand(each),
        pred_classes=torch.zeros(each, dtype=torch.int64),
    )
    tracemalloc.start()
    try:
        for _ in range(images):
            evaluator.process([record], [{"instances": found}])
        held = tracemalloc.get_traced_memory()[0]
        joined = scorer_evaluator.join(evaluator.parts)
    finally:
        tracemalloc.stop()
    assert len(joined) == images * each and joined.nbytes == 48 * images * each
    assert held < 72 * images * each
