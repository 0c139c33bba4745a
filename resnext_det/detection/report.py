"""The pictures at the end of a run: curves, detections, proposals, precision against recall."""

import json
import logging
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import nn

from .. import plots
from ..data.images import read_array
from ..engine.folders import make_folder
from .confusion import IN_WORDS, Matched, draw_matrix, marks_of, match
from .drawing import class_color, draw_detections, draw_marks, draw_proposals, draw_truth
from .loaders import NamingMapper
from .sheets import FIELD, write_sheet

logger = logging.getLogger(__name__)

SCORE_SHOWN = 0.5
PROPOSALS_SHOWN = 15
IMAGES_SHOWN = 6
COLUMNS = 4
CLASSES_SHOWN = 48  # characters of their names in a title


def draw(cfg: CfgNode, model: nn.Module, results: dict[str, dict]) -> None:
    """Write OUTPUT_DIR/pictures/*.png for the first data set of DATASETS.TEST."""
    model.eval()
    folder = Path(cfg.OUTPUT_DIR, "pictures")
    make_folder(folder)
    name = cfg.DATASETS.TEST[0]
    _draw_curves(cfg, folder)
    _draw_precision(cfg, folder, name, results[name])
    _draw_sheets(cfg, model, folder, name)
    _draw_mistakes(cfg, model, folder, name)
    for path in sorted(folder.glob("*.png")):
        logger.info("picture: %s", path)


def _draw_curves(cfg: CfgNode, folder: Path) -> None:
    metrics = {
        "RPN": Path(cfg.OUTPUT_DIR, "rpn", "metrics.json"),
        "Fast R-CNN": Path(cfg.OUTPUT_DIR, "fast_rcnn", "metrics.json"),
        "RPN and Fast R-CNN": Path(cfg.OUTPUT_DIR, "joint", "metrics.json"),
    }
    found = {stage: path for stage, path in metrics.items() if path.exists()}
    if found:
        plots.training_curves(found, folder / "curves.png")


def _draw_precision(cfg: CfgNode, folder: Path, name: str, results: dict) -> None:
    curves = Path(cfg.OUTPUT_DIR, "inference", name, "precision.npy")
    if curves.exists():
        names = MetadataCatalog.get(name).thing_classes
        plots.precision_recall(
            np.load(curves, allow_pickle=False),
            names,
            results["bbox"],
            folder / "precision_recall.png",
            colors=[class_color(number) for number in range(len(names))],
            title=_named(name, cfg.TEST.CLASSES),
        )


def _named(name: str, classes: Collection[str]) -> str:
    """The data set and, where only some are looked at, the classes."""
    chosen = f" (classes: {plots.label(', '.join(classes), CLASSES_SHOWN)})" if classes else ""
    return plots.label(name, CLASSES_SHOWN) + chosen


def _draw_sheets(cfg: CfgNode, model: nn.Module, folder: Path, name: str) -> None:
    records = DatasetCatalog.get(name)
    # Evenly spread over the set, so that the same images are shown at every run.
    chosen = [records[i] for i in np.linspace(0, len(records) - 1, IMAGES_SHOWN).astype(int)]
    mapper, names = NamingMapper(cfg, is_train=False), MetadataCatalog.get(name).thing_classes
    detections, proposals, seen = [], [], _classes_of(chosen)
    detected: set[int] = set()
    for record in chosen:
        output = model([mapper(record)])[0]
        image, found = read_array(record["file_name"]), output["instances"]
        found = found[found.scores >= SCORE_SHOWN]
        detected.update(found.pred_classes.tolist())
        truth = draw_truth(image, record, names, FIELD)
        detections += [truth, draw_detections(image, found, names, FIELD)]
        best = output.get("proposals")
        proposals += [truth, draw_proposals(image, best, PROPOSALS_SHOWN, FIELD)]
    write_sheet(
        detections,
        folder / "detections.png",
        columns=COLUMNS,
        titles=["ground truth", f"detections, score {SCORE_SHOWN:g} or more"],
        legend=_legend(names, seen | detected),
    )
    title = f"the RPN's best {PROPOSALS_SHOWN} proposals, from yellow to violet"
    write_sheet(
        proposals,
        folder / "proposals.png",
        columns=COLUMNS,
        titles=["ground truth", title],
        legend=_legend(names, seen),
    )


def _classes_of(records: Iterable[dict]) -> set[int]:
    return {a["category_id"] for record in records for a in record.get("annotations", ())}


def _legend(names: list[str], shown: set[int]) -> list[tuple[str, tuple]]:
    return [(names[number], class_color(number)) for number in sorted(shown)]


def _draw_mistakes(cfg: CfgNode, model: nn.Module, folder: Path, name: str) -> None:
    """Confusion matrix, and the images with most mistakes."""
    path = Path(cfg.OUTPUT_DIR, "inference", name, "confusion.json")
    if not path.exists():
        return
    found = json.loads(path.read_text())
    rule = f"score {found['score']:g} or more, IoU {found['iou']:g} or more"
    title = f"{_named(name, cfg.TEST.CLASSES)}\n{rule}"
    counts = np.array(found["counts"])
    draw_matrix(counts, found["classes"], folder / "confusion.png", title=title)
    records = {record["image_id"]: record for record in DatasetCatalog.get(name)}
    mapper, names = NamingMapper(cfg, is_train=False), MetadataCatalog.get(name).thing_classes
    only = [k for k, own in enumerate(names) if own in found["classes"][:-1]]
    shown = [_with_classes(records[worst["image_id"]], only) for worst in found["worst"]]
    pictures, titles = [], []
    for record in shown:
        output = model([mapper(record)])[0]
        matched = match(output["instances"], record, only=only)
        titles += [f"{Path(record['file_name']).name}\nground truth", _tell(matched)]
        image = read_array(record["file_name"])
        drawn = draw_marks(image, marks_of(matched, names), side=FIELD)
        pictures += [draw_truth(image, record, names, FIELD), drawn]
    if pictures:
        write_sheet(
            pictures,
            folder / "worst.png",
            columns=COLUMNS,
            titles=titles,
            legend=_legend(names, _classes_of(shown)),
        )


def _with_classes(record: dict, only: Collection[int]) -> dict:
    """The record without annotations of other classes."""
    kept = [a for a in record.get("annotations", ()) if a["category_id"] in only]
    return {**record, "annotations": kept}


def _tell(matched: Matched) -> str:
    right, missed = int(torch.count_nonzero(matched.right)), int(matched.missed.sum())
    counts = {"right": right, "wrong": len(matched.right) - right, "missed": missed}
    return ", ".join(f"{count} {kind} ({IN_WORDS[kind]})" for kind, count in counts.items())
