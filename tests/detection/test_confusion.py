"""Guard which detection belongs to which object, and what is counted of it."""

import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from kept import kept

from resnext_det.detection import confusion
from resnext_det.detection.confusion import (
    ConfusionEvaluator,
    _most_confused,
    count,
    draw_matrix,
    marks_of,
    match,
)

A, B, C = [0.0, 0, 10, 10], [20.0, 0, 30, 10], [50.0, 50, 60, 60]


def found(*items):
    """(box, class, score) triples as a detector's output."""
    instances = Instances((100, 100))
    boxes, classes, scores = zip(*items, strict=True) if items else ([], [], [])
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.pred_classes = torch.tensor(classes, dtype=torch.int64)
    instances.scores = torch.tensor(scores, dtype=torch.float32)
    return instances


def record(*items, image_id=1, crowds=()):
    entries = [(box, kind, 0) for box, kind in items] + [(box, kind, 1) for box, kind in crowds]
    return {
        "image_id": image_id,
        "annotations": [
            {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": kind, "iscrowd": crowd}
            for box, kind, crowd in entries
        ],
    }


def counts_of(detections, truth, classes=2):
    counts = np.zeros((classes + 1,) * 2, dtype=np.int64)
    count(counts, match(found(*detections), truth))
    return counts.tolist()


CASES = {
    "right": ([(A, 0, 0.9)], record((A, 0)), [[1, 0, 0], [0, 0, 0], [0, 0, 0]]),
    "another class": ([(A, 1, 0.9)], record((A, 0)), [[0, 1, 0], [0, 0, 0], [0, 0, 0]]),
    "missed": ([], record((A, 0), (B, 1)), [[0, 0, 1], [0, 0, 1], [0, 0, 0]]),
    "no object": ([(C, 1, 0.9)], record((A, 0)), [[0, 0, 1], [0, 0, 0], [0, 1, 0]]),
    "found twice": ([(A, 0, 0.9), (A, 0, 0.8)], record((A, 0)), [[1, 0, 0], [0, 0, 0], [1, 0, 0]]),
    "below the score": ([(A, 0, 0.49)], record((A, 0)), [[0, 0, 1], [0, 0, 0], [0, 0, 0]]),
    "best score first": (
        [(A, 1, 0.6), (A, 0, 0.9)],
        record((A, 0)),
        [[1, 0, 0], [0, 0, 0], [0, 1, 0]],
    ),
    "crowds do not count": ([], record(crowds=[(A, 0)]), [[0] * 3] * 3),
    "nor does what lies in them": (
        [([2.0, 2, 6, 6], 1, 0.9), (C, 0, 0.9)],
        record(crowds=[(A, 0)]),
        [[0, 0, 0], [0, 0, 0], [1, 0, 0]],
    ),
    "an object in a crowd": (
        [(A, 0, 0.9)],
        record((A, 0), crowds=[([0.0, 0, 50, 50], 0)]),
        [[1, 0, 0], [0, 0, 0], [0, 0, 0]],
    ),
    "nothing at all": ([], record(), [[0] * 3] * 3),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_counted(case):
    detections, truth, expected = CASES[case]
    assert counts_of(detections, truth) == expected


def test_every_detection_and_object_is_counted_once():
    random = np.random.default_rng(0)

    def boxes(n):
        corner = random.uniform(0, 60, (n, 2))
        return np.concatenate([corner, corner + random.uniform(5, 40, (n, 2))], 1).tolist()

    items = [(box, int(random.integers(3)), 0.9) for box in boxes(40)]
    truth = record(*[(box, int(random.integers(3))) for box in boxes(25)])
    counts = np.array(counts_of(items, truth, classes=3))
    assert counts[:, :3].sum() == 40 and counts[:3].sum() == 25
    assert counts[:3, :3].sum() > 0


def test_mistakes_and_marks():
    matched = match(
        found((A, 0, 0.9), (B, 0, 0.8), (C, 1, 0.7)), record((A, 0), (B, 1), ([80, 80, 99, 99], 0))
    )
    assert matched.mistakes == 3  # another class, no object, missed
    marks = marks_of(matched, ["cup", "leaf"])
    assert [mark.text for mark in marks] == ["cup? 80%", "leaf? 70%", "missed cup", ""]
    assert [mark.color for mark in marks] == ["red", "red", "white", "white"]
    assert [mark.line for mark in marks] == ["-", "-", "--", "-"]
    wrong, _, missed, right = (mark.width for mark in marks)
    assert wrong > missed > right
    assert [list(mark.box) for mark in marks] == [B, C, [80, 80, 99, 99], A]


def test_of_missed_objects_one_a_class_is_named():
    """Thirty times the same words would cover the picture."""
    cells = [([10.0 * k, 0, 10 * k + 9, 9], 0) for k in range(30)]
    marks = marks_of(match(found(), record(*cells, ([0, 50, 9, 59], 1))), ["cell", "leaf"])
    assert len(marks) == 31 and {mark.line for mark in marks} == {"--"}
    assert [mark.text for mark in marks if mark.text] == ["missed cell x 30", "missed leaf"]


def test_the_evaluator(tmp_path):
    records = [record((A, 0), image_id=i) for i in range(1, 9)]
    name = "confusion_test"
    if name not in DatasetCatalog:
        DatasetCatalog.register(name, lambda: records)
        MetadataCatalog.get(name).thing_classes = ["cup", "leaf"]
    evaluator = ConfusionEvaluator(name, tmp_path, worst=2)
    evaluator.reset()
    for i in range(1, 9):
        wrong = [(C, 1, 0.9)] * (i % 4)
        output = {"instances": found((A, 0, 0.9), *wrong)}
        evaluator.process([{"image_id": i}], [output])
    assert evaluator.evaluate() is None
    kept = json.loads((tmp_path / "confusion.json").read_text())
    assert kept["counts"] == [[8, 0, 0], [0, 0, 0], [0, 12, 0]]
    assert kept["classes"] == ["cup", "leaf", "background"]
    assert kept["worst"] == [{"image_id": 3, "mistakes": 3}, {"image_id": 7, "mistakes": 3}]
    lines = (tmp_path / "confusion.csv").read_text().splitlines()
    assert lines == ["object,cup,leaf,missed", "cup,8,0,0", "leaf,0,0,0", "no object,0,12,0"]


def test_only_some_classes(tmp_path):
    """The others are neither missed nor wrong (TEST.CLASSES)."""
    truth = record((A, 0), (B, 1), (C, 2))
    matched = match(found((A, 0, 0.9), (A, 2, 0.8), (B, 2, 0.7)), truth, only=[0, 1])
    assert matched.classes.tolist() == [0] and matched.missed.tolist() == [False, True]
    name = "confusion_some"
    if name not in DatasetCatalog:
        DatasetCatalog.register(name, lambda: [truth])
        MetadataCatalog.get(name).thing_classes = ["cup", "leaf", "star"]
    evaluator = ConfusionEvaluator(name, tmp_path, classes=("leaf", "star"))
    evaluator.reset()
    evaluator.process([{"image_id": 1}], [{"instances": found((A, 0, 0.9), (B, 2, 0.7))}])
    evaluator.evaluate()
    kept = json.loads((tmp_path / "confusion.json").read_text())
    assert kept["classes"] == ["leaf", "star", "background"]
    assert kept["counts"] == [[0, 1, 0], [0, 0, 1], [0, 0, 0]]


def test_of_many_classes_the_worst_are_drawn():
    counts = np.diag([5] * 30 + [0])
    counts[3, 17], counts[30, 8] = 9, 4
    assert _most_confused(counts, most=3) == [3, 8, 17, 30]


@pytest.fixture
def figures(monkeypatch):
    """Every figure that is drawn, to look at its axes."""
    return kept(monkeypatch, confusion, "Figure")


def test_the_picture(tmp_path, figures):
    counts = np.array([[3, 1, 0], [0, 2, 2], [1, 0, 0]])
    draw_matrix(counts, ["a", "b", "x"], tmp_path / "c.png", title="score 0.5")
    assert (tmp_path / "c.png").stat().st_size > 5000
    axis = figures[0].axes[0]
    cells = {text.get_position(): text.get_text() for text in axis.texts}  # (column, row)
    assert cells == {(0, 0): "3", (1, 0): "1", (1, 1): "2", (2, 1): "2", (0, 2): "1"}
    assert [text.get_text() for text in axis.get_yticklabels()] == ["a", "b", "no object"]
    assert [text.get_text() for text in axis.get_xticklabels()] == ["a", "b", "missed"]


def test_what_has_no_object_has_no_colour(tmp_path, figures):
    """Its row would be shares of detections, the others are shares of objects."""
    counts = np.array([[3, 1, 0], [0, 2, 2], [1, 7, 0]])
    draw_matrix(counts, ["a", "b", "x"], tmp_path / "c.png", title="set\nscore 0.5")
    axis = figures[0].axes[0]
    (picture,) = axis.images
    shares = picture.get_array()
    assert shares.mask.tolist() == [[False] * 3, [False] * 3, [True] * 3]
    assert shares[:2].tolist() == [[0.75, 0.25, 0], [0, 0.5, 0.5]]
    (red, green, blue), dark = picture.get_cmap().get_bad()[:3], picture.get_cmap()(0.9)[0]
    assert red == green == blue > 0.9 > dark
    told = {text.get_position(): (text.get_text(), text.get_color()) for text in axis.texts}
    assert told[1, 2] == ("7", "black") and told[0, 0] == ("3", "white")
    assert figures[0].get_suptitle() == "set\nscore 0.5"


ODD = ["a" * 200, "$\\frac$", "_hidden", "杯子", "two\nlines", ""]


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize(
    "names, shown", [(["mug"], 1), ([f"long class name {k}" for k in range(80)], 20), (ODD, 6)]
)
def test_the_picture_of_any_classes(tmp_path, figures, names, shown):
    """Every word is on the page, and the axis keeps its place beside long names."""
    counts = np.full((len(names) + 1,) * 2, 12345)
    title = f"{'data_set_' * 5} (classes: {'mug, leaf, ' * 4})\nscore 0.5 or more, IoU 0.5 or more"
    draw_matrix(counts, [*names, "background"], tmp_path / "c.png", title=title)
    (figure,), page = figures, figures[0].bbox
    axis = figure.axes[0]
    assert len(axis.get_yticklabels()) == shown + 1
    assert ("20 of 80 classes" in figure.get_suptitle()) is (len(names) == 80)
    for text in (*axis.get_xticklabels(), *axis.get_yticklabels(), figure._suptitle):
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= page.x1 and box.y0 >= 0 and box.y1 <= page.y1
    cell = axis.get_window_extent().width / (shown + 1)
    assert max(text.get_window_extent().width for text in axis.texts) < cell
