"""Which object an anchor belongs to, in memory that does not grow with the number of objects."""

import torch
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, pairwise_iou

LARGEST = 2**22  # overlaps at once: 16 MB of float32, and twice that on the way


def match_anchors(
    objects: Boxes, anchors: Boxes, matcher: Matcher
) -> tuple[torch.Tensor, torch.Tensor]:
    """Detectron2's ``matcher(pairwise_iou(objects, anchors))``, some objects at a time.

    With 28,728 anchors (an image of 600 x 1000 pixels) and 1,000 objects the whole matrix has
    115 MB, and the steps to it several of twice that.

    Args:
        objects: G boxes. anchors: R boxes.

    Returns:
        For each anchor the number of its object, int64 (R,), and its label, int8 (R,): -1 ignored,
        0 background, 1 foreground. Equal to Detectron2's to the last one.
    """
    rows = max(1, LARGEST // max(1, len(anchors)))
    if len(objects) <= rows:
        return matcher(pairwise_iou(objects, anchors))
    best = anchors.tensor.new_full((len(anchors),), -1.0)
    numbers = torch.zeros(len(anchors), dtype=torch.int64, device=best.device)
    is_rescued = torch.zeros(len(anchors), dtype=torch.bool, device=best.device)
    for start in range(0, len(objects), rows):
        overlaps = pairwise_iou(objects[start : start + rows], anchors)
        values, own = overlaps.max(dim=0)
        is_better = values > best  # of equal ones the first stays
        best = torch.where(is_better, values, best)
        numbers = torch.where(is_better, own + start, numbers)
        # An object's best anchors are its own, however little they overlap (Ren et al., Sec. 3.1.2)
        is_rescued |= (overlaps == overlaps.amax(dim=1, keepdim=True)).any(dim=0)
    return numbers, _labels(best, is_rescued, matcher)


def _labels(best: torch.Tensor, is_rescued: torch.Tensor, matcher: Matcher) -> torch.Tensor:
    labels = torch.ones_like(best, dtype=torch.int8)
    bounds = zip(matcher.labels, matcher.thresholds[:-1], matcher.thresholds[1:], strict=True)
    for label, low, high in bounds:
        labels[(best >= low) & (best < high)] = label
    if matcher.allow_low_quality_matches:
        labels[is_rescued] = 1
    return labels
