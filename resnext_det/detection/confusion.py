"""Which class is taken for which, and in which images a detector is wrong most."""

import csv
import textwrap
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Boxes, BoxMode, Instances, pairwise_ioa, pairwise_iou
from detectron2.utils import comm
from matplotlib import colormaps
from matplotlib.figure import Figure

from .. import plots
from ..engine.run import write_json
from ..writing import open_whole
from .drawing import Mark

SCORE, IOU = 0.5, 0.5


@dataclass(frozen=True)
class Matched:
    """An image's detections and objects, brought together one to one.

    Args:
        boxes: float32 (D, 4), XYXY in pixels, of the detections that count, best first.
        classes, scores: of these detections, int64 (D,) and float32 (D,).
        object_of: for each detection the number of its object, -1 for none, int64 (D,).
        truth_boxes, truth_classes: of the objects that are no crowds, (G, 4) and (G,).
    """

    boxes: torch.Tensor
    classes: torch.Tensor
    scores: torch.Tensor
    object_of: torch.Tensor
    truth_boxes: torch.Tensor
    truth_classes: torch.Tensor

    @property
    def missed(self) -> torch.Tensor:
        """Objects that no detection has, bool (G,)."""
        missed = torch.ones(len(self.truth_boxes), dtype=torch.bool)
        missed[self.object_of[self.object_of >= 0]] = False
        return missed

    @property
    def right(self) -> torch.Tensor:
        """Detections that have an object of their own class, bool (D,)."""
        own = self.truth_classes[self.object_of.clamp(min=0)] if len(self.truth_classes) else None
        found = self.object_of >= 0
        return found if own is None else found & (own == self.classes)

    @property
    def mistakes(self) -> int:
        """Missed objects, and detections without an object or of another class."""
        return int(self.missed.sum()) + int((~self.right).sum())


def truth_of(
    record: dict, crowds: bool = False, only: Collection[int] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes (G, 4), XYXY, and classes (G,) of a record's objects, or of its crowds instead."""
    objects = [
        a
        for a in record.get("annotations", ())
        if bool(a.get("iscrowd")) == crowds and (only is None or a["category_id"] in only)
    ]
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in objects]
    classes = torch.tensor([a["category_id"] for a in objects], dtype=torch.int64)
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), classes


def match(
    found: Instances,
    record: dict,
    score: float = SCORE,
    iou: float = IOU,
    only: Collection[int] | None = None,
) -> Matched:
    """Give each detection, best first, the free object that it overlaps most, whatever its class.

    Args:
        found: a detector's instances, in pixels of the original image.
        record: the image's, in Detectron2's form.
        score, iou: least score of a detection that counts, least overlap of a match. Detections
            without an object that lie in a crowd, by that part of their area, do not count.
        only: numbers of the classes that are looked at, of detections and of objects; None: all.
    """
    truth_boxes, truth_classes = truth_of(record, only=only)
    found = found.to("cpu")
    if only is not None:
        found = found[torch.isin(found.pred_classes, torch.tensor(sorted(only)))]
    found = found[found.scores >= score]
    found = found[torch.argsort(found.scores, descending=True, stable=True)]
    boxes = found.pred_boxes.tensor
    overlaps = pairwise_iou(Boxes(boxes), Boxes(truth_boxes))
    object_of = torch.full((len(boxes),), -1)
    for number in range(len(boxes)):
        if truth_boxes.numel() and overlaps[number].max() >= iou:
            object_of[number] = best = int(overlaps[number].argmax())
            overlaps[:, best] = -1  # no longer free
    crowds, _ = truth_of(record, crowds=True, only=only)
    in_crowd = pairwise_ioa(Boxes(crowds), Boxes(boxes)) >= iou
    counts = (object_of >= 0) | ~in_crowd.any(dim=0)
    return Matched(
        boxes=boxes[counts],
        classes=found.pred_classes[counts],
        scores=found.scores[counts],
        object_of=object_of[counts],
        truth_boxes=truth_boxes,
        truth_classes=truth_classes,
    )


class ConfusionEvaluator(DatasetEvaluator):
    """Counts how often which class is taken for which; keeps the images with most mistakes.

    Args:
        name: of a registered data set, which has been loaded.
        folder: confusion.json and confusion.csv go there.
        worst: number of images kept.
        classes: names of those that are looked at (TEST.CLASSES); () is all.
    """

    def __init__(
        self, name: str, folder: str | Path, worst: int = 6, classes: Collection[str] = ()
    ):
        self.name, self.folder, self.worst = name, Path(folder), worst
        self.records = {record["image_id"]: record for record in DatasetCatalog.get(name)}
        names = list(MetadataCatalog.get(name).thing_classes)
        self.only = [k for k, own in enumerate(names) if not classes or own in classes]
        self.names = names

    def reset(self) -> None:
        self.counts = np.zeros((len(self.names) + 1,) * 2, dtype=np.int64)
        self.mistakes: list[tuple[int, int]] = []

    def process(self, inputs, outputs) -> None:
        for x, output in zip(inputs, outputs, strict=True):
            matched = match(output["instances"], self.records[x["image_id"]], only=self.only)
            count(self.counts, matched)
            self.mistakes.append((matched.mistakes, x["image_id"]))
        self.mistakes = self._most()

    def _most(self) -> list[tuple[int, int]]:
        """Most mistakes first, equal ones by image id."""
        return sorted(self.mistakes, key=lambda m: (-m[0], m[1]))[: self.worst]

    def evaluate(self) -> None:
        shares = comm.gather((self.counts, self.mistakes))
        if not comm.is_main_process():
            return
        self.counts = sum(counts for counts, _ in shares)
        self.mistakes = [mistake for _, mistakes in shares for mistake in mistakes]
        worst = [{"image_id": i, "mistakes": n} for n, i in self._most() if n]
        shown = [*self.only, len(self.names)]
        classes = [*(self.names[k] for k in self.only), "background"]
        counts = self.counts[np.ix_(shown, shown)].tolist()
        facts = {"classes": classes, "score": SCORE, "iou": IOU, "counts": counts, "worst": worst}
        write_json(self.folder / "confusion.json", facts)
        write_table(self.folder / "confusion.csv", classes, counts)


