"""AP, AP50 and average recall of a detector; what they count is in docs/evaluation.md."""

import logging
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.evaluation.coco_evaluation import _evaluate_box_proposals
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from pycocotools.coco import COCO
from torch import nn

from ..data.coco import read_registered
from ..engine.memory import peak_memory
from ..writing import write_array
from . import scorer_reasons as reasons
from .confusion import ConfusionEvaluator
from .loaders import build_test_loader
from .scorer import IOUS
from .scorer_evaluator import BoxEvaluator

logger = logging.getLogger(__name__)

RECALL_AT = (100, 300, 1000)
RECALLS = {  # figure -> (Detectron2's name of the areas, proposals an image)
    f"AR{suffix}@{limit}": (area, limit)
    for suffix, area in (("", "all"), ("s", "small"), ("m", "medium"), ("l", "large"))
    for limit in RECALL_AT
}
IMAGES_LOOKED_AT = 8  # for the best score, where no detection passed the threshold


def coco_api(name: str) -> COCO:
    """pycocotools' view of a registered data set, missing ``iscrowd`` and ``area`` filled in."""
    coco = COCO()
    coco.dataset = read_registered(name)
    coco.createIndex()
    return coco


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
    thresholds = torch.tensor(IOUS).float()
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


def box_evaluator(cfg: CfgNode, name: str) -> BoxEvaluator:
    """The evaluator of boxes that the config's TEST keys describe."""
    return BoxEvaluator(
        name,
        str(Path(cfg.OUTPUT_DIR, "inference", name)),
        cfg.TEST.DETECTIONS_PER_IMAGE,
        scorer=cfg.TEST.SCORER,
        classes=cfg.TEST.CLASSES,
        tasks=("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",),
    )


def evaluate(cfg: CfgNode, model: nn.Module, name: str) -> dict[str, dict[str, float]]:
    """Score a joined detector on one data set; percent.

    Returns:
        {"bbox": {"AP", "AP50", .., "AP-<class>"}, "proposals": {"AR@100", .., "ARs@100", ..}} on
        the main process, {} elsewhere; with MODEL.MASK_ON "segm" as well. Precision-recall curves
        and confusion.json (`ConfusionEvaluator`) are left in inference/<name>/.
    """
    boxes = box_evaluator(cfg, name)
    loader = build_test_loader(cfg, name)
    others = [
        RecallEvaluator(name),
        ConfusionEvaluator(name, boxes.output_dir, classes=cfg.TEST.CLASSES),
    ]
    with peak_memory("evaluation"):
        results = inference_on_dataset(model, loader, [boxes, *others])
    if not comm.is_main_process():
        return {}
    curves = Path(boxes.output_dir, "precision.npy")
    curves.unlink(missing_ok=True)  # of an earlier evaluation
    if boxes.precision is not None:
        write_array(curves, boxes.precision)
    else:
        _log_best_score(cfg, model, name)
    box, (recall, *of_sizes) = results["bbox"], recall_lines(results["proposals"])
    logger.info(
        "%s: AP %.1f, AP50 %.1f (%d detections an image at most%s); %s",
        name,
        box["AP"],
        box["AP50"],
        cfg.TEST.DETECTIONS_PER_IMAGE,
        f"; {len(boxes.chosen)} of {len(boxes.truth.class_ids)} classes" if boxes.classes else "",
        recall,
    )
    logger.info("%s: %s", name, "; ".join(of_sizes))
    if masks := results.get("segm"):
        logger.info("%s: masks: AP %.1f, AP50 %.1f", name, masks["AP"], masks["AP50"])
    return dict(results)


def _log_best_score(cfg: CfgNode, model: nn.Module, name: str) -> None:
    """Say what the network's scores are, where none was over the threshold."""
    loader = build_test_loader(cfg, name)
    scores = reasons.scores_without_threshold(model, loader, IMAGES_LOOKED_AT)
    if len(scores):
        logger.warning(
            "%s: MODEL.ROI_HEADS.SCORE_THRESH_TEST is %g; without it the first images have: %s",
            name,
            cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
            reasons.histogram(scores),
        )
