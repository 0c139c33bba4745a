"""Guard the pictures of boxes: a class has one colour everywhere, and names stay readable."""

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, BoxMode, Instances
from kept import kept
from matplotlib.colors import to_hex

from resnext_det.detection import drawing
from resnext_det.detection.drawing import (
    COLORS,
    FIRST,
    Mark,
    class_color,
    draw_detections,
    draw_marks,
    draw_proposals,
    draw_truth,
)

GREY = np.full((240, 320, 3), 127, np.uint8)
NAMES = ["mug", "leaf", "star"]
ODD = ["a" * 200, "$\\frac$", "_hidden", "两 杯子", "two\nlines", "\ud800", "", "naïve ☂"]


def found(*items, masks=None):
    """(box, class, score) triples as a detector's output."""
    instances = Instances(GREY.shape[:2])
    boxes, classes, scores = zip(*items, strict=True) if items else ([], [], [])
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.pred_classes = torch.tensor(classes, dtype=torch.int64)
    instances.scores = torch.tensor(scores, dtype=torch.float32)
    if masks is not None:
        instances.pred_masks = torch.as_tensor(masks)
    return instances


def record(*items, **fields):
    """(box, class) pairs as Detectron2's dict of an image."""
    entries = [
        {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": kind, **fields}
        for box, kind in items
    ]
    return {"annotations": entries}


def pixels_of(picture, color):
    """How many pixels have a colour (RGB, 0..1), but for rounding."""
    return int((np.abs(picture / 255 - np.array(color)).max(axis=2) < 0.015).sum())


def lab_of(colors):
    return cv2.cvtColor(np.array([colors], np.float32), cv2.COLOR_RGB2LAB)[0]


@pytest.fixture
def texts(monkeypatch):
    """What is written, without what was taken out again: matplotlib's texts by picture."""
    drawings = kept(monkeypatch, drawing, "Visualizer")
    return lambda: [list(one.output.ax.texts) for one in drawings]


def words(texts):
    return [text.get_text() for text in texts]


# ---- colours ----


def test_colours_of_classes_are_told_apart():
    colors = lab_of([class_color(k) for k in range(80)])
    apart = np.linalg.norm(colors[:, None] - colors[None], axis=2) + 1e3 * np.eye(80)
    assert apart.min() > 10  # CIELAB: about 2 is the least difference that is seen
    assert apart[: len(FIRST), : len(FIRST)].min() > 30
    assert colors[:, 0].min() > 40 and np.hypot(colors[:, 1], colors[:, 2]).min() > 25


def test_colours_are_those_of_any_process():
    """Pictures of today and of another day."""
    colors = [to_hex(class_color(k)) for k in (0, 1, 8, 9, 40, 79, 127)]
    assert colors == "#ff8c1a #2f8fff #ffb9e8 #74742e #7474b9 #74e8a2 #e85d74".split()


def test_more_classes_than_colours():
    assert class_color(COLORS) == class_color(0) and len({*map(class_color, range(COLORS))}) == 128


@pytest.mark.parametrize("kind", [0, 2, 79])
def test_a_class_has_one_colour_in_all_pictures(kind):
    """Truth and detections, alone or with others, at any scale."""
    names = [f"class {k}" for k in range(80)]
    box, other = [40.0, 60, 160, 200], [200.0, 60, 280, 180]
    pictures = [
        draw_truth(GREY, record((box, kind)), names),
        draw_truth(GREY, record((other, 5), (box, kind)), names, side=480),
        draw_detections(GREY, found((box, kind, 0.9)), names),
        draw_detections(GREY, found((other, 5, 0.9), (box, kind, 0.6)), names, side=300),
    ]
    for picture in pictures:
        assert pixels_of(picture, class_color(kind)) > 200
        assert pixels_of(picture, class_color(7)) == 0


def test_one_class_and_eighty(texts):
    draw_detections(GREY, found(([40.0, 60, 160, 200], 0, 0.912)), ["mug"])
    corners = [(32.0 * (k % 10), 30.0 * (k // 10)) for k in range(80)]
    many = [([x + 2, y + 2, x + 28, y + 27], k, 0.9) for k, (x, y) in enumerate(corners)]
    picture = draw_detections(GREY, found(*many), [f"class {k}" for k in range(80)])
    assert all(pixels_of(picture, class_color(k)) > 5 for k in range(80))
    assert words(texts()[0]) == ["mug 91%"] and 10 < len(texts()[1]) < 80


# ---- what is drawn ----


def test_size():
    """Small images are enlarged for the names, large ones keep their size; or as is asked."""
    assert draw_marks(GREY, []).shape == (360, 480, 3)
    assert draw_marks(np.zeros((500, 600, 3), np.uint8), []).shape == (500, 600, 3)
    assert draw_marks(GREY.transpose(1, 0, 2), [], side=480).shape == (480, 360, 3)
    assert draw_marks(np.zeros((2, 2000, 3), np.uint8), [], side=480).shape == (1, 1000, 3)


def test_nothing_is_drawn_of_nothing():
    large = np.random.default_rng(0).integers(0, 256, (500, 600, 3), dtype=np.uint8)
    assert np.array_equal(draw_marks(large, []), large)
    assert np.array_equal(draw_detections(large, found(), NAMES), large)
    assert np.array_equal(draw_truth(large, {}, NAMES), large)
    assert np.array_equal(draw_proposals(large, None, 5), large)


def test_box_is_where_it_belongs():
    picture = draw_marks(GREY, [Mark([40, 60, 160, 200], "red")], side=320)
    rows, columns = np.nonzero(np.abs(picture.astype(int) - 127).max(axis=2) > 60)
    assert (columns.min(), rows.min()) == pytest.approx((40, 60), abs=3)
    assert (columns.max(), rows.max()) == pytest.approx((160, 200), abs=3)
    assert np.array_equal(picture[70:190, 50:150], GREY[70:190, 50:150])  # nothing inside


def test_crowds_are_dashed_and_named(texts):
    """A dashed line has less of its colour than a whole one."""
    box = ([40.0, 60, 160, 200], 1)
    crowd = draw_truth(GREY, record(box, iscrowd=1), NAMES)
    whole = draw_truth(GREY, record(box, iscrowd=0), NAMES)
    assert 0 < pixels_of(crowd, class_color(1)) < 0.8 * pixels_of(whole, class_color(1))
    assert list(map(words, texts())) == [["leaf (crowd)"], ["leaf"]]


def test_masks_are_of_the_class_colour():
    box, masks = [40.0, 60, 160, 200], np.zeros((1, 240, 320), bool)
    masks[0, 80:180, 60:140] = True
    polygon = [[60, 80, 140, 80, 140, 180, 60, 180]]
    expected = 0.65 * 127 / 255 + 0.35 * np.array(class_color(2))
    for picture in (
        draw_detections(GREY, found((box, 2, 0.9), masks=masks), NAMES, side=320),
        draw_truth(GREY, record((box, 2), segmentation=polygon), NAMES, side=320),
    ):
        assert picture[130, 100] / 255 == pytest.approx(expected, abs=0.01)
        assert picture[130, 150].tolist() == [127] * 3


def test_proposals_are_one_ramp(texts):
    """The best one yellow, three with their scores, and no more than are asked for."""
    instances = Instances(GREY.shape[:2])
    corners = torch.arange(20.0)[:, None] * 8 + torch.tensor([0.0, 5, 60, 70])
    instances.proposal_boxes = Boxes(corners)
    instances.objectness_logits = torch.arange(20, 0, -1) / 5.0
    picture = draw_proposals(GREY, instances, 10)
    assert words(texts()[0]) == ["98%", "98%", "97%"]
    red, green, blue = picture.transpose(2, 0, 1)
    assert ((red > 230) & (green > 200) & (blue < 80)).sum() > 200  # yellow
    assert ((red > 80) & (red < 140) & (green < 20) & (blue > 140)).sum() > 50  # violet
    fewer = draw_proposals(GREY, instances[:3], 10)
    assert fewer.shape == picture.shape and (fewer != picture).any()


# ---- names ----


def boxes_of(texts):
    """Pixel boxes of texts with their dark grounds."""
    return [text.get_bbox_patch().get_window_extent() for text in texts]


def test_names_neither_cover_each_other_nor_are_cut(texts):
    """Objects at the borders, on each other and under each other."""
    random = np.random.default_rng(1)
    corners = random.uniform(0, (300, 220), (30, 2))
    boxes = np.concatenate([corners, corners + random.uniform(5, 90, (30, 2))], axis=1)
    boxes[:4] = [[0, 0, 320, 240], [250, 0, 320, 20], [300, 230, 320, 240], [0, 200, 9, 240]]
    draw_marks(GREY, [Mark(box, "red", f"some name {n}") for n, box in enumerate(boxes)])
    (written,) = texts()
    assert 8 < len(written) < 30
    assert words(written)[:2] == ["some name 0", "some name 1"]  # the first ones come first
    placed = boxes_of(written)
    for number, box in enumerate(placed):
        assert box.x0 >= 0 and box.x1 <= 480 and box.y0 >= 0 and box.y1 <= 360
        for other in placed[:number]:
            assert not box.overlaps(other)


def test_names_are_light_on_dark(texts):
    draw_marks(GREY, [Mark([40, 60, 160, 200], (0.1, 0.1, 0.5), "mug")])
    ((text,),) = texts()
    assert min(text.get_color()) >= 0.5 and text.get_fontsize() >= 9
    assert text.get_bbox_patch().get_facecolor()[:3] == (0, 0, 0)


@pytest.mark.parametrize("shape", [(240, 320), (1500, 2000), (1000, 200)])
def test_names_have_one_size_and_grow_with_the_picture(texts, shape):
    boxes = [[0, 0, shape[1], shape[0]], [shape[1] / 2, shape[0] / 2, shape[1] / 2 + 9, shape[0]]]
    picture = draw_marks(np.zeros((*shape, 3), np.uint8), [Mark(b, "red", "mug") for b in boxes])
    sizes = {text.get_fontsize() for text in texts()[0]}
    side = np.sqrt(picture.shape[0] * picture.shape[1])
    assert len(sizes) == 1 and sizes.pop() == pytest.approx(9 * max(1, side / 480), rel=0.01)


@pytest.mark.filterwarnings("ignore:Glyph")
def test_names_of_any_kind(texts):
    """A formula's sign, an underscore, other alphabets and line ends are drawn as they stand."""
    items = [([0.0, 28 * k, 30, 28 * k + 25], k, 0.5) for k in range(len(ODD))]
    picture = draw_detections(GREY, found(*items), ODD)
    assert picture.shape == (360, 480, 3)
    written = words(texts()[0])
    assert len(written[0]) == 28 and written[0].endswith("a 50%")  # its score is kept
    assert "\\$\\frac\\$ 50%" in written and "two?lines 50%" in written
