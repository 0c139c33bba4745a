"""The best proposals of an image, by NMS of no more boxes than are needed for them.

Greedy NMS decides on a box by better ones alone. So what it keeps of the best boxes is what it
keeps of them among all, and once these are as many as are wanted, the rest need not be looked at:
of the 6,000 boxes that reach the NMS of a C4 detector a few hundred decide which 300 remain.
"""

import torch
from detectron2.structures import Boxes, Instances
from torchvision.ops import nms

START = 2  # times the number wanted: the boxes looked at first


def first_kept(
    boxes: torch.Tensor, scores: torch.Tensor, threshold: float, most: int
) -> torch.Tensor:
    """``nms(boxes, scores, threshold)[:most]``, int64.

    Args:
        boxes: (N, 4), XYXY. scores: (N,), falling. threshold: of IoU, 0..1.
    """
    looked_at = START * most
    while True:
        kept = nms(boxes[:looked_at], scores[:looked_at], threshold)
        if len(kept) >= most or looked_at >= len(boxes):
            return kept[:most]
        looked_at *= 2


def best_proposals(
    boxes: torch.Tensor,
    logits: torch.Tensor,
    image_size: tuple[int, int],
    threshold: float,
    most: int,
    least_side: float,
) -> Instances:
    """What Detectron2's ``find_top_rpn_proposals`` makes of one image's best boxes.

    Of equal scores the first come first; there Detectron2 sorts once more, by a sort that leaves
    their order open.

    Args:
        boxes: (N, 4), finite, before clipping. logits: (N,), falling.
        image_size: height and width, pixels.
        most: proposals that are kept at most.
        least_side: smaller boxes are left out, pixels.
    """
    clipped = Boxes(boxes)
    clipped.clip(image_size)
    is_large = clipped.nonempty(threshold=least_side)
    if not is_large.all():
        clipped, logits = clipped[is_large], logits[is_large]
    kept = first_kept(clipped.tensor.float(), logits, threshold, most)
    return Instances(image_size, proposal_boxes=clipped[kept], objectness_logits=logits[kept])
