"""Guard the close-ups of a data set's sheet: the object is marked, and its neighbours are not."""

import numpy as np
import pytest
from detectron2.structures import BoxMode
from PIL import Image

from resnext_det.detection.data_pictures import HEIGHT, WIDTH, _draw, _View
from resnext_det.detection.drawing import class_color

NAMES = ["cup", "pan", "a very long class name, longer than any field of the sheet is wide"]


def entry(kind, box, crowd=0):
    own = {"bbox": list(box), "bbox_mode": BoxMode.XYWH_ABS}
    return {**own, "category_id": kind, "iscrowd": crowd}


@pytest.fixture
def view(tmp_path):
    """A picture with a small pan beside a cup, and a view of it."""
    path = tmp_path / "a.png"
    Image.fromarray(np.full((100, 200, 3), 127, np.uint8)).save(path)
    entries = [entry(1, (60, 40, 12, 9)), entry(0, (80, 30, 60, 50)), entry(2, (0, 0, 9, 9))]

    def make(number=None, crop=None):
        own = None if number is None else entries[number]
        return _View({"file_name": str(path), "annotations": entries}, "a", crop, own)

    return make


def pixels_of(picture, kind):
    return int((np.abs(picture / 255 - np.array(class_color(kind))).max(axis=2) < 0.015).sum())


def test_a_close_up_marks_its_object(view):
    picture = _draw(view(0, (40, 20, 100, 70)), NAMES)
    assert picture.shape == (HEIGHT, WIDTH, 3)
    assert pixels_of(picture, 1) > 300
    assert pixels_of(picture, 0) == 0 and (picture > 190).all(axis=2).sum() > 100


def test_where_the_mark_is(view):
    """Eight times as large: 60 - 40 becomes 160."""
    picture = _draw(view(0, (40, 20, 100, 70)), NAMES)
    own = np.abs(picture / 255 - np.array(class_color(1))).max(axis=2) < 0.015
    rows, columns = np.nonzero(own)
    assert (columns.min(), columns.max()) == pytest.approx((160, 256), abs=4)
    assert rows.max() == pytest.approx(232, abs=4)


def test_a_whole_picture_has_all_colours(view):
    picture = _draw(view(), NAMES)
    assert picture.shape == (240, WIDTH, 3)
    assert all(pixels_of(picture, kind) > 20 for kind in range(3))


def test_what_lies_outside_is_left_out(view):
    picture = _draw(view(1, (75, 20, 160, 90)), NAMES)
    assert pixels_of(picture, 0) > 300 and pixels_of(picture, 1) == 0
