"""Guard docs/deviations.md, detection: what the RPN makes of its keys, and the stated differences.

Anchors, targets, head, losses and proposals, with the values of Table 8's configs.
"""

import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_proposal_generator
from detectron2.modeling.anchor_generator import build_anchor_generator
from detectron2.modeling.proposal_generator.rpn import build_rpn_head
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.events import EventStorage
from recipe import cfg_of

from resnext_det.detection.proposals import proposal_cfg

# ---- anchors and targets ----


def anchors_of(height, width):
    """Of an image of so many pixels: (N, 4), and the cells of its res4."""
    cfg = cfg_of("rpn")
    generator = build_anchor_generator(cfg, [ShapeSpec(channels=1024, stride=16)])
    cells = math.ceil(height / 16), math.ceil(width / 16)
    (anchors,) = generator([torch.zeros(1, 1, *cells)])
    return anchors


def test_anchors_of_an_image_of_600_by_1000():
    anchors = anchors_of(600, 1000)
    assert len(anchors) == 38 * 63 * 12 == 28_728
    assert anchors.inside_box((600, 1000), 0).sum() == 13_685
    first = anchors.tensor[:12]
    assert ((first[:, :2] + first[:, 2:]) / 2 == 8).all()
    sides = first[:, 2:] - first[:, :2]
    areas = [float(size**2) for size in (64, 128, 256, 512) for _ in range(3)]
    torch.testing.assert_close(sides.prod(dim=1), torch.tensor(areas))
    torch.testing.assert_close(sides[:, 1] / sides[:, 0], torch.tensor([0.5, 1.0, 2.0] * 4))


def build_rpn(cfg):
    return build_proposal_generator(cfg, {"res4": ShapeSpec(channels=8, stride=16)})


def labels_of(boxes, size=(600, 1000)):
    """The RPN's anchors of an image with these objects, and their sampled labels."""
    torch.manual_seed(0)
    anchors = anchors_of(*size)
    truth = Instances(size, gt_boxes=Boxes(torch.tensor(boxes)))
    (labels,), _ = build_rpn(cfg_of("rpn")).label_and_sample_anchors([anchors], [truth])
    return anchors, labels


def test_256_anchors_an_image_and_half_of_them_positive():
    boxes = [[x, y, x + 128.0, y + 128.0] for x in range(40, 800, 60) for y in range(40, 440, 60)]
    anchors, labels = labels_of(boxes)
    assert (labels == 1).sum() == 128 and (labels == 0).sum() == 128
    assert anchors.inside_box((600, 1000), 0)[labels >= 0].all()  # none crosses the border


def test_negatives_fill_up():
    _, labels = labels_of([[500.0, 300, 640, 420]])
    assert 0 < (labels == 1).sum() < 20 and (labels >= 0).sum() == 256


def test_an_object_without_a_good_anchor_gets_its_best():
    """IoU (20 / 64)^2 at most: below the background's 0.3."""
    box = [494.0, 302, 514, 322]
    anchors, labels = labels_of([box])
    (ious,) = pairwise_iou(Boxes(torch.tensor([box])), anchors)
    assert 0 < ious.max() < 0.3
    assert torch.equal(labels == 1, ious == ious.max())


def test_difference_an_object_whose_best_anchor_crosses_the_border_gets_none():
    _, labels = labels_of([[0.0, 0, 300, 40]])
    assert (labels == 1).sum() == 0 and (labels == 0).sum() == 256


# ---- head and losses ----


def test_the_rpns_head():
    torch.manual_seed(0)
    head = build_rpn_head(cfg_of("rpn"), [ShapeSpec(channels=1024, stride=16)])
    assert head.conv.weight.shape == (1024, 1024, 3, 3)  # CONV_DIMS -1: as wide as res4
    assert head.objectness_logits.out_channels == 12 and head.anchor_deltas.out_channels == 48
    for layer in (head.conv, head.objectness_logits, head.anchor_deltas):
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.03)
        assert not layer.bias.any()


