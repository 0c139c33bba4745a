"""COCO-format data sets: named by the config, checked before use, registered with Detectron2.

The JSON file decides the classes: any unique integer ids, mapped to 0..K-1 in the order of
their ids, as Detectron2 and pycocotools do.
"""

import functools
import json
import logging
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from ..errors import InputError

logger = logging.getLogger(__name__)


def register_coco(
    name: str, json_file: str | Path, image_root: str | Path, *, drop_empty_boxes: bool = False
) -> None:
    """Make ``name`` known to Detectron2; reading and checking wait until it is used.

    Args:
        drop_empty_boxes: see `read_coco`.
    """
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)
    DatasetCatalog.register(name, functools.partial(load_coco, name))
    MetadataCatalog.get(name).set(
        json_file=str(json_file),
        image_root=str(image_root),
        evaluator_type="coco",
        drop_empty_boxes=drop_empty_boxes,
    )


def register_from_config(cfg: CfgNode) -> None:
    """Register DATASETS.COCO_JSON; called in every process, before anything is read.

    Detectron2's own names for COCO ("coco_2017_train", ...) keep their places on disk, but are
    read and checked here like any other file.

    Raises:
        InputError: a name in DATASETS.TRAIN or TEST is registered nowhere.
    """
    drop = cfg.DATASETS.DROP_EMPTY_BOXES
    for name, json_file, image_root in cfg.DATASETS.COCO_JSON:
        register_coco(name, json_file, image_root, drop_empty_boxes=drop)
    for key in ("TRAIN", "TEST"):
        for name in cfg.DATASETS[key]:
            if name not in DatasetCatalog:
                raise InputError(
                    f"DATASETS.{key}",
                    f"{name} is not a known data set",
                    "add [name, json, images] to DATASETS.COCO_JSON",
                )
            meta = MetadataCatalog.get(name)
            if meta.get("evaluator_type") == "coco" and "json_file" in meta.as_dict():
                register_coco(name, meta.json_file, meta.image_root, drop_empty_boxes=drop)


def read_coco(json_file: str | Path, *, drop_empty_boxes: bool = False) -> dict[str, Any]:
    """A COCO JSON file with every entry checked; `iscrowd` and `area` filled in if missing.

    Args:
        drop_empty_boxes: leave annotations whose box has no area out, with a counted notice,
            instead of refusing the file.

    Raises:
        InputError: names the file, the entry and the mend for: a file that is missing, not
            JSON or not COCO; repeated ids; an annotation of an undeclared category or
            image; a box that is not four finite numbers or has no area.
    """
    content = _parse(json_file)
    for part in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            raise InputError(json_file, f'has no list "{part}"', "give a COCO-format JSON file")
    _check_entries(json_file, content)
    if drop_empty_boxes:
        _drop_empty_boxes(json_file, content)
    _check_annotations(json_file, content)
    return content


def _parse(json_file: str | Path) -> Any:
    try:
        return json.loads(Path(json_file).read_bytes())
    except FileNotFoundError as error:
        raise _missing(json_file) from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(json_file, f"cannot be read as JSON ({error})", "mend the file") from error


def _missing(json_file) -> InputError:
    return InputError(
        json_file,
        "the annotation file does not exist",
        "check DATASETS.COCO_JSON or --train-json / --val-json; COCO itself is looked for "
        "under $DETECTRON2_DATASETS (default ./datasets)",
    )


def _check_entries(json_file, content: dict) -> None:
    fields = {
        "images": ("id", "file_name", "height", "width"),
        "categories": ("id", "name"),
        "annotations": ("id", "image_id", "category_id", "bbox"),
    }
    for part, names in fields.items():
        seen: set[int] = set()
        for position, entry in enumerate(content[part]):
            where = f"{part}[{position}]"
            missing = [n for n in names if n not in entry] if isinstance(entry, dict) else names
            if missing:
                raise InputError(json_file, f"{where} has no {missing[0]}", "add it")
            if type(entry["id"]) is not int:
                raise InputError(
                    json_file, f"{where} has the id {entry['id']!r}", "make it a whole number"
                )
            if entry["id"] in seen:
                raise InputError(
                    json_file,
                    f"{where} repeats the id {entry['id']}",
                    "give every entry an id of its own",
                )
            seen.add(entry["id"])


def _drop_empty_boxes(json_file, content: dict) -> None:
    before = content["annotations"]
    kept = [entry for entry in before if not (_is_box(entry["bbox"]) and _is_empty(entry["bbox"]))]
    content["annotations"] = kept
    if len(kept) < len(before):
        logger.info("%s: %d boxes without area left out", json_file, len(before) - len(kept))


def _is_box(box: Any) -> bool:
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(type(v) in (int, float) and math.isfinite(v) for v in box)
    )


def _is_empty(box: list) -> bool:
    return box[2] <= 0 or box[3] <= 0


