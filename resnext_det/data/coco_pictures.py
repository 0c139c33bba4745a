"""What the pictures' headers say, held against the annotation file: sizes, channels, damage.

How the reader (`images.read_array`) makes RGB of other channels is told with a count; what it
refuses stops.
"""

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from PIL import Image

from .coco_images import SWAPPING, TOO_LARGE, Header, read_late_orientation
from .findings import DROPPED, NOTICED, STOPS, Findings
from .images import RANGELESS, is_deep, to_rgb

# What `images.read_array` makes RGB of, and how; a picture is told under one of them (`_kind`).
_DEEP, _TRANSPARENT = "16-bit grey", "transparency"
RULES = {
    _DEEP: "its values are divided by 257, so that 12-bit values in 16 bits stay dark",
    _TRANSPARENT: "it is laid on white",
    "grey": "it becomes three equal channels",
    "palette": "its colours are looked up",
    "CMYK": "it becomes RGB by a plain formula, without a colour profile",
    "four channels": "the fourth channel is left out",
    "other colours": "it is converted to RGB",
}
_RANGELESS, _UNREAD = "32-bit integers or float", "channels that cannot be read"  # these stop
_OF_MODE = {"1": "grey", "L": "grey", "P": "palette", "CMYK": "CMYK", "RGBX": "four channels"}


def check_pictures(
    findings: Findings,
    images: list[dict],
    paths: dict[int, str],
    headers: dict[int, Header],
    *,
    drop: bool = False,
) -> set[int]:
    """Record what is wrong with the pictures.

    Args:
        images: checked entries.
        paths, headers: by image id; images that are not among them are passed over.
        drop: leave unreadable pictures out (DATASETS.DROP_BAD_IMAGES).

    Returns:
        The ids of unreadable pictures.
    """
    seen = [image for image in images if image["id"] in headers]
    pictures = _Pictures(findings, seen, paths, headers)
    errors = [headers[image["id"]].error for image in seen]
    large = [n for n, error in enumerate(errors) if error.startswith(TOO_LARGE)]
    unread = [n for n, error in enumerate(errors) if error and not error.startswith(TOO_LARGE)]
    severity = DROPPED if drop else STOPS
    left_out = "left out with its annotations (DATASETS.DROP_BAD_IMAGES)"
    mend = "replace the file, take out its entry, or set DATASETS.DROP_BAD_IMAGES True"
    mend = left_out if drop else mend
    pictures.add("unreadable picture", severity, unread, lambda _, header: header.error, mend)
    mend = "scale it down (with its boxes), or raise DATASETS.MAX_IMAGE_PIXELS"
    mend = left_out if drop else mend
    pictures.add("picture of too many pixels", severity, large, lambda _, h: h.error, mend)
    good = [image for image, error in zip(seen, errors, strict=True) if not error]
    pictures = _Pictures(findings, good, paths, headers)
    _check_sizes(pictures)
    _check_channels(pictures)
    return {seen[n]["id"] for n in (*unread, *large)}


class _Pictures:
    """Pictures in the order of their entries, and how findings about them are told."""

    def __init__(
        self,
        findings: Findings,
        images: list[dict],
        paths: dict[int, str],
        headers: dict[int, Header],
    ):
        self.findings, self.images = findings, images
        self.paths = [paths[image["id"]] for image in images]
        self.headers = [headers[image["id"]] for image in images]

    def add(
        self,
        kind: str,
        severity: str,
        numbers: Sequence[int],
        say: Callable[[dict, Header], str],
        mend: str,
    ) -> None:
        """``say``: entry and header to what is found."""
        self.findings.add(
            kind,
            severity,
            numbers,
            lambda n: (f"image {self.images[n]['id']}", say(self.images[n], self.headers[n])),
            mend,
            picture=lambda n: self.paths[n],
        )


# ---- sizes ----


def _check_sizes(pictures: _Pictures) -> None:
    turned, swapped, resized = [], [], []
    for number, image in enumerate(pictures.images):
        header, stated = pictures.headers[number], (image["width"], image["height"])
        if header.size != stated:
            header = read_late_orientation(pictures.paths[number], header)
            pictures.headers[number] = header
        if header.size == stated:
            continue
        if header.size == stated[::-1]:
            (turned if header.orientation in SWAPPING else swapped).append(number)
        else:
            resized.append(number)
    for bad, (kind, say, mend) in zip((turned, swapped, resized), _SIZES, strict=True):
        pictures.add(kind, STOPS, bad, say, mend)


def _stated(image: dict) -> str:
    return f"its entry says ({image['width']}, {image['height']})"


def _say_turned(image: dict, header: Header) -> str:
    return (
        f"has (width, height) {header.size}, turned on reading from "
        f"{(header.width, header.height)} as its EXIF orientation {header.orientation} says; "
        f"{_stated(image)}"
    )


def _say_swapped(image: dict, header: Header) -> str:
    return f"has (width, height) {header.size}, {_stated(image)}: the two are swapped"


def _say_resized(image: dict, header: Header) -> str:
    across, down = (header.size[i] / image[side] for i, side in enumerate(("width", "height")))
    same = abs(across / down - 1) < 0.02
    how = f"{across:.4g} times the size" if same else "another shape"
    return f"has (width, height) {header.size}, {_stated(image)}: it has {how} of what was labelled"


_SIZES = (
    (
        "picture turned by its EXIF tag",
        _say_turned,
        "take the tag out of the file if the boxes are of the stored picture, or else correct the "
        "entry",
    ),
    (
        "height and width swapped",
        _say_swapped,
        "swap them in the entry, or leave both out: then they are read from the picture",
    ),
    (
        "picture of another size than its entry",
        _say_resized,
        "give the picture that was labelled, or scale its boxes and correct the entry",
    ),
)


# ---- channels ----


def _check_channels(pictures: _Pictures) -> None:
    kinds = np.array([_kind(header) for header in pictures.headers], dtype=object)

    def add(kind: str, severity: str, found: str, mend: str) -> None:
        say = f"is of mode {{}}{found}".format
        numbers = np.flatnonzero(kinds == kind)
        pictures.add(kind, severity, numbers, lambda _, header: say(header.mode), mend)

    add(_RANGELESS, STOPS, ", whose values have no fixed range", "convert it to 8 or 16 bits")
    add(_UNREAD, STOPS, ", of which no RGB is made", "save as RGB")
    for kind, rule in RULES.items():
        add(kind, NOTICED, "", f"nothing to do: {rule}")


def _kind(header: Header) -> str:
    """A key of `RULES`, what stops, or "" for plain RGB."""
    mode = header.mode
    if is_deep(mode, header.format):
        return _DEEP
    if mode in RANGELESS:
        return _RANGELESS
    if not _becomes_rgb(mode):
        return _UNREAD
    if header.transparent:
        return _TRANSPARENT
    return _OF_MODE.get(mode, "" if mode == "RGB" else "other colours")


@cache
def _becomes_rgb(mode: str) -> bool:
    try:
        to_rgb(Image.new(mode, (1, 1)), None, mode)
    except (ValueError, OSError):
        return False
    return True