def smooth_l1(x, sigma):
    """py-faster-rcnn's, of a difference ``x``."""
    return 0.5 * (sigma * x) ** 2 if x < 1 / sigma**2 else x - 0.5 / sigma**2


@pytest.mark.parametrize("difference", [0.02, 0.1, 0.2, 1.5])
@pytest.mark.parametrize("images", [1, 2])
def test_the_rpns_losses(difference, images):
    """Sums over anchors / (256 x images); smooth L1 of sigma 3; the paper's targets, weight 1."""
    rpn = build_rpn(cfg_of("rpn"))
    anchor, moved = torch.tensor([[0.0, 0, 100, 50]]), torch.tensor([[0.0, 0, 100, 50]])
    moved[:, [0, 2]] += 100 * difference  # dx, in widths of the anchor
    labels = [torch.tensor([1])] * images
    with EventStorage():
        losses = rpn.losses(
            [Boxes(anchor)],
            [torch.full((images, 1), 2.0)],
            labels,
            [torch.zeros(images, 1, 4)],
            [moved] * images,
        )
    assert losses["loss_rpn_loc"].item() == pytest.approx(smooth_l1(difference, 3) / 256, rel=2e-3)
    assert losses["loss_rpn_cls"].item() == pytest.approx(math.log1p(math.exp(-2)) / 256)


# ---- proposals ----


def proposals_of(cfg, boxes, training=False):
    """What an RPN makes of boxes (N, 4) whose scores fall from first to last."""
    logits = torch.linspace(1, 0, len(boxes))[None]
    deltas = torch.zeros(1, len(boxes), 4)
    rpn = build_rpn(cfg).train(training)
    return rpn.predict_proposals([Boxes(boxes)], [logits], [deltas], [(600, 1000)])


def test_no_limit_before_nms_for_training_proposals():
    """The box after 6,999 equal ones: the limit of 6,000 at test hides it."""
    boxes = torch.tensor([[10.0, 10, 60, 60]]).repeat(7000, 1)
    boxes[-1] += 300
    (tested,) = proposals_of(cfg_of("rpn"), boxes)
    (stored,) = proposals_of(proposal_cfg(cfg_of("rpn")), boxes)
    assert len(tested) == 1 and len(stored) == 2


def test_2000_for_training_and_300_at_test():
    cells = [(x * 10.0, y * 10.0) for x in range(100) for y in range(60)]
    boxes = torch.tensor([[x, y, x + 9, y + 9] for x, y in cells])[:3000]
    assert len(proposals_of(cfg_of("rpn"), boxes)[0]) == 300
    (stored,) = proposals_of(proposal_cfg(cfg_of("rpn")), boxes)
    assert torch.equal(stored.proposal_boxes.tensor, boxes[:2000])


def test_the_rpn_alone_makes_none_while_it_trains():
    assert proposals_of(cfg_of("rpn"), torch.tensor([[0.0, 0, 9, 9]]), training=True) == []


@pytest.mark.parametrize("width, kept", [(69, 2), (71, 1)])
def test_nms_of_proposals_at_iou_0_7(width, kept):
    boxes = torch.tensor([[0.0, 0, 100, 100], [0.0, 0, width, 100]])
    assert len(proposals_of(cfg_of("rpn"), boxes)[0]) == kept


def test_difference_small_proposals_are_kept():
    """py-faster-rcnn wants 16 px of the original image."""
    boxes = torch.tensor([[0.0, 0, 5, 5], [50.0, 50, 51, 51], [80.0, 80, 80, 90]])
    (found,) = proposals_of(cfg_of("rpn"), boxes)
    assert torch.equal(found.proposal_boxes.tensor, boxes[:2])  # the last has no area


def test_difference_boxes_are_clipped_to_the_size():
    (found,) = proposals_of(cfg_of("rpn"), torch.tensor([[-9.0, -9, 2000, 2000]]))
    assert found.proposal_boxes.tensor.tolist() == [[0, 0, 1000, 600]]  # theirs: 999, 599
