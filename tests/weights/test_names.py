"""Guard the one table of names: where a classification file's tensors live in every model."""

import pytest
from detectron2.config import get_cfg as plain_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from torch import nn

from resnext_det.models import build_resnext
from resnext_det.weights.names import trunk_name


@pytest.mark.parametrize(
    "key, name",
    [
        ("backbone.stem.conv1.weight", "stem.conv1.weight"),
        ("backbone.res2.0.shortcut.norm.bias", "res2.0.shortcut.norm.bias"),
        ("backbone.bottom_up.res5.2.conv3.weight", "res5.2.conv3.weight"),
        ("roi_heads.res5.0.conv1.weight", "res5.0.conv1.weight"),
        ("rpn.backbone.res4.5.conv2.weight", "res4.5.conv2.weight"),
        ("fast_rcnn.backbone.res4.5.conv2.weight", "res4.5.conv2.weight"),
        ("fast_rcnn.roi_heads.res5.0.conv1.weight", "res5.0.conv1.weight"),
        ("backbone.fpn_lateral2.weight", None),
        ("backbone.linear.weight", None),
        ("roi_heads.box_predictor.cls_score.weight", None),
        ("rpn.proposal_generator.rpn_head.conv.weight", None),
        ("proposal_generator.rpn_head.conv.weight", None),
        ("backbone.res6.0.conv1.weight", None),
        ("backbone.stems.conv1.weight", None),
        ("stem.conv1.weight", None),  # a classification model is loaded whole
        ("rpn.stem.conv1.weight", None),
        ("pixel_mean", None),
        ("", None),
    ],
)
def test_trunk_name(key, name):
    assert trunk_name(key) == name


def test_every_name_of_an_fpn_trunk():
    """Both ways: no trunk tensor without a name, no name twice."""
    cfg = plain_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_resnext_fpn_backbone"
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.NORM = 14, "BN"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 8
    model = nn.ModuleDict({"backbone": build_backbone(cfg, ShapeSpec(channels=3))})
    names = [trunk_name(key) for key in model.state_dict() if trunk_name(key)]
    assert names == list(build_resnext(14, 1, 64).state_dict())
