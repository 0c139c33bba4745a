"""Where the pictures of a COCO file are: the rule for names, and a hint where one is not found.

The rule: an absolute ``file_name`` is used as it is. Any other is relative to the image folder;
sub-folders are allowed, but it may not lead out of the folder by "..". Links are followed, also
to places outside the folder.
"""

import os
import unicodedata
from pathlib import Path

from .findings import DROPPED, NOTICED, STOPS, Findings


def path_of(image_root: str | Path, file_name: str) -> str:
    """The picture's path by the rule above (`leads_out` is not checked)."""
    return str(Path(image_root, file_name))


def leads_out(file_name: str) -> bool:
    """Whether a relative name leaves the image folder by its ".." parts."""
    if os.path.isabs(file_name):
        return False
    first = os.path.normpath(file_name).split(os.sep, 1)[0]
    return first == os.pardir


class _Listings:
    """Names in folders, each folder listed once: one call a folder instead of one a picture."""

    def __init__(self):
        self.of: dict[str, set[str]] = {}

    def __contains__(self, path: str) -> bool:
        folder, name = os.path.split(path)
        return name in self.names(folder)

    def names(self, folder: str) -> set[str]:
        if folder not in self.of:
            try:
                self.of[folder] = set(os.listdir(folder or "."))
            except OSError:  # no such folder, or it may not be read: nothing is found there
                self.of[folder] = set()
        return self.of[folder]


def find_images(
    findings: Findings, images: list[dict], image_root: str | Path, *, drop: bool = False
) -> dict[int, str]:
    """Image id to path, for the images that are there; the others are recorded.

    Args:
        images: checked entries.
        drop: record a missing one as dropped (DATASETS.DROP_BAD_IMAGES), not as stopping.
    """
    paths = {image["id"]: path_of(image_root, image["file_name"]) for image in images}
    out = [number for number, image in enumerate(images) if leads_out(image["file_name"])]
    findings.add(
        "file_name that leads out of the image folder",
        STOPS,
        out,
        lambda n: (f"image {images[n]['id']}", f'has the file_name "{images[n]["file_name"]}"'),
        f"give a folder above {image_root} and names below it, or absolute names",
    )
    listings, outside = _Listings(), set(out)
    missing = [
        number
        for number, image in enumerate(images)
        if number not in outside and paths[image["id"]] not in listings
    ]
    findings.add(
        "missing image",
        DROPPED if drop else STOPS,
        missing,
        lambda n: _say_missing(images[n], paths[images[n]["id"]], image_root, listings),
        "left out with its annotations (DATASETS.DROP_BAD_IMAGES)"
        if drop
        else f"check the image folder ({image_root})",
    )
    for number in (*out, *missing):
        del paths[images[number]["id"]]
    _check_same_file(findings, paths)
    return paths


def _say_missing(
    image: dict, path: str, image_root: str | Path, listings: _Listings
) -> tuple[str, str]:
    name = image["file_name"]
    found = f'is not at {path} (file_name "{name}"'
    hint = _hint(name, path, Path(image_root), listings)
    return f"image {image['id']}", f"{found}; {hint})" if hint else f"{found})"


def _hint(name: str, path: str, root: Path, listings: _Listings) -> str:
    """The usual causes of a picture that is not found; "" if it is none of them."""
    if not os.path.isdir(root):
        return f"there is no folder {root}"
    others = (
        (root.parent / name, f"it is below {root.parent}: give that as the image folder"),
        (root / Path(name).name, "it is in the image folder itself: file_name has one too many"),
        (root / name.replace("\\", "/"), 'with "/" instead of "\\" it is there'),
    )
    for other, hint in others:
        if str(other) != path and os.path.isfile(other):  # False too for a name that is too long
            return hint
    folder, wanted = os.path.split(path)
    for there in sorted(listings.names(folder)):
        if _folded(there) == _folded(wanted):
            return f'there is "{there}", which differs in case or in Unicode form'
        if Path(there).stem == Path(wanted).stem:
            return f'there is "{there}"'
    return ""


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _check_same_file(findings: Findings, paths: dict[int, str]) -> None:
    first: dict[str, int] = {}
    again = []
    for image_id, path in paths.items():
        key = os.path.normpath(path)
        if key in first:
            again.append((image_id, first[key], path))
        first.setdefault(key, image_id)
    findings.add(
        "picture listed twice",
        NOTICED,
        range(len(again)),
        lambda n: (
            f"image {again[n][0]}",
            f"is the file of image {again[n][1]} as well ({again[n][2]})",
        ),
        "join the two entries: the objects of one are background in the other",
    )
