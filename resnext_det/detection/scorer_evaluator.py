"""The evaluator that packs a network's detections, gathers them and scores them."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from ..data.coco import read_registered
from ..engine.folders import make_folder
from ..errors import InputError
from . import scorer_reasons as reasons
from .scorer import AP_FIGURES, Scores, caps_of, class_numbers, score
from .scorer_arrays import Detections, join, pack_instances, truth_of
from .scorer_backends import choose, version_of
from .scorer_results import check_image_ids, check_seen_once, whole_number, write_results

logger = logging.getLogger(__name__)


class BoxEvaluator(DatasetEvaluator):
    """COCO's AP on the checked annotations; keeps the precision-recall curves.

    A process holds 48 bytes a detection, and the main process writes all of them to
    ``coco_instances_results.json``. After `evaluate`, on the main process:

    - `precision`: float64 (10 IoUs, 101 recalls, classes), of boxes; NaN where a class has no
      object or was left out; None where nothing was found.
    - `found`: all detections.

    Args:
        name: a registered data set.
        output_dir: made if need be; "" writes nothing.
        max_dets: detections of an image and class that count.
        scorer: see `scorer_backends.choose`.
        classes: names of the classes that count; (): all.
        tasks: "bbox", and "segm" where the data set and the network have masks.

    Raises:
        InputError: no such scorer or class, a cap under 1, no object that is not a crowd.
    """

    def __init__(
        self,
        name: str,
        output_dir: str,
        max_dets: int,
        *,
        scorer: str = "auto",
        classes: Sequence[str] = (),
        tasks: Sequence[str] = ("bbox",),
    ):
        self.name, self.output_dir = name, output_dir
        self.max_dets, self.classes, self.tasks = caps_of(max_dets)[-1], tuple(classes), tasks
        self.scorer = scorer
        for task in tasks:
            choose(scorer, task)
        self.with_masks = "segm" in tasks
        json_file = MetadataCatalog.get(name).json_file
        self.truth = truth_of(read_registered(name), json_file, masks=self.with_masks)
        self.chosen = class_numbers(self.truth, self.classes)
        self._check_has_objects()
        self.places = {image_id: place for place, image_id in enumerate(self.truth.image_ids)}
        self.reset()

    def _check_has_objects(self) -> None:
        if self.truth.of_classes(self.chosen).crowd.all():
            raise InputError(
                self.truth.file,
                "holds no object that is not a crowd, so there is no AP"
                + (f" of {', '.join(self.classes)}" if self.classes else ""),
                "give a validation file with objects",
            )

    def reset(self) -> None:
        self.seen: list[Any] = []
        self.parts: list[Detections] = []
        self.precision: np.ndarray | None = None
        self.found = join([])

    def process(self, inputs, outputs) -> None:
        """Detectron2's interface: inputs hold "image_id", outputs "instances"."""
        for x, output in zip(inputs, outputs, strict=True):
            self.seen.append(x["image_id"])
            place = self.places.get(whole_number(x["image_id"]))
            if place is not None:  # others are told of when all are known
                packed = pack_instances(
                    output["instances"],
                    place,
                    num_classes=len(self.truth.class_ids),
                    masks=self.with_masks,
                )
                self.parts.append(packed)

    def evaluate(self) -> dict[str, dict[str, float]]:
        """{"bbox": {"AP", "AP50", .., "AP-<class>"}}, percent, and "segm"; {} off the main process.

        NaN where there is no object; without any detection, 0 elsewhere.

        Raises:
            InputError: image ids that are not the data set's, or one that came twice.
        """
        gathered = comm.gather((self.seen, join(self.parts, masks=self.with_masks)))
        if not comm.is_main_process():
            return {}
        self._check_images(gathered)
        self.found = join([found for _, found in gathered], masks=self.with_masks)
        if self.output_dir:
            make_folder(self.output_dir)
            path = Path(self.output_dir, "coco_instances_results.json")
            write_results(path, self.found, self.truth)
        if not len(self.found):
            logger.warning("%s: no detection passed the score threshold: every AP is 0", self.name)
        return {task: self._score(task) for task in self.tasks}

    def _check_images(self, gathered: list[tuple[list, Detections]]) -> None:
        seen = [image_id for ids, _ in gathered for image_id in ids]
        check_image_ids(seen, self.truth, self.name)
        check_seen_once(seen, self.name)
        images = len(self.truth.image_ids)
        counts = [(len(ids), len(found)) for ids, found in gathered]
        logger.info("%s: %s", self.name, reasons.shares(counts, images))
        if len(seen) < images:
            logger.warning(
                "%s: %d images were not evaluated; their objects count as missed",
                self.name,
                images - len(seen),
            )

    def _score(self, task: str) -> dict[str, float]:
        scores = score(
            self.truth,
            self.found,
            max_dets=self.max_dets,
            classes=self.classes,
            scorer=self.scorer,
            iou_type=task,
        )
        if task == "bbox" and len(self.found):
            self.precision = np.where(scores.curves() < 0, np.nan, scores.curves())
        figures = {key: scores.figures()[key] for key in AP_FIGURES}
        by_class = self._by_class(scores)
        self._log(task, scores, figures, by_class)
        return {**figures, **{f"AP-{name}": ap for name, ap in by_class.items()}}

    def _by_class(self, scores: Scores) -> dict[str, float]:
        """AP of the chosen classes; nothing for a data set of one class, whose AP it is."""
        if len(self.truth.class_ids) == 1:
            return {}
        ap = scores.class_ap()
        return {self.truth.class_names[k]: ap[k] for k in self.chosen}

    def _log(self, task: str, scores: Scores, figures: dict, by_class: dict) -> None:
        logger.info(
            "%s: %s by %s, at most %d detections of an image and class%s\n%s",
            self.name,
            task,
            version_of(scores.backend),
            self.max_dets,
            f"; of {', '.join(self.classes)} only" if self.classes else "",
            reasons.figure_table(figures),
        )
        if by_class:
            logger.info("%s: AP by class\n%s", self.name, reasons.class_table(by_class))
        if figures["AP"] == 0 and len(self.found):
            logger.warning(
                "%s: AP is 0, though there are %d detections (%s): are the classes those that the "
                "network was trained on, and the boxes in pixels of the original images?",
                self.name,
                len(self.found),
                reasons.histogram(self.found.scores),
            )
