"""AP, AP50 and average recall, on Detectron2's COCO evaluator."""

import logging
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, inference_on_dataset
from detectron2.evaluation.coco_evaluation import _evaluate_box_proposals
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from pycocotools.coco import COCO
from torch import nn

from ..data.coco import read_registered
from ..errors import InputError
from .loaders import build_test_loader

logger = logging.getLogger(__name__)

RECALL_AT = (100, 300, 1000)
RECALLS = {  # figure -> (Detectron2's name of the areas, proposals an image)
    f"AR{suffix}@{limit}": (area, limit)
    for suffix, area in (("", "all"), ("s", "small"), ("m", "medium"), ("l", "large"))
    for limit in RECALL_AT
}
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)


def coco_api(name: str) -> COCO:
    """pycocotools' view of a registered data set, missing ``iscrowd`` and ``area`` filled in."""
    coco = COCO()
    coco.dataset = read_registered(name)
    coco.createIndex()
    return coco


class BoxEvaluator(COCOEvaluator):
    """Detectron2's evaluator on the checked annotations; keeps the precision-recall curves.

    `precision` after `evaluate`: float64 (10 IoUs, 101 recalls, classes), NaN where a class
    has no object; None where there was nothing to score.
    """

    def __init__(self, name: str, output_dir: str, max_dets: int):
        super().__init__(
            name,
            tasks=("bbox",),
            output_dir=output_dir,
            use_fast_impl=False,
            max_dets_per_image=max_dets,
        )
        self._coco_api = coco_api(name)
        self.precision: np.ndarray | None = None

    def process(self, inputs, outputs) -> None:
        super().process(inputs, [{"instances": x["instances"]} for x in outputs])

    def _derive_coco_results(self, coco_eval, iou_type, class_names=None) -> dict[str, float]:
        if coco_eval is not None:
            curves = coco_eval.eval["precision"][..., 0, -1]  # all areas, most detections
            self.precision = np.where(curves < 0, np.nan, curves)
            return super()._derive_coco_results(coco_eval, iou_type, class_names)
        # The data set has objects (checked on reading) and none was found: that is an AP of 0.
        logger.warning("no detection passed the score threshold: every AP is 0")
        return dict.fromkeys(("AP", "AP50", "AP75", "APs", "APm", "APl"), 0.0)


def _no_proposal() -> Instances:
    """A box without area: Detectron2 would leave an image without boxes, and its objects, out."""
    return Instances(
        (0, 0), proposal_boxes=Boxes(torch.zeros(1, 4)), objectness_logits=torch.zeros(1)
    )


class RecallEvaluator(DatasetEvaluator):
    """Average recall of the proposals: over IoU 0.5:0.95, percent, NaN where there is no object.

    AR@100, @300 and @1000 over all objects, then ARs@100 and so on over COCO's small, medium and
    large ones. Figures are Detectron2's; of an image only its objects' best IoUs are kept.
    """

    def __init__(self, name: str):
        self.coco = coco_api(name)

    def reset(self) -> None:
        self.overlaps: dict[str, list[torch.Tensor]] = {key: [] for key in RECALLS}

    def process(self, inputs, outputs) -> None:
        for x, output in zip(inputs, outputs, strict=True):
            found = output.get("proposals", ())
            kept = found.to("cpu") if len(found) else _no_proposal()
            for key, overlaps in self._overlaps(x["image_id"], kept).items():
                self.overlaps[key].append(overlaps)

    def _overlaps(self, image_id: int, proposals: Instances) -> dict[str, torch.Tensor]:
        """For each figure the best IoU of every object that it counts, float32 (objects,)."""
        done: dict[tuple[str, int], torch.Tensor] = {}  # 300 and 1000 of 200 are the same
        for area, limit in RECALLS.values():
            case = area, min(limit, len(proposals))
            if case not in done:
                stats = _evaluate_box_proposals(
                    [{"image_id": image_id, "proposals": proposals}],
                    self.coco,
                    thresholds=torch.zeros(1),  # not used
                    area=area,
                    limit=limit,
                )
                done[case] = stats["gt_overlaps"]
        return {
            key: done[area, min(limit, len(proposals))] for key, (area, limit) in RECALLS.items()
        }

    def evaluate(self) -> dict[str, dict[str, float]]:
        own = {key: torch.cat([torch.zeros(0), *parts]) for key, parts in self.overlaps.items()}
        gathered = comm.gather(own)
        if not comm.is_main_process():
            return {}
        return {
            "proposals": {
                key: _average_recall(torch.cat([share[key] for share in gathered]))
                for key in RECALLS
            }
        }


def _average_recall(overlaps: torch.Tensor) -> float:
    """Percent, from every object's best IoU (N,); NaN without objects."""
    if not len(overlaps):
        return float("nan")
    thresholds = torch.tensor(IOU_THRESHOLDS).float()
    recalls = [(overlaps >= t).float().sum() / float(len(overlaps)) for t in thresholds]
    return 100 * float(torch.stack(recalls).mean())


def recall_lines(recall: dict[str, float]) -> list[str]:
    """`RecallEvaluator`'s figures for people, a line for each kind of object."""
    kinds = {"": "", "s": "small objects: ", "m": "medium: ", "l": "large: "}
    return [
        kind
        + ", ".join(
            f"AR{suffix}@{limit} " + (f"{value:.1f}" if value == value else "no objects")
            for limit in RECALL_AT
            for value in [recall[f"AR{suffix}@{limit}"]]
        )
        for suffix, kind in kinds.items()
    ]


def evaluate(cfg: CfgNode, model: nn.Module, name: str) -> dict[str, dict[str, float]]:
    """Score a joined detector on one data set; percent.

    Returns:
        {"bbox": {"AP", "AP50", .., "AP-<class>"}, "proposals": {"AR@100", .., "ARs@100", ..}} on
        the main process, {} elsewhere. Precision-recall curves are left in inference/<name>/.
    """
    folder = Path(cfg.OUTPUT_DIR, "inference", name)
    boxes = BoxEvaluator(name, str(folder), cfg.TEST.DETECTIONS_PER_IMAGE)
    _check_has_objects(boxes)
    loader = build_test_loader(cfg, name)
    results = inference_on_dataset(model, loader, [boxes, RecallEvaluator(name)])
    if not comm.is_main_process():
        return {}
    curves = folder / "precision.npy"
    curves.unlink(missing_ok=True)  # of an earlier evaluation
    if boxes.precision is not None:
        np.save(curves, boxes.precision)
    box, (recall, *of_sizes) = results["bbox"], recall_lines(results["proposals"])
    logger.info(
        "%s: AP %.1f, AP50 %.1f (%d detections an image at most); %s",
        name,
        box["AP"],
        box["AP50"],
        cfg.TEST.DETECTIONS_PER_IMAGE,
        recall,
    )
    logger.info("%s: %s", name, "; ".join(of_sizes))
    return dict(results)


def _check_has_objects(boxes: BoxEvaluator) -> None:
    annotations = boxes._coco_api.dataset["annotations"]
    if all(entry["iscrowd"] for entry in annotations):
        raise InputError(
            boxes._metadata.json_file,
            "holds no object that is not a crowd, so there is no AP",
            "give a validation file with objects",
        )
