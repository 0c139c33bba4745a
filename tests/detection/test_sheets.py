"""Guard the sheets of pictures: every pixel is kept, and no text covers or is cut off."""

import numpy as np
import pytest
from kept import kept
from PIL import Image

from resnext_det.detection import sheets
from resnext_det.detection.drawing import class_color
from resnext_det.detection.sheets import write_sheet


def noise(*shape):
    return np.random.default_rng(len(shape)).integers(0, 256, (*shape, 3), dtype=np.uint8)


def read(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def places_of(page, image):
    """Upper left corners (x, y) at which the page holds the image, pixel for pixel."""
    height, width = image.shape[:2]
    rows, columns = np.nonzero((page == image[0, 0]).all(axis=2))
    return [
        (int(x), int(y))
        for y, x in zip(rows, columns, strict=True)
        if np.array_equal(page[y : y + height, x : x + width], image)
    ]


@pytest.fixture
def figures(monkeypatch):
    """Every figure that is drawn."""
    return kept(monkeypatch, sheets, "Figure")


@pytest.mark.parametrize("count, columns", [(4, 2), (3, 2), (1, 1), (5, 2), (2, 4), (6, 4)])
def test_images_are_kept_pixel_for_pixel(tmp_path, count, columns):
    """Of different shapes; row by row."""
    images = [noise(150 - 9 * k, 160 + 7 * k) for k in range(count)]
    write_sheet(images, tmp_path / "sheet.png", columns=columns, titles=["truth", "found"])
    page = read(tmp_path / "sheet.png")
    found = [places_of(page, image) for image in images]
    assert [len(places) for places in found] == [1] * count
    corners = np.array([places[0] for places in found])
    rows, column = np.divmod(np.arange(count), columns)
    for one in range(count):
        for other in range(count):
            if rows[one] < rows[other]:
                assert corners[one][1] + len(images[one]) <= corners[other][1]
            elif rows[one] == rows[other] and column[one] < column[other]:
                assert corners[one][0] + images[one].shape[1] <= corners[other][0]


@pytest.mark.parametrize("titles", [["truth", "found"], [f"picture {k}" for k in range(6)]])
def test_titles(tmp_path, figures, titles):
    """One an image, or the top row's again and again."""
    images = [noise(100, 200)] * 6
    write_sheet(images, tmp_path / "sheet.png", columns=4, titles=titles)
    said = [text.get_text() for text in figures[0].texts]
    assert said == (["truth", "found"] * 2 if len(titles) == 2 else titles)


def test_long_titles_are_wrapped(tmp_path, figures):
    """To the width of their picture, and over the picture."""
    long = "lowest for its width, farthest over the border, worst IoU with an anchor: 9 x 9 px"
    titles = [long + "\nannotation 7 (image 3)", "short", "_x$y$", "a" * 300]
    write_sheet([noise(100, 300)] * 4, tmp_path / "sheet.png", columns=2, titles=titles)
    boxes = [text.get_window_extent() for text in figures[0].texts]
    assert figures[0].texts[0].get_text().replace("\n", " ") == titles[0].replace("\n", " ")
    assert all(box.width <= 310 for box in boxes)
    for number, box in enumerate(boxes):
        assert box.x0 >= 0 and box.y1 <= figures[0].bbox.y1
        assert not any(box.overlaps(other) for other in boxes[:number])
    page = read(tmp_path / "sheet.png")
    assert len(places_of(page, noise(100, 300))) == 4  # no title covers a picture


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize("width", [480, 150])
@pytest.mark.parametrize(
    "names",
    [
        ["mug"],
        [f"class {k}" for k in range(80)],
        ["a" * 200, "$\\frac$", "_hidden", "杯子", "b\nc"],
    ],
    ids=["one", "eighty", "odd"],
)
def test_legend_is_below_and_whole(tmp_path, figures, names, width):
    entries = [(name, class_color(number)) for number, name in enumerate(names)]
    images = [noise(120, width)] * 4
    write_sheet(images, tmp_path / "sheet.png", columns=4, titles=["truth"], legend=entries)
    (legend,) = figures[0].legends
    assert len(legend.get_texts()) == len(names)
    box, page = legend.get_window_extent(), read(tmp_path / "sheet.png")
    assert box.x0 >= 0 and box.x1 <= page.shape[1] and box.y0 >= 0
    assert box.y1 <= figures[0].bbox.y1 - 120
    assert len(places_of(page, images[0])) == 4  # it covers no picture
    color = np.round(255 * np.array(class_color(0)))
    assert (np.abs(page.astype(int) - color).max(axis=2) < 2).sum() > 50
