"""Guards that anchors matched in parts are matched as Detectron2 does it at once."""

from pathlib import Path

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_proposal_generator
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, Instances, pairwise_iou

from resnext_det.config import load_cfg
from resnext_det.detection import matching

PAPER = Path(__file__).parents[2] / "configs" / "faster_rcnn_X50_32x4d.yaml"


def boxes(number, generator, side=40):
    # Whole pixels, so that many overlaps are equal: ties must fall the same way.
    corners = torch.randint(0, side, (number, 2), generator=generator).float()
    sizes = torch.randint(1, 12, (number, 2), generator=generator).float()
    return Boxes(torch.cat([corners, corners + sizes], 1))


@pytest.mark.parametrize("low_quality", [True, False])
@pytest.mark.parametrize("rows", [1, 3, 1000])
@pytest.mark.parametrize("objects", [0, 1, 2, 7, 50])
def test_equal_to_the_whole_matrix(monkeypatch, low_quality, rows, objects):
    generator = torch.Generator().manual_seed(objects)
    matcher = Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=low_quality)
    anchors, truth = boxes(500, generator), boxes(objects, generator)
    monkeypatch.setattr(matching, "LARGEST", rows * len(anchors))
    numbers, labels = matching.match_anchors(truth, anchors, matcher)
    expected_numbers, expected_labels = matcher(pairwise_iou(truth, anchors))
    assert torch.equal(numbers, expected_numbers)
    assert torch.equal(labels, expected_labels) and labels.dtype == expected_labels.dtype


def test_no_more_than_the_bound_at_once(monkeypatch):
    sizes = []

    def spy(first, second):
        sizes.append(len(first) * len(second))
        return pairwise_iou(first, second)

    generator = torch.Generator().manual_seed(0)
    monkeypatch.setattr(matching, "LARGEST", 2000)
    monkeypatch.setattr(matching, "pairwise_iou", spy)
    matcher = Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True)
    matching.match_anchors(boxes(50, generator), boxes(500, generator), matcher)
    assert max(sizes) == 2000 and len(sizes) == 13


@pytest.mark.parametrize("boundary", [-1, 0])
def test_the_rpn_labels_as_detectron2s(monkeypatch, boundary):
    """Also the drawn sample and the boxes, with and without anchors that leave the image."""
    monkeypatch.setattr(matching, "LARGEST", 1)
    opts = ["MODEL.DEVICE", "cpu", "MODEL.RPN.BOUNDARY_THRESH", str(boundary)]
    cfg, found = load_cfg(PAPER, opts), []
    generator = torch.Generator().manual_seed(0)
    truth = [Instances((96, 128), gt_boxes=boxes(n, generator, side=90)) for n in (20, 0)]
    for name in ("RPN", "BoundedRPN"):
        cfg.MODEL.PROPOSAL_GENERATOR.NAME = name
        rpn = build_proposal_generator(cfg, {"res4": ShapeSpec(channels=8, stride=16)})
        anchors = rpn.anchor_generator([torch.zeros(2, 8, 6, 8)])
        torch.manual_seed(0)
        found.append(rpn.label_and_sample_anchors(anchors, truth))
    for ours, theirs in zip(*found, strict=True):
        assert all(map(torch.equal, ours, theirs))
    assert {-1, 0, 1} >= set(found[0][0][0].tolist()) and (found[0][0][0] == 1).any()
