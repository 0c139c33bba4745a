"""The paper's COCO splits of 2014, minival and valminusminival, from the files of 2017.

2017 dealt the images of 2014 out anew and kept ids and annotations: val2017 is minival, and
train2017 is train2014 with valminusminival. The files of 2017 do not say which images were in
val2014: image 391895 was, and its entry in instances_train2017.json (``file_name``, ``coco_url``)
names train2017 only. So one file of 2014 is needed as well, of which image ids alone are read.
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..writing import write_text
from .coco_files import parse

MINIVAL, VALMINUSMINIVAL = "instances_minival2014.json", "instances_valminusminival2014.json"
TRAIN2014, VAL2014 = "instances_train2014.json", "instances_val2014.json"
TRAIN2017, VAL2017 = "instances_train2017.json", "instances_val2017.json"
FILE_NAME = "COCO_val2014_{:012d}.jpg"
COCO_URL = "http://images.cocodataset.org/val2014/{}"
OFFICIAL = {MINIVAL: 5_000, VALMINUSMINIVAL: 35_504}  # images


@dataclass(frozen=True)
class Summary:
    """What was found and written.

    Args:
        files: a line for each of the two files.
        checks: a line for each of the two equalities, both of which hold.
        notices: what is odd, but does not stop.
    """

    files: list[str]
    checks: list[str]
    notices: list[str]


def make_splits(annotations: str | Path, to: str | Path | None = None) -> Summary:
    """Write `MINIVAL` and `VALMINUSMINIVAL`; a file that is there already is checked and kept.

    Args:
        annotations: the folder with `TRAIN2017` and `VAL2017`, and `VAL2014` or `TRAIN2014`.
        to: the folder for the two files; None: ``annotations``.

    Raises:
        InputError: a file is missing or not COCO, an image has no id of its own, the files of
            2014 and 2017 do not hold the same images, a file that is there holds other images,
            or the folder cannot be written.
    """
    annotations = Path(annotations)
    to = annotations if to is None else Path(to)
    minival, rest = _read(annotations / VAL2017), _read(annotations / TRAIN2017)
    chosen = _valminusminival(annotations, set(minival.ids), set(rest.ids))
    train2014 = len(rest.ids) - len(chosen)
    checks = [
        f"minival == val2017: {len(minival.ids):,} image ids",
        f"trainval35k == train2017: {train2014:,} + {len(chosen):,} = {len(rest.ids):,} image ids",
    ]
    files, notices = [], []
    if not (annotations / TRAIN2014).is_file():
        notices.append(
            f"{TRAIN2014} is not there: train2014 is taken to be what valminusminival leaves of "
            "train2017"
        )
    for name, source, ids in (
        (MINIVAL, minival, set(minival.ids)),
        (VALMINUSMINIVAL, rest, chosen),
    ):
        line, odd = _make(to / name, source, ids)
        files.append(line)
        notices += odd
    return Summary(files, checks, notices)


@dataclass(frozen=True)
class _File:
    path: Path
    content: dict[str, Any]
    ids: list[int]


def _read(path: Path) -> _File:
    if not path.is_file():
        raise InputError(
            path,
            "does not exist",
            "give the folder of COCO's annotations_trainval2017.zip, unpacked",
        )
    content = parse(path)
    return _File(path, content, _image_ids(path, content["images"]))


def _image_ids(path: Path, images: list) -> list[int]:
    ids = [entry.get("id") if isinstance(entry, dict) else None for entry in images]
    for number, image_id in enumerate(ids):
        if type(image_id) is not int:
            raise InputError(
                path, f"images[{number}] has the id {image_id!r:.40}", "make it a whole number"
            )
    (most, count), *_ = Counter(ids).most_common(1) or [(0, 0)]
    if count > 1:
        raise InputError(path, f"lists image {most} {count} times", "copy the file again")
    return ids


# ---- which images of train2017 were in val2014 ----


def _valminusminival(annotations: Path, minival: set[int], rest: set[int]) -> set[int]:
    """The ids of train2017 that are in val2014, or that are not in train2014; both must agree."""
    if both := minival & rest:
        raise InputError(
            annotations / TRAIN2017,
            f"holds {_some(both)} of {VAL2017} too",
            "give both files as COCO publishes them",
        )
    there = [name for name in (VAL2014, TRAIN2014) if (annotations / name).is_file()]
    if not there:
        raise InputError(
            annotations,
            f"has neither {VAL2014} nor {TRAIN2014}, and the files of 2017 do not say which of "
            "their images were in val2014",
            "unpack one of them there too, from COCO's annotations_trainval2014.zip",
        )
    ids = {name: set(_read(annotations / name).ids) for name in there}
    chosen = rest & ids[VAL2014] if VAL2014 in ids else rest - ids[TRAIN2014]
    for name, wanted in ((VAL2014, minival | chosen), (TRAIN2014, rest - chosen)):
        if name in ids and (said := _difference(ids[name], wanted)):
            raise InputError(
                annotations / name,
                f"does not fit the files of 2017: it {said}",
                "give all files whole, as COCO publishes them",
            )
    return chosen


def _difference(found: set[int], wanted: set[int]) -> str:
    """ "lacks 2 images (for instance 139) and also holds ..", or "" where there is none."""
    differing = (("lacks", wanted - found), ("also holds", found - wanted))
    return " and ".join(f"{how} {_some(ids)}" for how, ids in differing if ids)


def _some(ids: Iterable[int]) -> str:
    ids = sorted(ids)
    return f"{len(ids)} image{'s' * (len(ids) > 1)} (for instance {ids[0]})"


# ---- the two files ----


def _make(path: Path, source: _File, ids: set[int]) -> tuple[str, list[str]]:
    """Write one file, or check the one that is there; its line and what is odd about it."""
    there = path.exists()
    if there:
        made = _read(path)
        if said := _difference(set(made.ids), ids):
            raise InputError(
                path,
                f"is there already and has other images: it {said}",
                "remove it, or choose another folder (--to)",
            )
        content = made.content
    else:
        content = _subset(source.content, ids)
        _write(path, content)
    line = f"{path}: {len(content['images']):,} images, {len(content['annotations']):,} annotations"
    notices = _oddities(path, content)
    if len(ids) != OFFICIAL[path.name]:
        notices.append(f"{path.name}: COCO's own has {OFFICIAL[path.name]:,} images")
    return line + (" (was there, kept)" if there else ""), notices


def _subset(content: dict[str, Any], ids: set[int]) -> dict[str, Any]:
    """The images of ``ids`` under their names of 2014, with their annotations; the rest as is."""
    images = []
    for entry in content["images"]:
        if entry["id"] in ids:
            renamed = {**entry, "file_name": FILE_NAME.format(entry["id"])}
            if "coco_url" in entry:
                renamed["coco_url"] = COCO_URL.format(renamed["file_name"])
            images.append(renamed)
    annotations = [entry for entry in content["annotations"] if _image_of(entry) in ids]
    return {**content, "images": images, "annotations": annotations}


def _image_of(annotation: Any) -> int | None:
    image_id = annotation.get("image_id") if isinstance(annotation, dict) else None
    return image_id if type(image_id) is int else None


def _write(path: Path, content: dict[str, Any]) -> None:
    """There whole, or not at all."""
    write_text(path, json.dumps(content), "choose another folder (--to)")


def _oddities(path: Path, content: dict[str, Any]) -> list[str]:
    """Counts of what the old minival file is known for (py-faster-rcnn, issue 522)."""
    annotations = [entry for entry in content["annotations"] if isinstance(entry, dict)]
    with_objects = {_image_of(entry) for entry in annotations}
    bare = sum(entry["id"] not in with_objects for entry in content["images"])
    ids = Counter(repr(entry.get("id")) for entry in annotations)
    repeated = {id_ for id_, count in ids.items() if count > 1}
    crowds = sum(bool(e.get("iscrowd")) for e in annotations if repr(e.get("id")) in repeated)
    odd_ids = sum(type(entry.get("id")) is not int for entry in annotations)
    said = []
    if bare:
        said.append(f"{path.name}: {bare:,} image(s) have no annotation")
    if repeated:
        said.append(
            f"{path.name}: {len(repeated):,} annotation id(s) are used more than once "
            f"({crowds:,} of these annotations are crowds): set DATASETS.RENUMBER_ANNOTATIONS True"
        )
    if odd_ids:
        said.append(
            f"{path.name}: {odd_ids:,} annotation id(s) are no whole numbers: set "
            "DATASETS.RENUMBER_ANNOTATIONS True"
        )
    return said
