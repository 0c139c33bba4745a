"""Anchors that would serve a data set better than those of its config."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from .anchor_report import Anchors, Objects, best_iou, recall

IOU_RAMP = (0.3, 0.7)  # the RPN's background and foreground (Faster R-CNN, Sec. 3.1.2)
LEAST_GAIN = 1.0  # points of one of the shares of `serve_better`
SAMPLE = 3000  # objects that the search for anchors looks at, at most
STEPS = (0.7, 0.85, 0.95, 1.05, 1.18, 1.43)  # factors tried on a size or a ratio
ROUNDS = 20
SMALLEST = 4  # pixels, of an anchor that is advised
RATIO_LIMITS = (0.1, 10.0)


def advise(objects: Objects, anchors: Anchors) -> Anchors:
    """As many anchors as there are, their sizes and ratios moved to where the objects are.

    The measure of the search is the mean over objects of the best IoU as a share of the way from
    0.3 (which the RPN takes for background) to 0.7; half the weight is shared by objects, half by
    classes, since recall counts the former and AP the latter. Search starts from k-means of log
    sizes and from the anchors given, and multiplies one size or ratio at a time. Deterministic.
    Ratios move only where all feature maps share one list.

    Returns:
        The best by that measure of those that `serve_better`; ``anchors`` itself where none does.
    """
    if not len(objects):
        return anchors
    rows, weights = _sample(objects.category, objects.shapes.prod(axis=1))
    some = objects.some(rows)
    found = [
        _search(some, weights, start) for start in (_clustered(some, weights, anchors), anchors)
    ]
    scores = {_rounded(one): _score(some, weights, _rounded(one)) for one in found}
    before = best_iou(objects, anchors)
    for one in sorted(scores, key=scores.get, reverse=True):
        if serve_better(best_iou(objects, one), before):
            return one
    return anchors


def serve_better(ious: np.ndarray, before: np.ndarray) -> bool:
    """Whether anchors are better than those before, by the objects' best IoUs, 0..1, (N,) each.

    Of all objects the shares with an IoU of 0.5 and of 0.7 or more must both be no lower, and one
    of them higher by LEAST_GAIN points.
    """
    shares, old = recall(ious), recall(before)
    gains = [shares[key] - old[key] for key in shares]
    return min(gains) >= 0 and max(gains) >= LEAST_GAIN - 1e-9


def _sample(category: np.ndarray, area: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of SAMPLE objects at most, of each class the same number from small to large, and
    their weights, one in all: half of it the same for every object, half for every class.
    """
    order = np.lexsort((area, category))
    classes, counts = np.unique(category, return_counts=True)
    most = max(1, SAMPLE // len(classes))
    rows, weights, begin = [], [], 0
    for count in counts.tolist():
        picked = np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))
        rows.append(order[begin + picked])
        share = (count / len(category) + 1 / len(classes)) / 2
        weights.append(np.full(len(picked), share / len(picked)))
        begin += count
    return np.concatenate(rows), np.concatenate(weights)


def _score(objects: Objects, weights: np.ndarray, anchors: Anchors) -> float:
    low, high = IOU_RAMP
    return float(weights @ np.clip((best_iou(objects, anchors) - low) / (high - low), 0, 1))


def _clustered(objects: Objects, weights: np.ndarray, anchors: Anchors) -> Anchors:
    """Sizes by one-dimensional k-means of log(sqrt(area)), begun at the quantiles."""
    count = sum(map(len, anchors.sizes))
    logs = np.log(np.maximum(objects.shapes.prod(axis=1), 1)) / 2
    order = np.argsort(logs, kind="stable")
    middle = (np.arange(count) + 0.5) / count
    places = np.searchsorted(np.cumsum(weights[order]), middle).clip(max=len(logs) - 1)
    centres = logs[order][places]
    for _ in range(50):
        nearest = np.abs(logs[:, None] - centres).argmin(axis=1)
        sums = np.bincount(nearest, weights * logs, minlength=count)
        mass = np.bincount(nearest, weights, minlength=count)
        moved = np.where(mass > 0, sums / np.where(mass > 0, mass, 1), centres)
        if np.allclose(moved, centres):
            break
        centres = moved
    return _with_sizes(anchors, np.sort(np.exp(centres)).tolist())


def _with_sizes(anchors: Anchors, values: Sequence[float]) -> Anchors:
    """The same numbers of sizes a feature map, small ones on the finest."""
    left = iter(values)
    return replace(anchors, sizes=tuple(tuple(next(left) for _ in part) for part in anchors.sizes))


def _search(objects: Objects, weights: np.ndarray, anchors: Anchors) -> Anchors:
    """Multiply one number at a time by one of STEPS while the score rises."""
    best, score = anchors, _score(objects, weights, anchors)
    for _ in range(ROUNDS):
        before = score
        for changed in _neighbours(best):
            found = _score(objects, weights, changed)
            if found > score + 1e-4:
                best, score = changed, found
        if score == before:
            break
    return best


def _neighbours(anchors: Anchors) -> Iterator[Anchors]:
    """``anchors`` with one size or ratio changed."""
    flat = [size for part in anchors.sizes for size in part]
    for number in range(len(flat)):
        for step in STEPS:
            values = [*flat[:number], max(SMALLEST, flat[number] * step), *flat[number + 1 :]]
            yield _with_sizes(anchors, values)
    shared = anchors.ratios[0]
    if set(anchors.ratios) != {shared}:
        return
    for number in range(len(shared)):
        for step in STEPS:
            ratio = float(np.clip(shared[number] * step, *RATIO_LIMITS))
            values = (*shared[:number], ratio, *shared[number + 1 :])
            yield replace(anchors, ratios=(values,) * len(anchors.strides))


def _rounded(anchors: Anchors) -> Anchors:
    sizes = sorted(float(round(size)) for part in anchors.sizes for size in part)
    ratios = tuple(tuple(sorted(round(ratio, 2) for ratio in part)) for part in anchors.ratios)
    return replace(_with_sizes(anchors, sizes), ratios=ratios)
