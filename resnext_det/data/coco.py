"""COCO-format data sets: named by the config, checked before use, registered with Detectron2.

The JSON file decides the classes: any unique integer ids, mapped to 0..K-1 in the order of
their ids, as Detectron2 and pycocotools do. What is checked, and what is done about it, is listed
in docs/data.md.
"""

import functools
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from ..errors import InputError
from . import coco_images
from .coco_checks import STRICT, Rules, Sizes, check_entries, rules_of
from .coco_files import collection_paused, missing_file, parse
from .coco_paths import find_images, path_of
from .findings import STOPS, Findings, check_command, log_notices, raise_first


def register_coco(
    name: str,
    json_file: str | Path,
    image_root: str | Path,
    rules: Rules = STRICT,
) -> None:
    """Make ``name`` known to Detectron2; reading and checking wait until it is used.

    Args:
        rules: see `coco_checks.Rules`.
    """
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)
    DatasetCatalog.register(name, functools.partial(load_coco, name))
    MetadataCatalog.get(name).set(
        json_file=str(json_file),
        image_root=str(image_root),
        evaluator_type="coco",
        rules=rules,
    )


def register_from_config(cfg: CfgNode) -> None:
    """Register DATASETS.COCO_JSON; called in every process, before anything is read.

    Detectron2's own names for COCO ("coco_2017_train", ...) keep their places on disk, but are
    read and checked here like any other file. Pillow's limit of pixels is set here as well.

    Raises:
        InputError: a name in DATASETS.TRAIN or TEST is registered nowhere.
    """
    coco_images.set_pixel_limit(cfg.DATASETS.MAX_IMAGE_PIXELS)
    rules = rules_of(cfg)
    for name, json_file, image_root in cfg.DATASETS.COCO_JSON:
        register_coco(name, json_file, image_root, rules)
    for key in ("TRAIN", "TEST"):
        for name in cfg.DATASETS[key]:
            if name not in DatasetCatalog:
                raise InputError(
                    f"DATASETS.{key}",
                    f"{name} is not a known data set",
                    "add [name, json, images] to DATASETS.COCO_JSON",
                )
            meta = MetadataCatalog.get(name)
            if is_coco(name) and "json_file" in meta.as_dict():
                register_coco(name, meta.json_file, meta.image_root, rules)


def is_coco(name: str) -> bool:
    """Whether a registered data set is in COCO's format."""
    return MetadataCatalog.get(name).get("evaluator_type") == "coco"


@collection_paused()
def read_coco(
    json_file: str | Path,
    rules: Rules = STRICT,
    *,
    image_root: str | Path | None = None,
) -> dict[str, Any]:
    """A COCO JSON file with every entry checked and what is missing filled in.

    `iscrowd` (0) and `area` (width x height) are filled in, the annotation id 0 is changed, and
    sizes of images are read from the pictures, each with a counted notice in the log.

    Args:
        rules: what is left out or renumbered, with a counted notice, instead of refusing the
            file; of images, only those are looked at here whose size is missing.
        image_root: the image folder; None: an image without height or width is at fault.

    Raises:
        InputError: names the file, the first entry at fault, the mend, and how many more
            there are, for: a file that is missing, not JSON or not COCO; missing fields; ids
            that are repeated or no whole numbers; an annotation of an undeclared category or
            image; a box that is not four finite numbers or has no area inside its image.
    """
    content = parse(json_file)
    findings = check_entries(json_file, content, rules, size_reader(image_root))
    raise_first(findings, check_command(json_file, image_root, rules.overrides))
    log_notices(findings)
    return content


def size_reader(image_root: str | Path | None):
    """What `coco_checks.check_entries` reads missing sizes with; None without an image folder."""
    if image_root is None:
        return None

    def read_sizes(file_names: list[str]) -> Sizes:
        headers = coco_images.read_headers([path_of(image_root, name) for name in file_names])
        return [None if header.error else header.size for header in headers]

    return read_sizes


