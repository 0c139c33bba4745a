"""Guard that images resized by torchvision have Pillow's pixels, and draws stay Detectron2's."""

import numpy as np
import pytest
from detectron2.data import transforms as T
from PIL import Image

from resnext_det.data import resize
from resnext_det.data.resize import Resize, ResizeShortestEdge, with_fast_resize

RNG = np.random.default_rng(0)


def pixels(height, width, channels=3):
    return RNG.integers(0, 256, (height, width, channels), dtype=np.uint8)


SIZES = [
    ((480, 640), (600, 800)),
    ((640, 480), (427, 320)),
    ((333, 500), (600, 901)),
    ((17, 23), (5, 7)),
    ((5, 7), (61, 83)),
    ((900, 1200), (37, 49)),
    ((1, 9), (3, 27)),
    ((100, 100), (100, 50)),
    ((64, 64), (64, 64)),
]


@pytest.mark.parametrize(("before", "after"), SIZES, ids=str)
@pytest.mark.parametrize("kind", ["noise", "smooth", "edges", "reversed"])
def test_every_pixel_is_pillows(before, after, kind):
    image = pixels(*before)
    if kind == "smooth":
        ramp = np.linspace(0, 255, before[1]).astype(np.uint8)
        image = np.broadcast_to(ramp[None, :, None], image.shape)
    elif kind == "edges":
        image = np.where(image > 127, np.uint8(255), np.uint8(0))
    elif kind == "reversed":
        image = image[:, ::-1, ::-1]  # a view of negative strides
    ours = Resize(*before, *after).apply_image(image)
    expected = Image.fromarray(np.ascontiguousarray(image)).resize(after[::-1], Image.BILINEAR)
    np.testing.assert_array_equal(ours, np.asarray(expected))


def test_where_the_pixels_would_differ_pillow_resizes(monkeypatch):
    monkeypatch.setattr(resize, "_resized", lambda image, height, width: pixels(height, width))
    resize.is_pillows.cache_clear()
    image = pixels(20, 30)
    try:
        ours = Resize(20, 30, 33, 17).apply_image(image)
    finally:
        resize.is_pillows.cache_clear()
    np.testing.assert_array_equal(ours, T.ResizeTransform(20, 30, 33, 17).apply_image(image))


def test_any_size():
    for _ in range(150):
        before = RNG.integers(2, 300, 2)
        after = np.maximum(1, before * RNG.uniform(0.1, 3, 2)).astype(int)
        image = pixels(*before)
        theirs = T.ResizeTransform(*before, *after).apply_image(image)
        np.testing.assert_array_equal(Resize(*before, *after).apply_image(image), theirs)


@pytest.mark.parametrize(
    ("image", "interp"),
    [
        (pixels(20, 30), Image.NEAREST),
        (pixels(20, 30), Image.BICUBIC),
        (pixels(20, 30, 1), None),
        (pixels(20, 30)[:, :, 0], None),
        (pixels(20, 30).astype(np.float32), None),
    ],
)
def test_all_else_is_detectron2s(image, interp):
    ours = Resize(20, 30, 33, 17).apply_image(image, interp)
    np.testing.assert_array_equal(
        ours, T.ResizeTransform(20, 30, 33, 17).apply_image(image, interp)
    )


@pytest.mark.parametrize("style", ["choice", "range"])
def test_the_same_sizes_are_drawn(style):
    theirs = T.ResizeShortestEdge([40, 80], 100, style)
    own, other = with_fast_resize([theirs, T.RandomFlip()])
    assert type(own) is ResizeShortestEdge and type(other) is T.RandomFlip
    image = pixels(50, 70)
    for seed in range(5):
        found = []
        for augmentation in (own, theirs):
            np.random.seed(seed)
            found.append(augmentation.get_transform(image))
        assert type(found[0]) is Resize
        sizes = [(t.h, t.w, t.new_h, t.new_w, t.interp) for t in found]
        assert sizes[0] == sizes[1]
        np.testing.assert_array_equal(found[0].apply_image(image), found[1].apply_image(image))


def test_no_resizing():
    (own,) = with_fast_resize([T.ResizeShortestEdge([0], 100, "choice")])
    assert type(own.get_transform(pixels(5, 5))) is not Resize


def test_of_a_very_long_picture_a_pixel_is_left():
    (own,) = with_fast_resize([T.ResizeShortestEdge([96], 160, "choice")])
    for image in (pixels(3, 6000), pixels(6000, 3)):
        transform = own.get_transform(image)
        resized = transform.apply_image(image)
        assert sorted(resized.shape) == [1, 3, 160]
        assert np.isfinite(transform.apply_box(np.array([[0.0, 0, 3, 3]]))).all()
