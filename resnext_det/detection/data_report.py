"""The report of tools/check_data.py: findings, class balance, box sizes, anchors."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode

from ..data.coco_checks import rules_of
from ..data.coco_images import read_headers, set_pixel_limit
from ..data.coco_sets import CheckedSet, check_set, compare_sets
from ..data.coco_table import BoxTable
from ..data.findings import STOPS
from . import anchor_advice, anchor_report
from .anchor_report import Anchors, Objects
from .data_pictures import draw_sheet

QUANTILES = (0, 5, 25, 50, 75, 95, 100)  # percent
SMALL, LARGE = 32, 96  # sides of COCO's small and large objects, pixels

Report = dict[str, Any]


def make_report(checked: CheckedSet, cfg: CfgNode, *, advise: bool = True) -> Report:
    """Everything about one data set, as JSON keeps it.

    Args:
        advise: look for anchors that would serve better.

    Returns:
        {"json", "images", "counts", "findings", "classes", "boxes", "anchors"}; "boxes" and
        "anchors" are None where no object is left. Lengths are pixels at the network's scale,
        shares and recalls percent.
    """
    table = checked.table
    objects = anchor_report.objects_of(table, cfg)
    anchors = anchor_report.anchors_of(cfg)
    ious = anchor_report.best_iou(objects, anchors)
    return {
        "json": checked.json_file,
        "images": checked.image_root,
        "counts": _counts(checked),
        "findings": [
            {**asdict(finding), "examples": list(finding.examples)} for finding in checked.findings
        ],
        "classes": _classes(table, objects, ious),
        "boxes": _boxes(table, objects, anchors, cfg) if len(objects) else None,
        "anchors": _anchors(table, objects, anchors, ious, advise) if len(objects) else None,
    }


def _counts(checked: CheckedSet) -> dict[str, int]:
    table = checked.table
    return {
        "images": len(table.sizes),
        "images_without_objects": int((table.objects_per_image() == 0).sum()),
        "annotations": len(table),
        "crowds": int(table.is_crowd.sum()),
        "categories": len(table.class_names),
        "most_objects_in_an_image": int(table.objects_per_image().max(initial=0)),
    }


def _classes(table: BoxTable, objects: Objects, ious: np.ndarray) -> list[dict[str, Any]]:
    """A row a class, in the order of ids."""
    rows = []
    for number, name in enumerate(table.class_names):
        own = objects.category == number
        images = np.unique(table.image[objects.number[own]])
        rows.append(
            {
                "name": name,
                "objects": int(own.sum()),
                "share": _percent(own.sum(), len(objects)),
                "images": len(images),
                "recall": {k: _rounded(v) for k, v in anchor_report.recall(ious[own]).items()},
            }
        )
    return rows


def _percent(part: float, whole: float) -> float:
    return round(100 * float(part) / max(float(whole), 1), 2)


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(value, 2)


# ---- boxes ----


def _boxes(table: BoxTable, objects: Objects, anchors: Anchors, cfg: CfgNode) -> dict[str, Any]:
    width, height = objects.shapes.T
    with np.errstate(divide="ignore"):
        measures = {
            "sqrt(area)": np.sqrt(width * height),
            "width": width,
            "height": height,
            "height / width": height / np.maximum(width, 1e-6),
        }
    original = np.sqrt(table.boxes[objects.number, 2:].prod(axis=1))
    below = (objects.shapes.min(axis=1) < min(anchors.strides)).sum()
    return {
        "input_size": [cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST],
        "percentiles": list(QUANTILES),
        "quantiles": {
            name: np.percentile(values, QUANTILES).round(2).tolist()
            for name, values in measures.items()
        },
        "network_scale": _size_shares(measures["sqrt(area)"]),
        "original_scale": _size_shares(original),
        "narrower_than_a_cell": _percent(below, len(objects)),
        "cell": int(min(anchors.strides)),
    }


def _size_shares(side: np.ndarray) -> dict[str, float]:
    """COCO's three sizes, percent of the objects."""
    bins = np.bincount(np.digitize(side, (SMALL, LARGE)), minlength=3)
    names = ("small", "medium", "large")
    return {name: _percent(n, len(side)) for name, n in zip(names, bins, strict=True)}


# ---- anchors ----


def _anchors(
    table: BoxTable, objects: Objects, anchors: Anchors, ious: np.ndarray, advise: bool
) -> dict[str, Any]:
    advised = anchor_advice.advise(objects, anchors) if advise else anchors
    there = anchor_report.best_iou(objects, advised)
    number = objects.number[int(ious.argmin())]
    return {
        "config": _described(anchors, objects, ious),
        "searched": advise,
        "worst_object": {"entry": table.name(int(number)), "iou": round(float(ious.min()), 3)},
        "advice": None if advised == anchors else _described(advised, objects, there),
    }


def _described(anchors: Anchors, objects: Objects, ious: np.ndarray) -> dict[str, Any]:
    by_class = [
        anchor_report.recall(ious[objects.category == number])
        for number in np.unique(objects.category)
    ]
    mean = {key: float(np.mean([row[key] for row in by_class])) for key in by_class[0]}
    return {
        "sizes": [list(part) for part in anchors.sizes],
        "ratios": [list(part) for part in anchors.ratios],
        "strides": list(anchors.strides),
        "recall": {key: round(value, 2) for key, value in anchor_report.recall(ious).items()},
        "recall_class_mean": {key: round(value, 2) for key, value in mean.items()},
        "overrides": anchor_report.as_overrides(anchors),
    }


# ---- the whole ----


def report_on(
    sets: Sequence[tuple[str, str]],
    cfg: CfgNode,
    *,
    decode: bool = False,
    workers: int = 0,
    pictures: str = "",
) -> list[Report]:
    """Check data sets, draw their sheets, and report; the second and later beside the first.

    Args:
        sets: (COCO JSON, image folder) of each.
        cfg: the choices under DATASETS, and what the reports measure against.
        decode, workers: see `coco_images.read_headers`.
        pictures: folder of the sheets; "": none is drawn.

    Raises:
        InputError: a file is no COCO data set at all, or the config's anchors fit no report.
    """
    set_pixel_limit(cfg.DATASETS.MAX_IMAGE_PIXELS)
    read = partial(read_headers, decode=decode, workers=workers, progress=True)
    reports, first = [], None
    for number, (json_file, image_root) in enumerate(sets):
        checked = check_set(
            json_file,
            image_root,
            rules_of(cfg),
            read=read,
            most_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
            drops_empty_images=number == 0 and cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        )
        checked = checked if first is None else compare_sets(first, checked)
        first = first or checked
        # Anchors chosen on a validation set would flatter its score.
        reports.append(make_report(checked, cfg, advise=number == 0))
        if pictures:
            stems = [Path(name).stem for name, _ in sets]
            name = stems[number] + (f"_{number + 1}" if stems.index(stems[number]) < number else "")
            reports[-1]["sheet"] = _draw(checked, cfg, Path(pictures, f"{name}.png"))
    return reports


def _draw(checked: CheckedSet, cfg: CfgNode, path: Path) -> dict[str, Any]:
    failed = draw_sheet(checked, cfg, path)
    return {"path": str(path), "not_drawn": [str(error) for error in failed]}


def stops(report: Report) -> bool:
    """Whether training would not start with this set."""
    return any(finding["severity"] == STOPS for finding in report["findings"])
