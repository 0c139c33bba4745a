"""Pictures in a grid, pixel for pixel, with titles above them and the colours' meaning below."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from .. import plots

FIELD = 480  # pixels of a picture's longer side, as the sheets of a run have them
DPI = 100
GAP = 10  # pixels between pictures
FONT, LETTER, LINE = 10, 9.0, 18  # points; pixels of a letter's width, and of a line
TITLE = 60  # characters of a title, at most
NAME, PATCH = 28, 70  # characters of a name below; pixels of its patch and the spaces


def write_sheet(
    images: Sequence[np.ndarray],
    path: str | Path,
    *,
    columns: int,
    titles: Sequence[str] = (),
    legend: Sequence[tuple[str, tuple[float, float, float]]] = (),
) -> None:
    """RGB images row by row into one picture file.

    Args:
        images: uint8 (H, W, 3) of any sizes, one or more; a row is as high as its highest one.
        titles: one an image; fewer repeat along the top row.
        legend: names and their RGB colours, 0..1.
    """
    columns = min(columns, len(images))
    wide = max(image.shape[1] for image in images)
    parts = [images[first : first + columns] for first in range(0, len(images), columns)]
    high = [max(len(image) for image in part) for part in parts]
    every = len(titles) == len(images)
    if titles and not every:
        titles = [titles[place % len(titles)] for place in range(columns)]
    titles = [_wrapped(title, wide) for title in titles]
    band = LINE * max((title.count("\n") + 1 for title in titles), default=0)
    foot, entries = _foot(legend, columns * (wide + GAP))
    bands = [band if every or row == 0 else 0 for row in range(len(parts))]
    height = GAP + sum(high) + sum(bands) + GAP * len(parts) + foot
    page = np.full((height, GAP + columns * (wide + GAP), 3), 255, np.uint8)
    # Matplotlib cuts sizes down to whole pixels; a fraction more keeps all of them.
    size = (np.array(page.shape[1::-1]) + 0.01) / DPI
    figure = Figure(figsize=size, dpi=DPI)
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        x = GAP + column * (wide + GAP) + (wide - image.shape[1]) // 2
        y = GAP * (row + 1) + sum(high[:row]) + sum(bands[: row + 1])
        page[y : y + len(image), x : x + image.shape[1]] = image
        if number < len(titles):
            at = ((x + image.shape[1] / 2) / page.shape[1], 1 - (y - 3) / height)
            figure.text(*at, titles[number], ha="center", va="bottom", fontsize=FONT)
    figure.figimage(page, origin="upper", interpolation="nearest")
    if legend:
        handles = [Patch(color=color, label=plots.label(name, NAME)) for name, color in legend]
        figure.legend(
            handles=handles, loc="lower center", ncols=entries, fontsize=FONT, frameon=False
        )
    figure.savefig(path, dpi=DPI)


def _wrapped(title: str, width: int) -> str:
    """A title of one or more lines in lines that are no wider than the picture."""
    most = max(12, int(width / LETTER))
    lines = [plots.label(line, TITLE * 2) for line in title.split("\n")]
    return "\n".join(part for line in lines for part in textwrap.wrap(line, most) or [""])


def _foot(legend: Sequence[tuple], width: int) -> tuple[int, int]:
    """Pixels that the legend takes, and how many of its entries stand side by side."""
    if not legend:
        return 0, 1
    longest = max(min(len(name), NAME) for name, _ in legend)
    entries = max(1, min(len(legend), int(width / (LETTER * longest + PATCH))))
    return 24 + 22 * -(-len(legend) // entries), entries
