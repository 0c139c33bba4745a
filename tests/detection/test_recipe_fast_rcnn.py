"""Guard docs/deviations.md, detection: what Fast R-CNN makes of its keys, and stated differences.

Heads, RoIs, losses and detections, with the values of Table 8's configs.
"""

import itertools
import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_roi_heads
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from recipe import NARROW, cfg_of

from resnext_det.errors import InputError

# ---- heads and losses ----


def predictor_of(channels=2048):
    torch.manual_seed(0)
    return FastRCNNOutputLayers(cfg_of("fast_rcnn"), ShapeSpec(channels=channels))


def test_fast_rcnns_sibling_layers():
    predictor = predictor_of()
    assert predictor.cls_score.out_features == 81 and predictor.bbox_pred.out_features == 320
    for layer, std in ((predictor.cls_score, 0.01), (predictor.bbox_pred, 0.001)):
        assert layer.weight.std().item() == pytest.approx(std, rel=0.03)
        assert not layer.bias.any()


def heads_of(*opts):
    cfg = cfg_of("fast_rcnn", "X50_32x4d", *NARROW, *opts)
    return build_roi_heads(cfg, {"res4": ShapeSpec(channels=256, stride=16)})


@pytest.mark.parametrize("resolution, stride, side", [(14, 2, 7), (7, 1, 7), (7, 2, 4)])
def test_res5_on_rois(resolution, stride, side):
    key = "MODEL.ROI_BOX_HEAD"
    heads = heads_of(f"{key}.POOLER_RESOLUTION", str(resolution), f"{key}.RES5_STRIDE", str(stride))
    boxes = [Boxes(torch.tensor([[0.0, 0, 100, 60]]))]
    shapes = []
    heads.res5.register_forward_hook(lambda *args: shapes.append(tuple(args[-1].shape)))
    found = heads._shared_roi_transform([torch.randn(1, 256, 12, 12)], boxes)
    assert shapes == [(1, 512, side, side)] and found.shape == (1, 512, 1, 1)
    assert {name: tuple(t.shape) for name, t in heads.res5.state_dict().items()} == {
        name: tuple(t.shape) for name, t in heads_of().res5.state_dict().items()
    }


@pytest.mark.parametrize("stride", [0, 3])
def test_another_stride_of_res5(stride):
    with pytest.raises(InputError, match=f"MODEL.ROI_BOX_HEAD: RES5_STRIDE is {stride}; set it"):
        heads_of("MODEL.ROI_BOX_HEAD.RES5_STRIDE", str(stride))


def test_roi_pooling_rounds_as_caffe_does():
    """Corners to the nearest cell of 1/16, both ends included, bins from floor to ceil."""
    torch.manual_seed(0)
    features, size = torch.randn(1, 256, 30, 40), 14
    box = [37.0, 90.0, 411.0, 305.0]
    (found,) = heads_of().pooler([features], [Boxes(torch.tensor([box]))])
    x0, y0, x1, y1 = (math.floor(side / 16 + 0.5) for side in box)
    expected = torch.empty(256, size, size)
    for row, column in itertools.product(range(size), repeat=2):
        top, left = (y1 - y0 + 1) * row / size, (x1 - x0 + 1) * column / size
        bottom, right = (y1 - y0 + 1) * (row + 1) / size, (x1 - x0 + 1) * (column + 1) / size
        rows = slice(y0 + math.floor(top), y0 + math.ceil(bottom))
        columns = slice(x0 + math.floor(left), x0 + math.ceil(right))
        expected[:, row, column] = features[0, :, rows, columns].amax(dim=(1, 2))
    assert torch.equal(found, expected)


def smooth_l1(x):
    """Of a difference ``x``, bounded at 1 (sigma 1)."""
    return 0.5 * x**2 if x < 1 else x - 0.5


@pytest.mark.parametrize("difference", [0.02, 0.09, 0.3])
def test_fast_rcnns_losses(difference):
    """Means over all 4 RoIs, of which one is an object; dx weighs 10, a deviation of 0.1."""
    predictor, classes = predictor_of(4), torch.tensor([3, 80, 80, 80])
    boxes = torch.tensor([[0.0, 0, 100, 50]]).repeat(4, 1)
    rois = Instances((600, 1000), proposal_boxes=Boxes(boxes), gt_classes=classes)
    rois.gt_boxes = Boxes(boxes + torch.tensor([100 * difference, 0, 100 * difference, 0]))
    with EventStorage():
        losses = predictor.losses((torch.zeros(4, 81), torch.zeros(4, 320)), [rois])
    expected = smooth_l1(10 * difference) / 4
    assert losses["loss_box_reg"].item() == pytest.approx(expected, rel=1e-4)
    assert losses["loss_cls"].item() == pytest.approx(math.log(81))


