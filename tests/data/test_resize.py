"""Guard that resizing is Detectron2's, and that something is left of a very long picture."""

import numpy as np
import pytest
from detectron2.data import transforms as T

from resnext_det.data.resize import ResizeShortestEdge, leaving_a_pixel


def pixels(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("style", ["choice", "range"])
def test_the_same_sizes_and_pixels(style):
    theirs = T.ResizeShortestEdge([40, 80], 100, style)
    own, other = leaving_a_pixel([theirs, T.RandomFlip()])
    assert type(own) is ResizeShortestEdge and type(other) is T.RandomFlip
    image = pixels(50, 70)
    for seed in range(5):
        found = []
        for augmentation in (own, theirs):
            np.random.seed(seed)
            found.append(augmentation.get_transform(image))
        sizes = [(t.h, t.w, t.new_h, t.new_w, t.interp) for t in found]
        assert sizes[0] == sizes[1]
        np.testing.assert_array_equal(found[0].apply_image(image), found[1].apply_image(image))


def test_no_resizing():
    (own,) = leaving_a_pixel([T.ResizeShortestEdge([0], 100, "choice")])
    assert not isinstance(own.get_transform(pixels(5, 5)), T.ResizeTransform)


def test_of_a_very_long_picture_a_pixel_is_left():
    (own,) = leaving_a_pixel([T.ResizeShortestEdge([96], 160, "choice")])
    for image in (pixels(3, 6000), pixels(6000, 3)):
        transform = own.get_transform(image)
        resized = transform.apply_image(image)
        assert sorted(resized.shape) == [1, 3, 160]
        assert np.isfinite(transform.apply_box(np.array([[0.0, 0, 3, 3]]))).all()
