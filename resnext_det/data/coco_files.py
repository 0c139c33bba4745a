"""A COCO-format JSON file taken apart; other files are told by their contents."""

import contextlib
import gc
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .user_files import read_file

PARTS = ("images", "annotations", "categories")
GIVE_COCO = "give a COCO-format JSON file"
_YOLO = re.compile(rb"\s*\d+([ \t]+-?\d*\.?\d+([eE]-?\d+)?){4,}[ \t]*(\r?\n|$)")
_BEGINNINGS = {  # first bytes of other files that are given by mistake
    b"PK\x03\x04": ("is a zip archive", "unpack it first"),
    b"\x1f\x8b": ("is compressed by gzip", "unpack it first"),
    b"\xff\xd8\xff": ("is a JPEG picture", "give the annotation file first, then the images"),
    b"\x89PNG": ("is a PNG picture", "give the annotation file first, then the images"),
    b"version https://git-lfs": ("is a Git LFS pointer", "fetch the file itself (git lfs pull)"),
}
_OTHER_TOOLS = {  # a key that only another tool's JSON has
    "shapes": "is a LabelMe file (one picture's shapes)",
    "_via_img_metadata": "is a project of the VGG Image Annotator",
    "_via_settings": "is a project of the VGG Image Annotator",
}


@contextlib.contextmanager
def collection_paused() -> Iterator[None]:
    """Python's search for garbage in cycles waits while millions of objects are made.

    It would look through all of them time and again, and nothing that is read here is in a cycle:
    45 % of the time of reading a file of 100,000 annotations (benchmarks/data.py). Serves as a
    decorator too.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@collection_paused()
def parse(json_file: str | Path) -> dict[str, Any]:
    """The file's content, with its three lists; the entries are not looked at.

    Raises:
        InputError: the file is missing or empty, is not JSON, or is not a COCO data set; a
            YOLO or Pascal VOC label file, a list of results and others are named as such.
    """
    path = Path(json_file)
    try:
        if path.is_dir():
            raise InputError(json_file, "is a folder", "give the COCO-format JSON file in it")
        text = read_file(path)
    except FileNotFoundError as error:
        raise missing_file(json_file) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise InputError(json_file, f"cannot be read as JSON ({error})", "mend the file") from error
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(json_file, *_what_it_is(text, error)) from error
    _check_lists(json_file, content)
    _check_written_once(json_file, text)
    return content


def _check_written_once(json_file: str | Path, text: bytes) -> None:
    """Of a key that is there twice JSON's readers take the last list and drop the other."""
    often = [part for part in PARTS if text.count(f'"{part}"'.encode()) > 1]
    if not often:
        return  # a key of that name further inside is no fault: only now each object is looked at

    def look(pairs: list[tuple[str, Any]]) -> dict:
        for part in often:
            if sum(key == part and isinstance(value, list) for key, value in pairs) > 1:
                raise InputError(
                    json_file, f'has two lists "{part}", and only one would count', "join them"
                )
        return dict(pairs)

    json.loads(text, object_pairs_hook=look)


def missing_file(json_file: str | Path) -> InputError:
    """For an annotation file that is not there."""
    return InputError(
        json_file,
        "the annotation file does not exist",
        "check DATASETS.COCO_JSON or --train-json / --val-json; COCO itself is looked for "
        "under $DETECTRON2_DATASETS (default ./datasets)",
    )


def _what_it_is(text: bytes, error: Exception) -> tuple[str, str]:
    """(found, mend) for a file that is not JSON."""
    begin = text[:2000].lstrip(b"\xef\xbb\xbf \t\r\n")
    if not begin:
        return "is empty", GIVE_COCO
    for first, said in _BEGINNINGS.items():
        if begin.startswith(first):
            return said
    if begin.startswith(b"<"):
        kind = (
            "a Pascal VOC file (XML of one picture)" if b"<annotation" in begin else "XML or HTML"
        )
        return f"is {kind}", f"convert the whole set and {GIVE_COCO}"
    if _YOLO.match(begin):
        return "is a YOLO label file (one picture's)", f"convert the whole set and {GIVE_COCO}"
    return _where_json_ends(text, error)


def _where_json_ends(text: bytes, error: Exception) -> tuple[str, str]:
    if isinstance(error, RecursionError):
        return "cannot be read as JSON (its lists are nested too deeply)", GIVE_COCO
    if isinstance(error, json.JSONDecodeError):
        if error.msg == "Extra data":
            what = f"holds more than one JSON value (the second at line {error.lineno})"
            return what, f"{GIVE_COCO}, one object in all"
        if not error.doc[error.pos :].strip() or error.msg.startswith("Unterminated string"):
            what = f"cannot be read as JSON (it ends inside a value, after {len(text)} bytes)"
            return what, "copy or write the file again"
    return f"cannot be read as JSON ({error})", "mend the file"


def _check_lists(json_file, content: Any) -> None:
    if isinstance(content, list) and content and isinstance(content[0], dict):
        if {"image_id", "score"} <= content[0].keys():
            raise InputError(
                json_file,
                "is a list of detections (results of a detector), not a data set: it has no list "
                '"images"',
                "give the annotation file that the detections are for",
            )
    keys = content.keys() if isinstance(content, dict) else ()
    for key, what in _OTHER_TOOLS.items():
        if key in keys and "annotations" not in keys:
            raise InputError(json_file, what, f"convert the whole set and {GIVE_COCO}")
    for part in PARTS:
        if part not in keys or not isinstance(content[part], list):
            mend = GIVE_COCO
            if part == "annotations" and part not in keys:
                mend += '; for pictures without any object write "annotations": []'
            raise InputError(json_file, f'has no list "{part}"', mend)


class Part:
    """One of the three lists; entries at fault are taken out, and keep their numbers in the file.

    Args:
        name: "images", "annotations" or "categories".
        entries: the file's list.
    """

    def __init__(self, name: str, entries: list):
        self.name, self.entries = name, entries
        self.positions = np.arange(len(entries))

    def __len__(self) -> int:
        return len(self.entries)

    def where(self, number: int) -> str:
        """ "annotations[12]": the place of entry ``number`` (of those left) in the file's list."""
        return f"{self.name}[{self.positions[number]}]"

    def values(self, field: str) -> list:
        """The field of every entry left; None where it is missing."""
        return [entry.get(field) for entry in self.entries]

    def take_out(self, at_fault: np.ndarray) -> None:
        """Keep the entries where ``at_fault``, bool (N,), is False."""
        if at_fault.any():
            kept = np.flatnonzero(~at_fault)
            self.entries = [self.entries[number] for number in kept.tolist()]
            self.positions = self.positions[kept]
