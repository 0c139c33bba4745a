"""Why figures are 0 or missing, and what was counted: lines for the log."""

from collections.abc import Iterable

import numpy as np
import torch
from detectron2.evaluation.evaluator import inference_context
from tabulate import tabulate
from torch import nn

EDGES = (0.0, 0.001, 0.01, 0.05, 0.1, 0.2, 0.5, 1.0)
COLUMNS = 3  # pairs of class and AP in a line of the table
NONE = "no objects"


def histogram(scores: np.ndarray) -> str:
    """How many scores lie between two edges, for people; only ranges that hold any."""
    if not len(scores):
        return "no scores"
    inner = np.array(EDGES[1:-1])
    counts = np.bincount(np.digitize(scores, inner), minlength=len(EDGES) - 1)
    parts = [
        f"{low:g} to {high:g}: {count}"
        for low, high, count in zip(EDGES[:-1], EDGES[1:], counts, strict=True)
        if count
    ]
    return f"best score {scores.max():.3g}; " + ", ".join(parts)


def shares(parts: Iterable[tuple[int, int]], images: int) -> str:
    """What was evaluated in all and by each process.

    Args:
        parts: (images, detections) of every process.
        images: of the data set.
    """
    parts = list(parts)
    total = f"{sum(n for n, _ in parts)} of {images} images, {sum(d for _, d in parts)} detections"
    if len(parts) == 1:
        return total
    own = "; ".join(f"process {n}: {i} images, {d}" for n, (i, d) in enumerate(parts))
    return f"{total} ({own})"


def figure_table(figures: dict[str, float]) -> str:
    """One line of figures in percent; "no objects" where there is nothing to find."""
    values = [f"{value:.3f}" if value == value else NONE for value in figures.values()]
    return tabulate([values], headers=list(figures), tablefmt="pipe", stralign="center")


def class_table(ap: dict[str, float]) -> str:
    """AP of every class in percent, several in a line."""
    cells = [(name, f"{value:.3f}" if value == value else NONE) for name, value in ap.items()]
    columns = min(COLUMNS, len(cells))
    rows = [sum(cells[i : i + columns], ()) for i in range(0, len(cells), columns)]
    return tabulate(rows, headers=["class", "AP"] * columns, tablefmt="pipe", disable_numparse=True)


@torch.no_grad()
def scores_without_threshold(model: nn.Module, loader: Iterable, images: int) -> np.ndarray:
    """Scores of a detector's boxes where no score is too low.

    Args:
        model: it has Detectron2's box predictors, whose threshold is set to 0 for the time being.
        images: so many of the loader's first are looked at, or one batch more.

    Returns:
        float64 (N,); N is 0 for a model without a threshold.
    """
    predictors = [m for m in model.modules() if hasattr(m, "test_score_thresh")]
    if not predictors:
        return np.zeros(0)
    before = [predictor.test_score_thresh for predictor in predictors]
    found, seen = [np.zeros(0)], 0
    try:
        for predictor in predictors:
            predictor.test_score_thresh = 0.0
        with inference_context(model):
            for batch in loader:
                found += [x["instances"].scores.double().cpu().numpy() for x in model(batch)]
                seen += len(batch)
                if seen >= images:
                    break
    finally:
        for predictor, threshold in zip(predictors, before, strict=True):
            predictor.test_score_thresh = threshold
    return np.concatenate(found)
