"""Guard the one table of names: other programs' names, and where tensors live in every model."""

import pytest
import torch
import torchvision
from detectron2.checkpoint.c2_model_loading import convert_basic_c2_names
from detectron2.config import get_cfg as plain_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from foreign import caffe2_names, detectron2_names, network, torchvision_names
from torch import nn

from resnext_det.models import build_resnext
from resnext_det.weights.names import (
    CAFFE2,
    from_caffe2,
    from_detectron2,
    from_torchvision,
    to_caffe2,
    to_torchvision,
    trunk_name,
)


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


# ---- other programs' names ----


def of_torchvision(name, **arguments):
    with torch.device("meta"):
        return list(torchvision.models.get_model(name, weights=None, **arguments).state_dict())


def ours(depth, cardinality, bottleneck_width):
    with torch.device("meta"):
        model = build_resnext(depth, cardinality, bottleneck_width, num_classes=3)
    return list(model.state_dict())


@pytest.mark.parametrize(
    "peer, member",
    [
        ("resnet50", (50, 1, 64)),
        ("resnext101_32x8d", (101, 32, 8)),
        ("resnet152", (152, 1, 64)),
        ("wide_resnet50_2", (50, 1, 128)),
    ],
)
def test_all_of_torchvisions_names(peer, member):
    """The very keys of its model, both ways, none twice."""
    keys = of_torchvision(peer)
    names = [from_torchvision(key) for key in keys]
    assert set(names) == set(ours(*member)) and len(set(names)) == len(keys)
    assert [to_torchvision(name) for name in names] == keys


@pytest.mark.parametrize("member", [(50, 32, 4), (152, 32, 8)])
def test_all_of_caffe2s_names(member):
    """As Detectron2 itself renames them."""
    names = [name for name in ours(*member) if not name.endswith("num_batches_tracked")]
    blobs = [to_caffe2(name) for name in names]
    assert convert_basic_c2_names(blobs) == names
    assert [from_caffe2(blob) for blob in blobs] == names
    assert to_caffe2("stem.conv1.norm.num_batches_tracked") is None


@pytest.mark.parametrize("spelling", ["s", "gamma"])
@pytest.mark.parametrize("head", ["pred", "fc1000", "last_out_L1000"])
def test_every_spelling_of_caffe2(spelling, head):
    model = network()
    blobs = list(caffe2_names(model, spelling=spelling, head=head))
    names = [name for name in model.state_dict() if not name.endswith("num_batches_tracked")]
    assert [from_caffe2(blob) for blob in blobs] == names


def test_no_blob_means_two_tensors():
    blobs = [blob for spellings in CAFFE2.values() for blob in spellings]
    assert len(set(blobs)) == len(blobs)


@pytest.mark.parametrize("prefix", ["", "backbone.", "backbone.bottom_up."])
@pytest.mark.parametrize("head", ["linear.", "stem.fc."])
def test_detectron2s_names(prefix, head):
    model = network()
    keys = detectron2_names(model, prefix, head)
    assert [from_detectron2(key) for key in keys] == list(model.state_dict())


def test_the_writer_of_these_tests_agrees():
    model = network()
    assert [from_torchvision(k) for k in torchvision_names(model)] == list(model.state_dict())


@pytest.mark.parametrize(
    "rename, keys",
    [
        (
            from_torchvision,
            "conv1 layer0.0.conv1.weight layer5.0.conv1.weight layer1.0.conv4.weight "
            "layer1.0.bn1.gamma layer1.00.conv1.weight layer1.0.downsample.2.weight "
            "layer1.0.se.fc1.weight bn1.conv1.weight stem.conv1.weight fc.running_mean",
        ),
        (
            from_caffe2,
            "conv1 conv1_bn_s res1_0_branch2a_w res2_0_branch2d_w res2_0_branch2a_bn_w lr "
            "res2_0_branch2a_w_momentum fc6_w fc1000_bn_s pred_s res2_0_branch2a_gn_s",
        ),
        (
            from_detectron2,
            "conv1.weight res6.0.conv1.weight backbone.fpn_lateral2.weight stem.bn1.weight "
            "roi_heads.res5.0.conv1.weight proposal_generator.rpn_head.conv.weight fc.weight",
        ),
        (to_torchvision, "res5.3.norm.weight res2.0.norm1.weight res2.0.conv1 linear"),
        (to_caffe2, "res5.3.norm.weight res2.0.norm1.weight res2.0.conv1 linear"),
    ],
)
def test_unknown_names(rename, keys):
    assert {key: rename(key) for key in keys.split()} == dict.fromkeys(keys.split())
