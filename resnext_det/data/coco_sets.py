"""Whole data sets checked, entries and pictures: one alone, or all that a config trains with."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils import comm

from ..errors import InputError
from . import coco
from .coco_checks import Rules, check_entries, rules_of
from .coco_files import collection_paused, parse
from .coco_images import Header, read_headers
from .coco_paths import find_images
from .coco_pictures import check_pictures
from .coco_suspicions import check_whole
from .coco_table import BoxTable, table_of
from .findings import NOTICED, STOPS, Finding, Findings, check_command, log_notices, raise_first

logger = logging.getLogger(__name__)

Reader = Callable[[list[str]], list[Header]]


@dataclass(frozen=True)
class CheckedSet:
    """A data set after all checks.

    Args:
        json_file, image_root: as given.
        content: what is left of the file: usable entries, mended (`coco_checks.check_entries`).
        paths: image id to path, of the images that are there and can be read.
        bad_images: ids of those that were left out by DATASETS.DROP_BAD_IMAGES.
        findings: all that was found.
        table: ``content`` as arrays.
    """

    json_file: str
    image_root: str
    content: dict[str, Any]
    paths: dict[int, str]
    bad_images: frozenset[int]
    findings: list[Finding]
    table: BoxTable

    @property
    def classes(self) -> set[tuple[int, str]]:
        """(id, name) of every category."""
        return {(entry["id"], str(entry["name"])) for entry in self.content["categories"]}

    @property
    def stops(self) -> list[Finding]:
        """What training does not start with."""
        return [finding for finding in self.findings if finding.severity == STOPS]


@collection_paused()
def check_set(
    json_file: str | Path,
    image_root: str | Path,
    rules: Rules,
    *,
    read: Reader,
    most_detections: int,
    drops_empty_images: bool,
) -> CheckedSet:
    """Every check there is, on one COCO file and its pictures; collects instead of raising.

    Args:
        read: paths to headers, see `coco_images.read_headers`.
        most_detections, drops_empty_images: see `coco_suspicions.check_whole`.

    Raises:
        InputError: the file is no COCO file at all (see `coco_files.parse`).
    """
    content = parse(json_file)
    findings = Findings(json_file)
    as_given = content["annotations"]
    findings.all += check_entries(json_file, content, rules, coco.size_reader(image_root))
    unmended = as_given if any(f.severity == STOPS for f in findings.all) else ()
    drop = rules.drop_bad_images
    paths = find_images(findings, content["images"], image_root, drop=drop)
    headers = dict(zip(paths, read(list(paths.values())), strict=True))
    unread = check_pictures(findings, content["images"], paths, headers, drop=drop)
    paths = {image_id: path for image_id, path in paths.items() if image_id not in unread}
    bad = frozenset(entry["id"] for entry in content["images"] if entry["id"] not in paths)
    if drop:
        coco.leave_out(content, bad)
    table = table_of(content)
    check_whole(
        findings,
        table,
        most_detections=most_detections,
        drops_empty_images=drops_empty_images,
        unmended=unmended,
    )
    return CheckedSet(
        json_file=str(json_file),
        image_root=str(image_root),
        content=content,
        paths=paths,
        bad_images=bad if drop else frozenset(),
        findings=findings.all,
        table=table,
    )


# ---- several sets ----


def compare_sets(first: CheckedSet, second: CheckedSet) -> CheckedSet:
    """``second`` with what is found beside ``first``: other categories, the same pictures."""
    findings = Findings(second.json_file)
    coco.compare_classes(findings, first.json_file, first.classes, second.classes)
    there = {str(Path(path).resolve()): image_id for image_id, path in first.paths.items()}
    shared = [
        (image_id, there[resolved])
        for image_id, path in second.paths.items()
        if (resolved := str(Path(path).resolve())) in there
    ]
    findings.add(
        "picture in two sets",
        NOTICED,
        range(len(shared)),
        lambda n: (f"image {shared[n][0]}", f"is image {shared[n][1]} of {first.json_file} too"),
        "a score on pictures that were trained on says little: take them out of one of the two",
    )
    return replace(second, findings=[*second.findings, *findings.all])


# ---- before training ----


def check_config_sets(cfg: CfgNode) -> None:
    """Check DATASETS.TRAIN and TEST, every entry and the header of every picture.

    Each process reads its share of the headers and tells the others. Notices go to the log, and
    the classes into Detectron2's metadata.

    Raises:
        InputError: for the first thing that stops; it says how many more there are.
    """
    first, trained, objects = cfg.DATASETS.TRAIN[0], {}, 0
    for name in dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)):
        paths, found = _check_one(cfg, name)
        logger.info("%s: %d images, all entries checked", name, len(paths))
        coco.check_same_classes(first, name)
        if name in cfg.DATASETS.TRAIN:
            _check_ids_apart(name, paths, trained)
            trained.update(dict.fromkeys(paths, name))
            objects += found
    if not objects:
        raise InputError(
            MetadataCatalog.get(first).get("json_file", first),
            f"has no object in its {len(trained)} images (nor has any other of DATASETS.TRAIN)",
            "give annotations to train on",
        )


def check_test_sets(cfg: CfgNode) -> None:
    """Check DATASETS.TEST alone, for scoring where no training set need be at hand.

    Raises:
        InputError: as `check_config_sets`.
    """
    for name in dict.fromkeys(cfg.DATASETS.TEST):
        logger.info("%s: %d images, all entries checked", name, len(_check_one(cfg, name)[0]))


def _check_one(cfg: CfgNode, name: str) -> tuple[dict[int, str], int]:
    """Image id to path of one registered data set, checked; and its number of objects."""
    if not coco.is_coco(name):
        records = coco.load(name)
        objects = sum(len(record.get("annotations", ())) for record in records)
        return {record["image_id"]: record["file_name"] for record in records}, objects
    meta = MetadataCatalog.get(name)
    is_trained = name in cfg.DATASETS.TRAIN
    checked = check_set(
        meta.json_file,
        meta.image_root,
        rules_of(cfg),
        read=partial(_read_share, decode=cfg.DATASETS.DECODE_IMAGES),
        most_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
        drops_empty_images=is_trained and cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
    )
    log_notices(checked.findings)
    raise_first(
        checked.findings, check_command(meta.json_file, meta.image_root, rules_of(cfg).overrides)
    )
    meta.bad_images = checked.bad_images
    coco.set_classes(name, checked.content)
    return checked.paths, int((~checked.table.is_crowd).sum())


def _read_share(paths: list[str], decode: bool) -> list[Header]:
    """The headers of all paths, of which this process reads each n-th."""
    rank, count = comm.get_rank(), comm.get_world_size()
    own = read_headers(paths[rank::count], decode=decode, progress=rank == 0)
    headers: list[Header] = [Header()] * len(paths)
    for other, share in enumerate(comm.all_gather(own)):
        headers[other::count] = share
    return headers


def _check_ids_apart(name: str, paths: dict[int, str], trained: dict[int, str]) -> None:
    """Stored proposals are found by image id, so that two sets of one training share none."""
    shared = [image_id for image_id in paths if image_id in trained]
    if shared:
        image_id = shared[0]
        raise InputError(
            MetadataCatalog.get(name).get("json_file", name),
            f"image {image_id} ({paths[image_id]}) has an id that {trained[image_id]}, also in "
            f"DATASETS.TRAIN, uses too (so have {len(shared) - 1} more)",
            "give the images of all training sets ids of their own",
        )
