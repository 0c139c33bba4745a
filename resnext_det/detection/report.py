"""The pictures at the end of a run: curves, detections, proposals, precision against recall."""

import copy
import json
import logging
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.structures import Instances
from detectron2.utils.visualizer import ColorMode, Visualizer
from torch import nn

from .. import plots
from ..data.images import read_array
from .confusion import labels_of, match
from .loaders import NamingMapper

logger = logging.getLogger(__name__)

SCORE_SHOWN = 0.5
PROPOSALS_SHOWN = 15
IMAGES_SHOWN = 6


def draw(cfg: CfgNode, model: nn.Module, results: dict[str, dict]) -> None:
    """Write OUTPUT_DIR/pictures/*.png for the first data set of DATASETS.TEST."""
    folder = Path(cfg.OUTPUT_DIR, "pictures")
    folder.mkdir(parents=True, exist_ok=True)
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
        plots.precision_recall(
            np.load(curves, allow_pickle=False),
            MetadataCatalog.get(name).thing_classes,
            results["bbox"],
            folder / "precision_recall.png",
        )


def _draw_sheets(cfg: CfgNode, model: nn.Module, folder: Path, name: str) -> None:
    records = DatasetCatalog.get(name)
    # Evenly spread over the set, so that the same images are shown at every run.
    chosen = [records[i] for i in np.linspace(0, len(records) - 1, IMAGES_SHOWN).astype(int)]
    mapper = NamingMapper(cfg, is_train=False)
    detections, proposals = [], []
    for record in chosen:
        output = model.eval()([mapper(record)])[0]
        image = read_array(record["file_name"])
        meta = MetadataCatalog.get(name)
        truth = _truth(image, record, meta)
        detections += [truth, _predictions(image, output["instances"], meta)]
        proposals += [truth, _proposals(image, output.get("proposals"), meta)]
    plots.sheet(
        detections,
        folder / "detections.png",
        columns=4,
        titles=["ground truth", f"detections, score over {SCORE_SHOWN:g}"],
    )
    plots.sheet(
        proposals,
        folder / "proposals.png",
        columns=4,
        titles=["ground truth", f"the RPN's best {PROPOSALS_SHOWN} proposals"],
    )


def _draw_mistakes(cfg: CfgNode, model: nn.Module, folder: Path, name: str) -> None:
    """Confusion matrix, and the images with most mistakes."""
    path = Path(cfg.OUTPUT_DIR, "inference", name, "confusion.json")
    if not path.exists():
        return
    found = json.loads(path.read_text())
    title = f"score {found['score']:g} or more, IoU {found['iou']:g}"
    counts = np.array(found["counts"])
    plots.confusion(counts, found["classes"], folder / "confusion.png", title=title)
    records = {record["image_id"]: record for record in DatasetCatalog.get(name)}
    mapper, meta = NamingMapper(cfg, is_train=False), MetadataCatalog.get(name)
    only = [k for k, own in enumerate(meta.thing_classes) if own in found["classes"][:-1]]
    pictures, titles = [], []
    for worst in found["worst"]:
        record = records[worst["image_id"]]
        output = model.eval()([mapper(record)])[0]
        matched = match(output["instances"], record, only=only)
        boxes, words, colors = labels_of(matched, meta.thing_classes)
        wrong, missed = int((~matched.right).sum()), int(matched.missed.sum())
        titles += [Path(record["file_name"]).name, f"{wrong} wrong (red), {missed} missed (orange)"]
        image = read_array(record["file_name"])
        drawn = canvas(image, meta).overlay_instances(
            boxes=boxes or None, labels=words, assigned_colors=colors
        )
        pictures += [_truth(image, record, meta), drawn.get_image()]
    if pictures:
        plots.sheet(pictures, folder / "worst.png", columns=4, titles=titles)


def canvas(image: np.ndarray, meta: Metadata) -> Visualizer:
    """To draw boxes on. Small images are drawn larger, or the labels would hide the objects."""
    return Visualizer(
        image, meta, scale=max(1.0, 480 / image.shape[1]), instance_mode=ColorMode.IMAGE
    )


def _truth(image: np.ndarray, record: dict, meta) -> np.ndarray:
    return canvas(image, meta).draw_dataset_dict(copy.deepcopy(record)).get_image()


def _predictions(image: np.ndarray, found: Instances, meta) -> np.ndarray:
    found = found.to("cpu")
    shown = found[found.scores > SCORE_SHOWN]
    return canvas(image, meta).draw_instance_predictions(shown).get_image()


def _proposals(image: np.ndarray, found: Instances | None, meta) -> np.ndarray:
    boxes = torch.zeros(0, 4) if found is None else found.proposal_boxes.tensor.cpu()
    best = boxes[:PROPOSALS_SHOWN].numpy()
    return canvas(image, meta).overlay_instances(boxes=best).get_image()
