"""AP and average recall of packed detections, by pycocotools' definition.

Figures are those of ``COCOeval.summarize``. Three things there surprise, and are done right here:
an annotation id 0 counts as any other; a cap other than 100 is followed (``COCOeval`` prints -1,
and sorts a cap under 10 below its 10); no detections at all is an AP of 0, not an error.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import InputError
from .scorer_arrays import Detections, Truth
from .scorer_backends import BACKENDS, choose

AREAS = ("all", "small", "medium", "large")
IOUS = np.linspace(0.5, 0.95, 10)
AP_FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl")


@dataclass(frozen=True)
class Scores:
    """What a back end found, for K classes; -1 where there is no object to find.

    Args:
        precision: float64 (10 IoUs, 101 recalls, K, 4 areas, 3 caps), 0..1.
        recall: float64 (10, K, 4, 3), 0..1.
        max_dets: the largest cap: detections of an image and class that count.
        backend: who scored.
    """

    precision: np.ndarray
    recall: np.ndarray
    max_dets: int
    backend: str

    def figures(self) -> dict[str, float]:
        """pycocotools' twelve, in its order; percent, NaN where there is no object.

        AR@1 and AR@10 over all objects, then AR, ARs, ARm, ARl at the largest cap.
        """
        precision, recall = self.precision[..., -1], self.recall[..., -1]
        by_size = range(1, len(AREAS))
        return {
            "AP": _mean(precision[..., 0]),
            "AP50": _mean(precision[0, ..., 0]),
            "AP75": _mean(precision[5, ..., 0]),
            **{f"AP{AREAS[a][0]}": _mean(precision[..., a]) for a in by_size},
            "AR@1": _mean(self.recall[..., 0, 0]),
            "AR@10": _mean(self.recall[..., 0, 1]),
            "AR": _mean(recall[..., 0]),
            **{f"AR{AREAS[a][0]}": _mean(recall[..., a]) for a in by_size},
        }

    def class_ap(self) -> list[float]:
        """AP of every class, percent; NaN for one without objects, or that was left out."""
        curves = self.curves()
        return [_mean(curves[..., k]) for k in range(curves.shape[2])]

    def curves(self) -> np.ndarray:
        """Precision over all areas at the largest cap: float64 (10, 101, K), -1 as above."""
        return self.precision[..., 0, -1]


def _mean(values: np.ndarray) -> float:
    """Percent over what is there; NaN without anything."""
    there = values[values > -1]
    return float(np.mean(there) * 100) if there.size else float("nan")


def caps_of(max_dets: int) -> tuple[int, int, int]:
    """1, 10 and ``max_dets``, none above ``max_dets``: pycocotools sorts them, and takes the last.

    Raises:
        InputError: a cap under 1.
    """
    if max_dets < 1:
        raise InputError(
            "TEST.DETECTIONS_PER_IMAGE", f"is {max_dets}, so nothing can be scored", "set it to 100"
        )
    return min(1, max_dets), min(10, max_dets), max_dets


def check_class_names(names: Sequence[str], known: Sequence[str], file: str | Path) -> None:
    """Raises InputError for a name of TEST.CLASSES that is none of ``known``, those of ``file``."""
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(
            "TEST.CLASSES",
            f"holds {unknown[0]!r}, no class of {file}",
            f"choose from {', '.join(known)}",
        )


def class_numbers(truth: Truth, names: Sequence[str]) -> np.ndarray:
    """The classes of TEST.CLASSES as ascending numbers; without names, all.

    Raises:
        InputError: a name that the data set does not have.
    """
    check_class_names(names, truth.class_names, truth.file)
    chosen = [k for k, name in enumerate(truth.class_names) if not names or name in names]
    return np.array(chosen, dtype=np.int64)


def score(
    truth: Truth,
    found: Detections,
    *,
    max_dets: int = 100,
    classes: Sequence[str] = (),
    scorer: str = "auto",
    iou_type: str = "bbox",
) -> Scores:
    """Match detections to objects and count, as COCO does.

    Args:
        max_dets: of an image **and class**, by score, so many count: pycocotools' rule.
        classes: names; objects and detections of others are left out. (): all.
        scorer: see `scorer_backends.choose`.
        iou_type: "bbox", or "segm" where both sides have masks.

    Raises:
        InputError: see `caps_of`, `class_numbers` and `scorer_backends.choose`.
    """
    caps, chosen = caps_of(max_dets), class_numbers(truth, classes)
    backend = choose(scorer, iou_type)
    own = BACKENDS[backend](truth.of_classes(chosen), found.of_classes(chosen), caps, iou_type)
    precision, recall = (_over_all_classes(curves, chosen, len(truth.class_ids)) for curves in own)
    return Scores(precision=precision, recall=recall, max_dets=max_dets, backend=backend)


def _over_all_classes(curves: np.ndarray, chosen: np.ndarray, classes: int) -> np.ndarray:
    """Classes are the third axis from the end; those that were left out have -1."""
    shape = (*curves.shape[:-3], classes, *curves.shape[-2:])
    full = np.full(shape, -1.0)
    full[..., chosen, :, :] = curves
    return full