# ---- RoIs ----

TRUTH = [[100.0, 100, 200, 200]]


def sampled(boxes, *opts, truth=TRUTH, classes=(7,)):
    """Labels and boxes of the RoIs that the head takes from these proposals."""
    torch.manual_seed(0)
    proposals = Instances((600, 1000), proposal_boxes=Boxes(torch.tensor(boxes)))
    proposals.objectness_logits = torch.zeros(len(boxes))
    objects = Instances((600, 1000), gt_boxes=Boxes(torch.tensor(truth)))
    objects.gt_classes = torch.tensor(classes)
    with EventStorage():
        (found,) = heads_of(*opts).label_and_sample_proposals([proposals], [objects])
    return found.gt_classes, found.proposal_boxes.tensor


def test_64_rois_an_image_a_quarter_of_them_objects():
    near = [[100.0 + i / 10, 100, 200, 200] for i in range(100)]
    far = [[400.0 + i, 300, 450 + i, 400] for i in range(200)]
    classes, boxes = sampled(near + far)
    assert len(classes) == len(boxes) == 64
    assert (classes == 7).sum() == 16 and (classes == 80).sum() == 48


def test_background_fills_up_and_begins_at_iou_0():
    classes, boxes = sampled([[400.0 + i, 300, 450 + i, 400] for i in range(200)])
    assert (classes == 80).sum() == 63  # the object itself is the 64th
    assert (boxes[classes == 80][:, 0] >= 400).all()


@pytest.mark.parametrize("added", [True, False])
def test_the_objects_own_boxes_are_among_the_rois(added):
    far = [[400.0, 300, 500, 400]] * 70
    opts = () if added else ("MODEL.ROI_HEADS.PROPOSAL_APPEND_GT", "False")
    classes, boxes = sampled(far, *opts)
    assert (classes == 7).sum() == added
    if added:
        assert boxes[classes == 7].tolist() == TRUTH


@pytest.mark.parametrize("width, label", [(50, 7), (49, 80)])
def test_an_object_from_iou_0_5(width, label):
    classes, boxes = sampled([[100.0, 100, 100 + width, 200]])
    assert classes[boxes[:, 2] == 100 + width].tolist() == [label]


# ---- detections ----


def detected(boxes, scores):
    """Detections from class-specific boxes of RoIs, all of one place an RoI."""
    rois = Instances((600, 1000), proposal_boxes=Boxes(torch.tensor(boxes)))
    logits = torch.tensor(scores).clamp(min=1e-9).log()
    predictions = logits, torch.zeros(len(boxes), 320)
    (found,), _ = predictor_of(4).inference(predictions, [rois])
    return found


def scores_of(**classes):
    """(81,): the given classes' scores, the rest is background."""
    row = [0.0] * 81
    for name, score in classes.items():
        row[int(name[1:])] = score
    row[80] = 1 - sum(row)
    return row


@pytest.mark.parametrize("width, classes, count", [(31, "aa", 1), (29, "aa", 2), (31, "ab", 2)])
def test_nms_of_detections_at_iou_0_3_within_a_class(width, classes, count):
    boxes = [[0.0, 0, 100, 100], [0.0, 0, width, 100]]
    pairs = zip(classes, (0.9, 0.8), strict=True)
    rows = [scores_of(**{f"c{'ab'.index(c)}": score}) for c, score in pairs]
    assert len(detected(boxes, rows)) == count


def test_scores_above_0_05_and_100_an_image():
    boxes = [[i * 9.0, 0, i * 9 + 8.0, 8] for i in range(110)]
    assert len(detected(boxes, [scores_of(c1=0.06, c2=0.049)] * 110)) == 100
    assert len(detected(boxes[:4], [scores_of(c1=0.06, c2=0.049)] * 4)) == 4


def test_difference_widths_have_no_pixel_added_and_growth_is_bounded():
    transform = predictor_of(4).box2box_transform
    box, wider = torch.tensor([[0.0, 0, 16, 16]]), torch.tensor([[-8.0, 0, 24, 16]])
    dw = transform.get_deltas(box, wider)[0, 2].item() / 5
    assert dw == pytest.approx(math.log(32 / 16))  # with + 1: log(33 / 17)
    grown = transform.apply_deltas(torch.tensor([[0.0, 0, 100, 0]]), box)
    assert (grown[0, 2] - grown[0, 0]).item() == pytest.approx(1000, rel=1e-5)  # 16 px to 1000
