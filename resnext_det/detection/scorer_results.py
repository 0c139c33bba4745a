"""COCO results on disk and their match with a data set: every id has to be one of its own."""

import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.user_files import read_file
from ..errors import InputError, one_line, shown
from ..writing import open_whole
from .scorer_arrays import Detections, Truth, check_values

SHOWN = 3  # ids of either side in a message
ROWS = 10_000  # entries turned into text at a time


def check_image_ids(seen: Sequence[Any], truth: Truth, source: str | Path) -> None:
    """That the images of ``seen`` are the data set's.

    Args:
        seen: image ids, repeated or not, of whatever type.

    Raises:
        InputError: some are not; ids of both sides, their types, and how many overlap.
    """
    known = set(truth.image_ids)
    distinct = _distinct(seen)
    foreign = [id_ for id_ in distinct if whole_number(id_) not in known]
    if not foreign:
        return
    types = sorted({type(id_).__name__ for id_ in foreign})
    of_another_type = types != sorted({type(id_).__name__ for id_ in truth.image_ids})
    raise InputError(
        source,
        f"does not match {truth.file}: {len(distinct) - len(foreign)} of {len(distinct)} image ids "
        f"overlap with its {len(known)}; here {_some(foreign)} of type {', '.join(types)}, there "
        f"{_some(truth.image_ids)} of type {type(truth.image_ids[0]).__name__}",
        "give image ids as the whole numbers of the annotation file"
        if of_another_type
        else "give the results and the annotations of the same split",
    )


def check_seen_once(seen: Sequence[int], source: str | Path) -> None:
    """Raises InputError for an image whose detections would count twice."""
    for image_id, times in Counter(seen).most_common(1):
        if times > 1:
            raise InputError(
                source,
                f"image {image_id} was evaluated {times} times",
                "evaluate every image once: reset the evaluator before each run",
            )


def whole_number(id_: Any) -> int | None:
    """The id to look up, None for text, floats and tensors (which equal nothing but themselves)."""
    return int(id_) if type(id_) is int or isinstance(id_, np.integer) else None


def _distinct(ids: Iterable[Any]) -> list[Any]:
    return list({(type(id_).__name__, str(id_)): id_ for id_ in ids}.values())


def _some(ids: Sequence[Any]) -> str:
    return ", ".join(f"{id_!r:.40}" for id_ in ids[:SHOWN]) + (", .." if len(ids) > SHOWN else "")


def read_results(path: str | Path, truth: Truth) -> Detections:
    """Boxes from a COCO results file: [{"image_id", "category_id", "bbox", "score"}, ..].

    ``bbox`` is x, y, width, height in pixels; ids are those of the annotation file.

    Raises:
        InputError: no such file, no list of results, an entry without a field or with a value
            that is no number, a box of negative width or height, ids that are not the data set's.
    """
    try:
        entries = json.loads(read_file(path))
    except OSError as error:
        raise InputError(
            path, f"cannot be read ({error.strerror})", "give a results file"
        ) from None
    except RecursionError:
        raise InputError(
            path, "is not JSON (nested too deeply)", "give a COCO results file"
        ) from None
    except ValueError as error:
        found = f"is not JSON ({one_line(error)})"
        raise InputError(path, found, "give a COCO results file") from None
    return pack_results(entries, truth, path)


def pack_results(entries: Any, truth: Truth, source: str | Path) -> Detections:
    """The columns of what `read_results` reads."""
    if not isinstance(entries, list):
        raise InputError(
            source,
            f"holds a {type(entries).__name__}, no list of results",
            'write [{"image_id": .., "category_id": .., "bbox": [x, y, w, h], "score": ..}, ..]',
        )
    for number, entry in enumerate(entries):
        fault = _fault_of(entry)
        if fault:
            raise InputError(source, f"result {number} {shown(fault)}", "mend it, or leave it out")
    check_image_ids([entry["image_id"] for entry in entries], truth, source)
    _check_category_ids({entry["category_id"] for entry in entries}, truth, source)
    image = {id_: place for place, id_ in enumerate(truth.image_ids)}
    class_ = {id_: place for place, id_ in enumerate(truth.class_ids)}
    found = Detections(
        images=np.array([image[entry["image_id"]] for entry in entries], dtype=np.int32),
        classes=np.array([class_[entry["category_id"]] for entry in entries], dtype=np.int32),
        boxes=np.array([entry["bbox"] for entry in entries], dtype=np.float64).reshape(-1, 4),
        scores=np.array([entry["score"] for entry in entries], dtype=np.float64),
    )
    check_values(found, source, len(truth.class_ids))
    return found


def _fault_of(entry: Any) -> str:
    if not isinstance(entry, dict):
        return f"is {entry!r:.40}, no mapping"
    missing = [
        name for name in ("image_id", "category_id", "bbox", "score") if entry.get(name) is None
    ]
    if missing:
        return f"has no {missing[0]}"
    box = entry["bbox"]
    if not (isinstance(box, list | tuple) and len(box) == 4 and all(map(_is_number, box))):
        return f"has the bbox {box!r:.60}, not four numbers"
    if box[2] < 0 or box[3] < 0:
        return f"has the bbox {box!r:.60}, of negative width or height"
    if not _is_number(entry["score"]):
        return f"has the score {entry['score']!r:.40}, no number"
    if type(entry["category_id"]) is not int:
        return f"has the category_id {entry['category_id']!r:.40}, no whole number"
    return ""


def _is_number(value: Any) -> bool:
    """Whether a float can hold it; infinite ones and NaN are `check_values`'."""
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        return False
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_category_ids(seen: set[int], truth: Truth, source: str | Path) -> None:
    foreign = sorted(seen - set(truth.class_ids))
    if foreign:
        raise InputError(
            source,
            f"holds category_id {_some(foreign)}; {truth.file} has {_some(truth.class_ids)} "
            f"({len(seen) - len(foreign)} of {len(seen)} overlap)",
            "give the ids of its categories list, which need not run from 0",
        )


def write_results(path: str | Path, found: Detections, truth: Truth) -> None:
    """COCO's results file, with the ids of the annotation file; a part at a time."""
    with open_whole(path, "w", encoding="utf-8") as file:
        file.write("[")
        for first in range(0, len(found), ROWS):
            file.write(", " if first else "")
            file.write(json.dumps(_entries(found, truth, slice(first, first + ROWS)))[1:-1])
        file.write("]")


def _entries(found: Detections, truth: Truth, rows: slice) -> list[dict]:
    columns = (found.images, found.classes, found.boxes, found.scores)
    entries = [
        {
            "image_id": truth.image_ids[image],
            "category_id": truth.class_ids[class_],
            "bbox": box,
            "score": score,
        }
        for image, class_, box, score in zip(*(c[rows].tolist() for c in columns), strict=True)
    ]
    for entry, mask in zip(entries, (found.masks or [])[rows]):  # noqa: B905  none without masks
        entry["segmentation"] = {"size": list(mask["size"]), "counts": mask["counts"].decode()}
    return entries
