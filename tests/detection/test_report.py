"""Guard the pictures at the end of a run: what they show is what their titles say."""

from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from torch import nn

from resnext_det.config import get_cfg
from resnext_det.data.coco import register_coco
from resnext_det.detection import report
from resnext_det.detection.evaluation import evaluate

NAME = "report_demo"
FAR = [0.0, 0.0, 3.0, 3.0]  # a box where no object is


class Nearly(nn.Module):
    """A detector that finds each image's first object, and one at a corner; scores as given."""

    def __init__(self, scores):
        super().__init__()
        self.records = {record["image_id"]: record for record in DatasetCatalog.get(NAME)}
        self.scores = scores

    def forward(self, batch):
        return [self.predict(self.records[x["image_id"]]) for x in batch]

    def predict(self, record):
        size = record["height"], record["width"]
        first = record["annotations"][0]
        box = BoxMode.convert(first["bbox"], first["bbox_mode"], BoxMode.XYXY_ABS)
        boxes = Boxes(torch.tensor([box, FAR]))
        found = Instances(
            size,
            pred_boxes=boxes,
            scores=torch.tensor(self.scores),
            pred_classes=torch.tensor([first["category_id"]] * 2),
        )
        best = Instances(size, proposal_boxes=boxes, objectness_logits=torch.ones(2))
        return {"instances": found, "proposals": best}


@pytest.fixture
def names(demo_set):
    if NAME not in DatasetCatalog:
        register_coco(NAME, demo_set / "annotations" / "val.json", demo_set / "val")
    DatasetCatalog.get(NAME)
    return MetadataCatalog.get(NAME).thing_classes


@pytest.fixture
def drawn(tmp_path, names, monkeypatch):
    """Draw a run's pictures; what their makers were given, by file name and by panel."""

    def draw(scores=(0.9, 0.8), classes=()):
        cfg = get_cfg()
        cfg.MODEL.DEVICE, cfg.OUTPUT_DIR = "cpu", str(tmp_path)
        cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 32, 48
        cfg.DATALOADER.NUM_WORKERS = 0
        cfg.DATASETS.TEST, cfg.TEST.CLASSES = (NAME,), classes
        model = Nearly(scores)
        results = {NAME: evaluate(cfg, model, NAME)}
        given = {"truth": [], "found": []}
        _spy(monkeypatch, "write_sheet", lambda args, others: given.update({args[1].name: others}))
        _spy(monkeypatch, "draw_matrix", lambda _, others: given.update(matrix=others))
        _spy(monkeypatch, "draw_truth", lambda args, _: given["truth"].append(args[1]))
        _spy(monkeypatch, "draw_detections", lambda args, _: given["found"].append(args[1]))
        whole = report.plots.precision_recall
        monkeypatch.setattr(
            report.plots,
            "precision_recall",
            lambda *args, **others: (given.update(curves=others), whole(*args, **others)),
        )
        report.draw(cfg, model, results)
        given["files"] = {path.name for path in Path(tmp_path, "pictures").glob("*.png")}
        return given

    return draw


def _spy(monkeypatch, name, note):
    whole = getattr(report, name)

    def called(*args, **others):
        note(args, others)
        return whole(*args, **others)

    monkeypatch.setattr(report, name, called)


def test_titles_say_what_is_drawn(drawn):
    given = drawn(scores=(0.5, 0.25))
    assert given["detections.png"]["titles"] == ["ground truth", "detections, score 0.5 or more"]
    assert [len(found) for found in given["found"]] == [1] * report.IMAGES_SHOWN  # 0.5 itself too
    assert given["matrix"]["title"] == f"{NAME}\nscore 0.5 or more, IoU 0.5 or more"
    assert given["curves"]["title"] == NAME
    assert "worst.png" in given["files"]


def test_worst_images_say_which_line_is_what(drawn):
    titles = drawn()["worst.png"]["titles"]
    assert all(title.endswith("\nground truth") for title in titles[::2])
    words = ("right (thin white)", "1 wrong (thick red)", "missed (dashed white)")
    assert all(word in title for title in titles[1::2] for word in words)


def test_a_choice_of_classes_is_named_and_alone_in_the_truth(drawn, names):
    chosen = (names[1], names[4])
    given = drawn(classes=chosen)
    said = f"{NAME} (classes: {names[1]}, {names[4]})"
    assert given["matrix"]["title"].startswith(said + "\n") and given["curves"]["title"] == said
    worst = given["truth"][report.IMAGES_SHOWN :]
    kinds = {a["category_id"] for record in worst for a in record["annotations"]}
    assert worst and kinds and kinds <= {1, 4}
    assert {name for name, _ in given["worst.png"]["legend"]} <= set(chosen)
    others = {
        a["category_id"] for record in DatasetCatalog.get(NAME) for a in record["annotations"]
    }
    assert not others <= {1, 4}  # the records themselves are whole


def test_many_classes_are_cut_in_a_title():
    title = report._named("set", [f"class {k}" for k in range(80)])
    assert title.startswith("set (classes: class 0, class 1,") and len(title) < 80
