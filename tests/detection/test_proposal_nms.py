"""Guards that NMS of as few boxes as are needed gives the boxes of NMS of all."""

from pathlib import Path

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_proposal_generator
from torchvision.ops import nms

from resnext_det.config import load_cfg
from resnext_det.detection import proposal_nms
from resnext_det.detection.proposal_nms import first_kept

PAPER = Path(__file__).parents[2] / "configs" / "faster_rcnn_X50_32x4d.yaml"


def clustered(number, clusters, seed):
    """Boxes on whole pixels about a few places, scores with ties, falling."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randint(0, 500, (clusters, 2), generator=generator)
    own = centres[torch.randint(0, clusters, (number,), generator=generator)]
    corners = (own + torch.randint(0, 30, (number, 2), generator=generator)).float()
    sizes = torch.randint(5, 60, (number, 2), generator=generator).float()
    scores = torch.randint(0, number // 3, (number,), generator=generator).float()
    return torch.cat([corners, corners + sizes], 1), scores.sort(descending=True).values


@pytest.mark.parametrize("threshold", [0.3, 0.7])
@pytest.mark.parametrize("clusters", [1, 20, 400])
@pytest.mark.parametrize("most", [1, 50, 300, 5000])
def test_equal_to_nms_of_all(threshold, clusters, most):
    boxes, scores = clustered(2000, clusters, seed=most)
    expected = nms(boxes, scores, threshold)[:most]
    assert torch.equal(first_kept(boxes, scores, threshold, most), expected)


def test_nothing_to_choose_from():
    assert first_kept(torch.zeros(0, 4), torch.zeros(0), 0.7, 5).tolist() == []


def test_the_rest_is_not_looked_at(monkeypatch):
    looked_at = []

    def spy(boxes, scores, threshold):
        looked_at.append(len(boxes))
        return nms(boxes, scores, threshold)

    monkeypatch.setattr(proposal_nms, "nms", spy)
    boxes, scores = clustered(2000, 400, seed=0)
    first_kept(boxes, scores, 0.7, 100)
    assert looked_at == [200]


def rpns():
    """Detectron2's and ours, with the same config."""
    cfg = load_cfg(PAPER, ["MODEL.DEVICE", "cpu"])
    for name in ("RPN", "BoundedRPN"):
        cfg.MODEL.PROPOSAL_GENERATOR.NAME = name
        yield build_proposal_generator(cfg, {"res4": ShapeSpec(channels=8, stride=16)})


def outputs(spoiled=False):
    generator = torch.Generator().manual_seed(0)
    shape = (2, 12 * 20 * 24)
    logits = torch.randn(shape, generator=generator)
    deltas = 0.6 * torch.randn(*shape, 4, generator=generator)
    if spoiled:
        deltas[0, 5] = torch.inf
    return [logits], [deltas]


@pytest.mark.parametrize("spoiled", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_proposals_are_detectron2s(training, spoiled):
    """Also with boxes that are no numbers: left out in evaluation, an error in training."""
    found, sizes = [], [(320, 384), (300, 250)]
    for rpn in rpns():
        rpn.train(training)
        anchors = rpn.anchor_generator([torch.zeros(2, 8, 20, 24)])
        if training and spoiled:
            with pytest.raises(FloatingPointError):
                rpn.predict_proposals(anchors, *outputs(spoiled), sizes)
            continue
        found.append(rpn.predict_proposals(anchors, *outputs(spoiled), sizes))
    for theirs, ours in zip(*found, strict=True) if found else ():
        assert ours.image_size == theirs.image_size and len(ours) > 100
        assert torch.equal(ours.proposal_boxes.tensor, theirs.proposal_boxes.tensor)
        assert torch.equal(ours.objectness_logits, theirs.objectness_logits)
