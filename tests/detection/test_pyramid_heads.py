"""Guard pyramid and heads in bf16: names and function of Detectron2's, float32 behind them."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone, build_model
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool
from detectron2.modeling.proposal_generator.rpn import StandardRPNHead
from detectron2.modeling.roi_heads.box_head import FastRCNNConvFCHead
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from detectron2.structures import Instances

from resnext_det.config import load_cfg, stage_cfg
from resnext_det.detection.heads import ResNeXtConvFCHead, ResNeXtMaskHead, ResNeXtROIHeads
from resnext_det.detection.roi_align import NativeROIAlign
from resnext_det.detection.rpn import ResNeXtRPNHead

CONFIG = "configs/beyond/mask_rcnn_X101_32x4d_FPN.yaml"
TOLERANCES = {"fp32": 1e-4, "bf16": 0.05}
SHAPE = ShapeSpec(channels=16, height=7, width=7, stride=4)


def config(precision="fp32", last=True):
    return load_cfg(
        CONFIG,
        [
            *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.RESNETS.DEPTH", "14"),
            *("MODEL.RESNETS.WIDTH_MULTIPLIER", "0.25", "MODEL.FPN.OUT_CHANNELS", "16"),
            *("MODEL.ROI_BOX_HEAD.FC_DIM", "32", "MODEL.ROI_MASK_HEAD.CONV_DIM", "16"),
            *("MODEL.PRECISION", precision, "MODEL.CHANNELS_LAST", str(last)),
            *("MODEL.REGROUP", "off"),
        ],
    )


def alike(own, stock):
    """The stock module with the weights of our own; they have the same names."""
    assert own.state_dict().keys() == stock.state_dict().keys()
    stock.load_state_dict(own.state_dict())
    return stock


def assert_near(found, expected, precision):
    assert found.dtype == torch.float32 and found.shape == expected.shape
    error = (found - expected).abs().max() / expected.abs().max()
    assert error <= TOLERANCES[precision]


@pytest.fixture(params=["fp32", "bf16"])
def precision(request):
    return request.param


@pytest.mark.parametrize("last", [True, False])
def test_the_pyramid(precision, last):
    torch.manual_seed(0)
    cfg = config(precision, last)
    own = build_backbone(cfg)
    trunk = build_backbone(config("fp32", False)).bottom_up
    features, channels = cfg.MODEL.FPN.IN_FEATURES, cfg.MODEL.FPN.OUT_CHANNELS
    stock = alike(own, FPN(trunk, features, channels, top_block=LastLevelMaxPool()))
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        found, expected = own(x), stock(x)
    assert list(found) == list(expected) == ["p2", "p3", "p4", "p5", "p6"]
    for name, feature in found.items():
        assert_near(feature, expected[name], precision)
    weight = own.fpn_output2.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) == last


def test_the_rpn_head(precision):
    torch.manual_seed(0)
    cfg = config(precision)
    own = ResNeXtRPNHead(cfg, [SHAPE] * 5)
    stock = alike(own, StandardRPNHead(cfg, [SHAPE] * 5))
    x = [torch.randn(2, 16, 9 + level, 11) for level in range(5)]
    for ours, theirs in zip(own(x), stock(x), strict=True):
        for found, expected in zip(ours, theirs, strict=True):
            assert_near(found, expected, precision)


@pytest.mark.parametrize(
    ("own", "stock", "side"),
    [
        (ResNeXtConvFCHead, FastRCNNConvFCHead, 7),
        (ResNeXtMaskHead, MaskRCNNConvUpsampleHead, 14),
    ],
)
def test_a_head_on_rois(precision, own, stock, side):
    torch.manual_seed(0)
    cfg = config(precision)
    own = own(cfg, SHAPE)
    stock = alike(own, stock(cfg, SHAPE))
    found, expected = (getattr(head, "layers", head) for head in (own, stock))
    x = torch.randn(5, 16, side, side)
    assert_near(found(x), expected(x), precision)


def test_gradients_reach_every_parameter(precision):
    torch.manual_seed(0)
    cfg = config(precision)
    own = ResNeXtConvFCHead(cfg, SHAPE)
    own(torch.randn(5, 16, 7, 7)).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 and p.grad.dtype == torch.float32 for p in own.parameters())


def test_the_configs_take_them():
    model = build_model(stage_cfg(config(), "fast_rcnn"))
    heads = model.roi_heads
    assert type(heads) is ResNeXtROIHeads
    levels = [*heads.box_pooler.level_poolers, *heads.mask_pooler.level_poolers]
    assert {type(level) for level in levels} == {NativeROIAlign}
    assert type(heads.box_head) is ResNeXtConvFCHead and type(heads.mask_head) is ResNeXtMaskHead
    model = build_model(stage_cfg(config(), "rpn"))
    assert type(model.proposal_generator.rpn_head) is ResNeXtRPNHead


def test_masks_without_instances(precision):
    cfg = config(precision)
    head = ResNeXtMaskHead(cfg, SHAPE).eval()
    assert head.layers(torch.zeros(0, 16, 14, 14)).shape == (0, 80, 28, 28)
    empty = Instances((10, 10))
    empty.pred_classes = torch.zeros(0, dtype=torch.long)
    with torch.no_grad():
        (found,) = head(torch.zeros(0, 16, 14, 14), [empty])
    assert found.pred_masks.shape[0] == 0