def read_registered(name: str) -> dict[str, Any]:
    """The file of a registered data set, as `read_coco` gives it, without dropped images."""
    meta = MetadataCatalog.get(name)
    rules = meta.get("rules", STRICT)
    content = read_coco(meta.json_file, rules, image_root=meta.image_root)
    if rules.drop_bad_images:
        if meta.get("bad_images") is None:
            meta.bad_images = _bad_images(content, meta.image_root)
        leave_out(content, meta.bad_images)
    return content


def _bad_images(content: dict[str, Any], image_root: str) -> frozenset[int]:
    """Ids of images that are missing or whose header cannot be read."""
    paths = find_images(Findings(""), content["images"], image_root, drop=True)
    headers = coco_images.read_headers(list(paths.values()))
    good = {id_ for id_, header in zip(paths, headers, strict=True) if not header.error}
    return frozenset(image["id"] for image in content["images"] if image["id"] not in good)


def leave_out(content: dict[str, Any], image_ids: frozenset[int] | set[int]) -> None:
    """Take images and their annotations out of ``content``."""
    if image_ids:
        for part, field in (("images", "id"), ("annotations", "image_id")):
            content[part] = [entry for entry in content[part] if entry[field] not in image_ids]


@collection_paused()
def load_coco(name: str) -> list[dict[str, Any]]:
    """A registered data set in Detectron2's format: one dict an image, boxes XYWH_ABS pixels.

    Sets the metadata ``thing_classes`` and ``thing_dataset_id_to_contiguous_id``.

    Raises:
        InputError: see `read_coco`; also an image file that is not there.
    """
    meta = MetadataCatalog.get(name)
    content = read_registered(name)
    findings = Findings(meta.json_file)
    paths = find_images(findings, content["images"], meta.image_root)
    rules = meta.get("rules", STRICT)
    raise_first(findings.all, check_command(meta.json_file, meta.image_root, rules.overrides))
    return records_of(content, paths, set_classes(name, content), with_masks=bool(rules.masks))


def records_of(
    content: dict[str, Any],
    paths: dict[int, str],
    ids: dict[int, int],
    with_masks: bool = False,
) -> list[dict[str, Any]]:
    """Checked content in Detectron2's format.

    Args:
        paths: image id to path; other images are left out.
        ids: category id to 0..K-1.
        with_masks: keep the segmentations too.
    """
    kept = ("segmentation",) if with_masks else ()
    records = {
        image["id"]: {
            "file_name": paths[image["id"]],
            "image_id": image["id"],
            "height": image["height"],
            "width": image["width"],
            "annotations": [],
        }
        for image in content["images"]
        if image["id"] in paths
    }
    for entry in content["annotations"]:
        if entry["image_id"] in records:
            records[entry["image_id"]]["annotations"].append(
                {
                    "bbox": entry["bbox"],
                    "bbox_mode": BoxMode.XYWH_ABS,
                    "iscrowd": entry["iscrowd"],
                    "category_id": ids[entry["category_id"]],
                    **{field: entry[field] for field in kept},
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
        raise missing_file(json_file)
    return DatasetCatalog.get(name)


def contiguous_ids(content: dict[str, Any]) -> dict[int, int]:
    """The map from the file's category ids to 0..K-1."""
    ids = sorted(category["id"] for category in content["categories"])
    return {category_id: index for index, category_id in enumerate(ids)}


def set_classes(name: str, content: dict[str, Any]) -> dict[int, int]:
    """Put the file's classes into the metadata; the map from its ids to 0..K-1."""
    categories = sorted(content["categories"], key=lambda category: category["id"])
    ids = contiguous_ids(content)
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
    files = [MetadataCatalog.get(name).json_file for name in (first, second)]
    findings = Findings(files[1])
    compare_classes(findings, files[0], *lists)
    raise_first(findings.all, "")


def compare_classes(
    findings: Findings, first_file: str, first: set[tuple[int, str]], second: set[tuple[int, str]]
) -> None:
    """Record where the (id, name) pairs of two files differ; ``findings`` is the second's."""
    if first != second:
        only_here, only_there = sorted(second - first)[:5], sorted(first - second)[:5]
        findings.add(
            "categories of two files differ",
            STOPS,
            [0],
            lambda _: (
                "categories",
                f"differ from those of {first_file}: only here {only_here}, only there "
                f"{only_there}",
            ),
            "give both files the same categories",
        )