def write_table(path: Path, classes: list[str], counts: list[list[int]]) -> None:
    """The matrix for a spreadsheet: a row a true class, a column a detected one."""
    with open_whole(path, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["object", *classes[:-1], "missed"])
        for name, row in zip([*classes[:-1], "no object"], counts, strict=True):
            rows.writerow([name, *row])


def count(counts: np.ndarray, matched: Matched) -> None:
    """Add an image to ``counts`` (K + 1, K + 1): rows are true classes, columns detected ones.

    The last row is detections without an object, the last column objects without a detection.
    """
    background = len(counts) - 1
    for kind, number in zip(matched.classes.tolist(), matched.object_of.tolist(), strict=True):
        true = background if number < 0 else int(matched.truth_classes[number])
        counts[true, kind] += 1
    for true in matched.truth_classes[matched.missed].tolist():
        counts[true, background] += 1


# ---- for a picture ----

# No colours of classes, which the truth beside it has; kinds of lines tell the rest.
RIGHT, WRONG, MISSED = "white", "red", "white"
THIN, THICK = 0.6, 1.6
IN_WORDS = {"right": "thin white", "wrong": "thick red", "missed": "dashed white"}
UNCOLOURED = "0.94"  # grey: a count that is no share of anything
LETTERS = 12  # of a title, an inch of the figure's width


def draw_matrix(
    counts: np.ndarray, names: Sequence[str], path: str | Path, *, title: str, most: int = 20
) -> None:
    """Counts as a heat map, each row by its own sum: which class is taken for which.

    The last row, detections without an object, has no colour: it has no objects to be shares of.

    Args:
        counts: (K + 1, K + 1), rows true, columns detected, background last.
        names: K + 1.
        most: of more classes than this, those with most mistakes are shown.
    """
    shown = _most_confused(counts, most)
    if len(shown) < len(counts):
        title += f"\nthe {most} of {len(counts) - 1} classes with most mistakes"
    counts, names = counts[np.ix_(shown, shown)], [plots.label(names[k]) for k in shown]
    shares = np.ma.array(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))
    shares[-1] = np.ma.masked
    side = 2.2 + 0.45 * len(names)
    figure = Figure(figsize=(side + 1.4, side), layout="compressed")
    axis = figure.subplots()
    colors = colormaps["Blues"].with_extremes(bad=UNCOLOURED)
    picture = axis.imshow(shares, cmap=colors, vmin=0, vmax=1)
    for (row, column), number in np.ndenumerate(counts):
        if number:
            color = "white" if shares.filled(0)[row, column] > 0.5 else "black"
            axis.text(column, row, number, ha="center", va="center", color=color, fontsize=8)
    rows = [*names[:-1], "no object"]
    columns = [*names[:-1], "missed"]
    turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axis.set_xticks(range(len(names)), columns, **turned)
    axis.set_yticks(range(len(names)), rows)
    axis.set(xlabel="detected as", ylabel="object")
    most = int(LETTERS * (side + 1.4))
    lines = [part for line in title.split("\n") for part in textwrap.wrap(line, most)]
    # Over the whole width: one class has a small axis.
    figure.suptitle("\n".join(lines), fontsize=10)
    figure.colorbar(picture, label="share of the class's objects", shrink=0.8)
    figure.savefig(path, dpi=110, bbox_inches="tight")


def _most_confused(counts: np.ndarray, most: int) -> list[int]:
    """The classes to show, in order, and the background."""
    classes = len(counts) - 1
    wrong = counts.sum(axis=0) + counts.sum(axis=1) - 2 * np.diag(counts)
    ranked = sorted(range(classes), key=lambda k: (-wrong[k], k))[:most]
    return [*sorted(ranked), classes]


def marks_of(matched: Matched, names: Sequence[str]) -> list[Mark]:
    """What is wrong, missed and right, in this order.

    What is right has no text, and of the missed objects of a class only the first one: the
    others' texts would cover the picture.
    """
    right, wrong = [], []
    for box, kind, score, is_right in zip(
        matched.boxes.tolist(),
        matched.classes.tolist(),
        matched.scores.tolist(),
        matched.right.tolist(),
        strict=True,
    ):
        if is_right:
            right.append(Mark(box, RIGHT, width=THIN))
        else:
            wrong.append(Mark(box, WRONG, f"{names[kind]}? {score:.0%}", width=THICK))
    return [*wrong, *_missed_marks(matched, names), *right]


def _missed_marks(matched: Matched, names: Sequence[str]) -> list[Mark]:
    boxes = matched.truth_boxes[matched.missed].tolist()
    kinds = matched.truth_classes[matched.missed].tolist()
    counts, told, marks = Counter(kinds), set(), []
    for box, kind in zip(boxes, kinds, strict=True):
        count = f" x {counts[kind]}" if counts[kind] > 1 else ""
        text = "" if kind in told else f"missed {names[kind]}{count}"
        marks.append(Mark(box, MISSED, text, line="--"))
        told.add(kind)
    return marks