def _check_annotations(json_file, content: dict) -> None:
    images = {image["id"] for image in content["images"]}
    categories = {category["id"] for category in content["categories"]}
    filled = 0
    for entry in content["annotations"]:
        where = f"annotation {entry['id']} (image {entry['image_id']})"
        if entry["image_id"] not in images:
            raise InputError(
                json_file,
                f"{where} belongs to no image of the file",
                "add the image or remove the annotation",
            )
        if entry["category_id"] not in categories:
            raise InputError(
                json_file,
                f"{where} has the undeclared category "
                f"{entry['category_id']}; declared are {sorted(categories)}",
                "declare it under categories or correct the annotation",
            )
        _check_box(json_file, where, entry["bbox"])
        filled += "iscrowd" not in entry or "area" not in entry
        entry.setdefault("iscrowd", 0)
        entry.setdefault("area", entry["bbox"][2] * entry["bbox"][3])
    if filled:
        logger.info(
            "%s: iscrowd or area filled in for %d annotations (0; width x height)",
            json_file,
            filled,
        )


def _check_box(json_file, where: str, box: Any) -> None:
    if not _is_box(box):
        raise InputError(
            json_file,
            f"{where} has the bbox {box!r}",
            "write it as four numbers [x, y, width, height] in pixels",
        )
    if _is_empty(box):
        raise InputError(
            json_file,
            f"{where} has a box without area, {box}",
            "remove it, correct its width and height, or set DATASETS.DROP_EMPTY_BOXES True",
        )


def _image_paths(name: str, json_file, image_root, images: Iterable[dict]) -> dict[int, str]:
    """Image id to path; sub-folders and absolute names are allowed. Raises InputError."""
    listed: dict[Path, set[str]] = {}
    paths = {}
    for image in images:
        path = Path(image_root, image["file_name"])
        if path.parent not in listed:
            listed[path.parent] = (
                {p.name for p in path.parent.iterdir()} if path.parent.is_dir() else set()
            )
        if path.name not in listed[path.parent]:
            raise InputError(
                json_file,
                f"image {image['id']} is not at {path}",
                f"check the image folder of {name} ({image_root})",
            )
        paths[image["id"]] = str(path)
    return paths


def read_registered(name: str) -> dict[str, Any]:
    """The file of a registered data set, as `read_coco` gives it."""
    meta = MetadataCatalog.get(name)
    return read_coco(meta.json_file, drop_empty_boxes=meta.get("drop_empty_boxes", False))


def load_coco(name: str) -> list[dict[str, Any]]:
    """A registered data set in Detectron2's format: one dict an image, boxes XYWH_ABS pixels.

    Sets the metadata ``thing_classes`` and ``thing_dataset_id_to_contiguous_id``.

    Raises:
        InputError: see `read_coco`; also an image file that is not there.
    """
    meta = MetadataCatalog.get(name)
    content = read_registered(name)
    ids = set_classes(name, content)
    paths = _image_paths(name, meta.json_file, meta.image_root, content["images"])
    records = {
        image["id"]: {
            "file_name": paths[image["id"]],
            "image_id": image["id"],
            "height": image["height"],
            "width": image["width"],
            "annotations": [],
        }
        for image in content["images"]
    }
    for entry in content["annotations"]:
        records[entry["image_id"]]["annotations"].append(
            {
                "bbox": entry["bbox"],
                "bbox_mode": BoxMode.XYWH_ABS,
                "iscrowd": entry["iscrowd"],
                "category_id": ids[entry["category_id"]],
            }
        )
    return list(records.values())


def load(name: str) -> list[dict[str, Any]]:
    """Any registered data set: ours, or one of Detectron2's own, which fail at length.

    Raises:
        InputError: the annotation file is not there; see also `load_coco`.
    """
    json_file = MetadataCatalog.get(name).get("json_file")
    if json_file and not Path(json_file).is_file():
        raise _missing(json_file)
    return DatasetCatalog.get(name)


def set_classes(name: str, content: dict[str, Any]) -> dict[int, int]:
    """Put the file's classes into the metadata; the map from its ids to 0..K-1."""
    categories = sorted(content["categories"], key=lambda category: category["id"])
    ids = {category["id"]: index for index, category in enumerate(categories)}
    meta = MetadataCatalog.get(name)
    for key in ("thing_classes", "thing_dataset_id_to_contiguous_id", "thing_colors"):
        meta.__dict__.pop(key, None)  # a built-in name may carry another file's classes
    meta.thing_classes = [str(category["name"]) for category in categories]
    meta.thing_dataset_id_to_contiguous_id = ids
    return ids


def class_names(name: str) -> tuple[list[str], list[int]]:
    """Names and original ids of a loaded data set, in the order 0..K-1."""
    meta = MetadataCatalog.get(name)
    return list(meta.thing_classes), list(meta.thing_dataset_id_to_contiguous_id)


def check_same_classes(first: str, second: str) -> None:
    """Raises InputError where two loaded data sets do not list the same ids and names."""
    lists = []
    for name in (first, second):
        names, ids = class_names(name)
        lists.append(set(zip(ids, names, strict=True)))
    if lists[0] != lists[1]:
        raise InputError(
            MetadataCatalog.get(second).json_file,
            f"its categories differ from those of {MetadataCatalog.get(first).json_file}: only "
            f"here {sorted(lists[1] - lists[0])[:5]}, only there {sorted(lists[0] - lists[1])[:5]}",
            "give both files the same categories",
        )
