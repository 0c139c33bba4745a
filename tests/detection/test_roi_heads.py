"""Guard the agreement of trunk and head: res5 on the RoIs is the classification network's res5."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_roi_heads
from detectron2.structures import Boxes

from resnext_det.config import get_cfg, trunk_arguments
from resnext_det.detection import roi_heads
from resnext_det.errors import InputError
from resnext_det.models import build_resnext

MEMBERS = [
    (14, 8, 16, 0.5),
    (14, 4, 8, 0.125),
    (26, 32, 4, 1.0),
    (50, 32, 4, 1.0),
    (50, 1, 64, 1.0),
]


def make_cfg(depth, cardinality, width, multiplier, **resnets):
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.ROI_HEADS.NAME = "ResNeXtRes5ROIHeads"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 5
    keys = cfg.MODEL.RESNETS
    keys.DEPTH, keys.NUM_GROUPS, keys.WIDTH_PER_GROUP = depth, cardinality, width
    keys.WIDTH_MULTIPLIER = multiplier
    keys.update(resnets)
    return cfg


def build(cfg):
    trunk = build_resnext(**trunk_arguments(cfg), out_features=["res4", "res5"])
    return trunk, build_roi_heads(cfg, {"res4": trunk.output_shape()["res4"]})


def shapes(module):
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("member", MEMBERS, ids=str)
@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
def test_res5_has_the_trunks_tensors(member, norm):
    trunk, heads = build(make_cfg(*member, NORM=norm))
    assert shapes(heads.res5) == shapes(trunk.res5)
    assert heads.box_predictor.cls_score.in_features == trunk.output_shape()["res5"].channels
    assert heads.box_predictor.cls_score.out_features == 5 + 1  # background is the last


@pytest.mark.parametrize("stride_in_1x1", [False, True])
def test_res5_is_the_trunks_function(stride_in_1x1):
    """Where the stride sits is not to be seen in the shapes, only in the numbers."""
    torch.manual_seed(0)
    trunk, heads = build(make_cfg(26, 4, 8, 0.125, STRIDE_IN_1X1=stride_in_1x1))
    heads.res5.load_state_dict(trunk.res5.state_dict())
    x = torch.randn(2, trunk.output_shape()["res4"].channels, 14, 14)
    with torch.no_grad():
        torch.testing.assert_close(heads.res5(x), trunk.res5(x), rtol=0, atol=0)


def test_one_row_a_box():
    """Boxes of two images; an image without any is allowed."""
    cfg = make_cfg(14, 4, 8, 0.125)
    _, heads = build(cfg)
    features = [torch.randn(3, 128, 8, 8)]
    boxes = [torch.tensor([[0.0, 0, 64, 64], [5, 5, 90, 100]]), torch.zeros(0, 4)]
    boxes = [Boxes(b) for b in (*boxes, torch.tensor([[0.0, 0, 16, 16]]))]
    found = heads._shared_roi_transform(features, boxes)
    assert found.shape == (3, 256, 1, 1) and found.dtype == torch.float32
    expected = heads.res5(heads.pooler(features, boxes)).mean(dim=(2, 3), keepdim=True)
    torch.testing.assert_close(found, expected)
    with torch.no_grad():
        torch.testing.assert_close(heads._shared_roi_transform(features, boxes), expected)


@pytest.mark.parametrize("counts", [(0,), (0, 0), (5,), (1, 2), (4, 0, 7, 1), (0, 9, 0)])
@pytest.mark.parametrize("most", [1, 3, 64])
def test_a_few_at_a_time(monkeypatch, counts, most):
    """The same values in the same order, over images with and without boxes."""
    monkeypatch.setattr(roi_heads, "ROIS_AT_ONCE", most)
    _, heads = build(make_cfg(14, 4, 8, 0.125))
    heads.eval()
    torch.manual_seed(0)
    features = [torch.randn(len(counts), 128, 8, 8)]
    boxes = [Boxes(torch.rand(count, 4) * 60 + torch.tensor([0, 0, 60, 60])) for count in counts]
    sizes, own = [], heads._average
    monkeypatch.setattr(
        heads, "_average", lambda f, b: (sizes.append(sum(map(len, b))), own(f, b))[1]
    )
    with torch.no_grad():
        found = heads._shared_roi_transform(features, boxes)
        whole = own(features, boxes)
    assert max(sizes) <= most and sum(sizes) == sum(counts)
    torch.testing.assert_close(found, whole)


def test_batch_norms_in_training_see_one_batch(monkeypatch):
    """Without gradients too, as where their statistics are measured anew."""
    monkeypatch.setattr(roi_heads, "ROIS_AT_ONCE", 2)
    _, heads = build(make_cfg(14, 4, 8, 0.125, NORM="BN"))
    boxes = [Boxes(torch.tensor([[0.0, 0, 64, 64]]).repeat(5, 1))]
    with torch.no_grad():
        heads.train()._shared_roi_transform([torch.randn(1, 128, 8, 8)], boxes)
    counted = [b for name, b in heads.named_buffers() if name.endswith("num_batches_tracked")]
    assert counted and all(number == 1 for number in counted)


def test_shape_spec_decides_the_scale():
    cfg = make_cfg(14, 4, 8, 0.125)
    heads = build_roi_heads(cfg, {"res4": ShapeSpec(channels=128, stride=8)})
    assert heads.pooler.level_poolers[0].spatial_scale == 1 / 8


# ---- what the head refuses ----


@pytest.mark.parametrize(
    "features, given",
    [
        (["res3"], {"res3": 64, "res4": 128}),  # not what res5 goes on from
        (["res5"], {"res4": 128}),
        (["res4", "res3"], {"res3": 64, "res4": 128}),
        (["p4"], {"p4": 256}),
        ([], {"res4": 128}),
    ],
    ids=str,
)
def test_features_that_are_not_res4(features, given):
    cfg = make_cfg(14, 4, 8, 0.125)
    cfg.MODEL.ROI_HEADS.IN_FEATURES = features
    shapes = {name: ShapeSpec(channels=channels, stride=16) for name, channels in given.items()}
    text = refusal(cfg, shapes)
    assert text.startswith(f"MODEL.ROI_HEADS: IN_FEATURES is {features}, ")
    assert "one feature of 128 channels" in text and str(given) in text


@pytest.mark.parametrize("key", ["MASK_ON", "KEYPOINT_ON"])
def test_boxes_only(key):
    cfg = make_cfg(14, 4, 8, 0.125)
    cfg.MODEL[key] = True
    assert f"MODEL: {key} is True" in refusal(cfg)


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("DEPTH", 29, "DEPTH is 29, a network for CIFAR without the res5"),
        ("FORM", "d", "FORM is 'd'"),
        ("NORM", "Batch", "NORM: found 'Batch'"),
    ],
)
def test_networks_without_such_a_res5(key, value, words):
    assert words in refusal(make_cfg(14, 4, 8, 0.125, **{key: value}))


@pytest.mark.parametrize("stride", [0, 3, "2"])
def test_strides_of_res5(stride):
    cfg = make_cfg(14, 4, 8, 0.125)
    cfg.MODEL.ROI_BOX_HEAD.RES5_STRIDE = stride
    assert f"MODEL.ROI_BOX_HEAD: RES5_STRIDE is {stride!r}" in refusal(cfg)


def refusal(cfg, shapes=None):
    with pytest.raises(InputError) as refused:
        build_roi_heads(cfg, shapes or {"res4": ShapeSpec(channels=128, stride=16)})
    assert "\n" not in str(refused.value)
    return str(refused.value)
