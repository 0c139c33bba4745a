"""What prediction looks at: files, folders, a COCO file's images, a video; and whether it can."""

import logging
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..data.coco import size_reader
from ..data.coco_checks import Rules, check_entries
from ..data.coco_files import parse
from ..data.coco_images import (
    TOO_LARGE,
    Header,
    read_header,
    read_headers,
    read_late_orientation,
)
from ..data.coco_paths import find_images, path_of
from ..data.findings import Findings, check_command, raise_first
from ..data.images import RANGELESS, is_deep
from ..errors import InputError

logger = logging.getLogger(__name__)

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")


@dataclass(frozen=True)
class Entry:
    """One image to look at.

    Args:
        id: of the image in what is written: the data set's own, or 1..N.
        name: relative path, under which its picture is written.
        size: (width, height) in pixels that a data set states; None where nothing does.
    """

    id: int
    name: str
    path: Path
    size: tuple[int, int] | None = None


# ---- files and folders ----


def entries_of(inputs: Iterable[str | Path]) -> list[Entry]:
    """Files as they are given, folders with all images below them, sorted; numbered from 1.

    An image that is given twice counts once. Names are relative to the folder that is given, or
    that the file is in. Where names of two folders clash, all names of both begin with the
    folder's own name; where that is the same too, with as many folders above as tell them apart.

    Raises:
        InputError: an input is not there or no image by its suffix, or a folder has no image.
    """
    found: dict[str, tuple[str, Path]] = {}  # by absolute path: the folder, and the path as given
    passed: list[Path] = []
    for given in map(Path, inputs):
        folder, files, others = _files(given)
        passed += others
        for path in files:
            found.setdefault(os.path.abspath(path), (os.path.abspath(folder), path))
    if passed:
        message = "passed over %d files that are no images by their suffix, for instance %s"
        logger.info(message, len(passed), passed[0])
    names = _names({path: folder for path, (folder, _) in found.items()})
    return [Entry(n, names[key], path) for n, (key, (_, path)) in enumerate(found.items(), 1)]


def _files(given: Path) -> tuple[Path, list[Path], list[Path]]:
    """The folder that names are relative to, the images, and files of other kinds."""
    if given.is_dir():
        # What only looks like a file (a broken link) is kept: it is named when it is to be read.
        below = sorted(path for path in given.rglob("*") if not path.is_dir())
        files = [path for path in below if path.suffix.lower() in IMAGES]
        if not files:
            raise InputError(given, "holds no image", f"give a folder with {', '.join(IMAGES)}")
        return given, files, [path for path in below if path.suffix.lower() not in IMAGES]
    if not given.is_file():
        raise InputError(given, "is not there", "check the path given to --input")
    if given.suffix.lower() not in IMAGES:
        raise InputError(
            given,
            f"has the suffix {given.suffix or 'none'}",
            f"give images ({', '.join(IMAGES)}), a folder of them, or one video",
        )
    return given.parent, [given], []


def _names(folders: dict[str, str]) -> dict[str, str]:
    """Absolute paths to names, no two of them the same.

    Args:
        folders: path to the folder, above it, that its name is relative to.
    """
    above = dict.fromkeys(folders.values(), 0)  # folders' names that their images' begin with
    while True:
        names = {p: os.path.relpath(p, _up(folder, above[folder])) for p, folder in folders.items()}
        count = Counter(names.values())
        # Ends: with all folders up to the root every name is a path, and no two paths are equal.
        for folder in {folders[path] for path, name in names.items() if count[name] > 1}:
            above[folder] += 1
        if len(count) == len(names):
            return names


def _up(folder: str, levels: int) -> str:
    for _ in range(levels):
        folder = os.path.dirname(folder)
    return folder


def video_of(inputs: list[str]) -> Path | None:
    """The video, where a single one is given.

    Raises:
        InputError: it is not there.
    """
    if len(inputs) != 1 or Path(inputs[0]).suffix.lower() not in VIDEOS:
        return None
    if not Path(inputs[0]).is_file():
        raise InputError(inputs[0], "is not there", "check the path given to --input")
    return Path(inputs[0])


# ---- a COCO file ----


def entries_of_coco(
    json_file: str | Path, image_root: str | Path, *, skip_unreadable: bool = False
) -> list[Entry]:
    """The images of a COCO file, by its own ids; its annotations are not looked at.

    Args:
        skip_unreadable: images that are not there are entries too; `readable` leaves them out.

    Raises:
        InputError: no COCO file, an entry of its images or categories at fault, or an image that
            is not there.
    """
    content = {**parse(json_file), "annotations": []}
    images = list(content["images"])  # the check takes entries out
    rules = Rules(drop_bad_images=skip_unreadable)
    faults = check_entries(json_file, content, rules, size_reader(image_root))
    findings = Findings(json_file)
    find_images(findings, content["images"], image_root, drop=skip_unreadable)
    raise_first([*faults, *findings.all], check_command(json_file, image_root))
    return [_entry(image, image_root) for image in images]


def _entry(image: dict, image_root: str | Path) -> Entry:
    name = image["file_name"]
    # Only an image that cannot be read is still without a size here.
    size = image.get("width"), image.get("height")
    return Entry(image["id"], name, Path(path_of(image_root, name)), size)


# ---- whether they can be read ----


def readable(
    entries: list[Entry], *, skip_unreadable: bool = False
) -> tuple[list[Entry], list[InputError]]:
    """The entries whose headers can be read and are of the stated size.

    Returns:
        The entries, and what is the matter with each of the others.

    Raises:
        InputError: the first that is at fault, unless ``skip_unreadable``.
    """
    headers = read_headers([str(entry.path) for entry in entries], progress=True)
    faults = [_fault(entry, header) for entry, header in zip(entries, headers, strict=True)]
    bad = [fault for fault in faults if fault is not None]
    if bad and not skip_unreadable:
        more = f" (and {len(bad) - 1} more images are at fault)" if len(bad) > 1 else ""
        mend = f"{bad[0].mend}, or add --skip-unreadable"
        raise InputError(bad[0].file, f"{bad[0].found}{more}", mend)
    good = [entry for entry, fault in zip(entries, faults, strict=True) if fault is None]
    return good, bad


def _fault(entry: Entry, header: Header) -> InputError | None:
    if not header.error and entry.size not in (None, header.size):
        # The tag that turns a PNG may stand behind its pixels.
        header = read_header(str(entry.path), decode=True)
        header = header if header.error else read_late_orientation(str(entry.path), header)
    if header.error:
        large = header.error.startswith(TOO_LARGE)
        mend = "shrink it or raise DATASETS.MAX_IMAGE_PIXELS" if large else "replace or remove it"
        return InputError(entry.path, header.error, mend)
    if header.mode in RANGELESS and not is_deep(header.mode, header.format):
        found = f"is of mode {header.mode}, whose values have no fixed range"
        return InputError(entry.path, found, "convert it to 8 or 16 bits")
    return wrong_size(entry, header.size)


def wrong_size(entry: Entry, size: tuple[int, int]) -> InputError | None:
    """What is the matter where an image's (width, height) is not what its entry states."""
    if entry.size in (None, size):
        return None
    swapped = ", swapped," if size == entry.size[::-1] else ""
    return InputError(
        entry.path,
        f"has (width, height) {size}, but its entry{swapped} says {entry.size}",
        "replace the file, or correct its entry (tools/check_data.py lists all of them)",
    )
