"""Guard the backbones by Detectron2's keys: which are followed, which refused, which depths fit."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg as plain_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_HEADS_REGISTRY,
    build_backbone,
    build_model,
    build_roi_heads,
)
from detectron2.modeling.proposal_generator.rpn import RPN_HEAD_REGISTRY
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

import resnext_det
from resnext_det.config import get_cfg, load_cfg
from resnext_det.detection.backbone import check_detector
from resnext_det.errors import InputError
from resnext_det.models import build_resnext
from resnext_det.models.architecture import CIFAR_BLOCKS, IMAGENET_BLOCKS
from resnext_det.weights.load import load_trunk

CONFIGS = Path(resnext_det.__path__[0]).parent / "configs"
DETECTORS = ["Base-RCNN-C4.yaml", "demo/detection.yaml", "beyond/mask_rcnn_X101_32x4d_FPN.yaml"]


def refusal(call, *arguments):
    with pytest.raises(InputError) as refused:
        call(*arguments)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def backbone_cfg(make_cfg=get_cfg, **resnets):
    cfg = make_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_resnext_backbone"
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RESNETS.update(resnets)
    return cfg


@pytest.mark.parametrize(
    "registry, name",
    [
        (BACKBONE_REGISTRY, "build_resnext_backbone"),
        (BACKBONE_REGISTRY, "build_resnext_fpn_backbone"),
        (META_ARCH_REGISTRY, "NonSharedRCNN"),
        (ROI_HEADS_REGISTRY, "ResNeXtRes5ROIHeads"),
        (PROPOSAL_GENERATOR_REGISTRY, "BoundedRPN"),
        (PROPOSAL_GENERATOR_REGISTRY, "NonSharedRPN"),
        (RPN_HEAD_REGISTRY, "ResNeXtRPNHead"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_import_registers(registry, name):
    assert registry.get(name).__module__.startswith("resnext_det.detection.")


def test_the_import_alone_is_enough():
    """In a fresh interpreter, where no test has imported anything else before."""
    script = (
        "import resnext_det; from detectron2 import modeling;"
        "modeling.BACKBONE_REGISTRY.get('build_resnext_fpn_backbone');"
        "modeling.META_ARCH_REGISTRY.get('NonSharedRCNN')"
    )
    root = resnext_det.__path__[0] + "/.."
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_plain_detectron2_script():
    """None of our keys is in this config, and the rest of the detector is Detectron2's own."""
    cfg = plain_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_resnext_backbone"
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RESNETS.NUM_GROUPS, cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 32, 4
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 8
    model = build_model(cfg).eval()
    assert type(model).__name__ == "GeneralizedRCNN"
    assert model.backbone.architecture.name == "X50_32x4d"
    with torch.no_grad():
        (output,) = model([{"image": torch.zeros(3, 64, 96)}])
    assert output["instances"].image_size == (64, 96)


@pytest.mark.parametrize("make_cfg", [plain_cfg, get_cfg])
def test_fpn_backbone(make_cfg):
    cfg = make_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_resnext_fpn_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.RESNETS.DEPTH = 26
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    backbone = build_backbone(cfg, ShapeSpec(channels=3)).eval()
    with torch.no_grad():
        features = backbone(torch.zeros(1, 3, 128, 64))
    strides = {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}
    assert {name: spec.stride for name, spec in backbone.output_shape().items()} == strides
    assert {name: tuple(feature.shape) for name, feature in features.items()} == {
        name: (1, 16, 128 // stride, 64 // stride) for name, stride in strides.items()
    }


@pytest.mark.parametrize("freeze_at, frozen", [(0, ""), (1, "stem"), (3, "stem res2 res3")])
def test_freezing_by_detectron2s_key(freeze_at, frozen):
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_resnext_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = freeze_at
    cfg.MODEL.RESNETS.DEPTH = 14
    backbone = build_backbone(cfg, ShapeSpec(channels=3))
    trained = {name.split(".")[0] for name, p in backbone.named_parameters() if p.requires_grad}
    assert trained == {"stem", "res2", "res3", "res4"} - set(frozen.split())


# ---- keys that the networks do not follow ----


def test_detectron2s_keys_are_these():
    """A key that a newer Detectron2 adds is to be followed or refused."""
    model = plain_cfg().MODEL
    followed = ["DEPTH", "NORM", "NUM_GROUPS", "OUT_FEATURES", "STRIDE_IN_1X1", "WIDTH_PER_GROUP"]
    refused = [f"DEFORM_{key}" for key in ("MODULATED", "NUM_GROUPS", "ON_PER_STAGE")]
    refused += ["RES2_OUT_CHANNELS", "RES5_DILATION", "STEM_OUT_CHANNELS"]
    assert sorted(model.RESNETS) == sorted(followed + refused)
    assert sorted(model.BACKBONE) == ["FREEZE_AT", "NAME"]


@pytest.mark.parametrize("make_cfg", [plain_cfg, get_cfg])
@pytest.mark.parametrize(
    "key, value, mend",
    [
        ("RES2_OUT_CHANNELS", 128, "set it to 256 (WIDTH_MULTIPLIER scales"),
        ("STEM_OUT_CHANNELS", 32, "set it to 64 (WIDTH_MULTIPLIER scales"),
        ("RES5_DILATION", 2, "set it to 1,"),
        ("DEFORM_ON_PER_STAGE", [False, False, True, True], "set it to [False, False, False"),
        ("DEFORM_MODULATED", True, "set it to False"),
        ("DEFORM_NUM_GROUPS", 2, "set it to 1,"),
    ],
)
def test_ignored_keys_are_refused(key, value, mend, make_cfg):
    cfg = backbone_cfg(make_cfg, DEPTH=14, **{key: value})
    text = refusal(build_backbone, cfg)
    assert text.startswith(f"MODEL.RESNETS: {key} is {value!r}, which ")
    assert mend in text and 'MODEL.BACKBONE.NAME "build_resnet_backbone"' in text


def test_defaults_in_another_type_pass():
    """As YAML and overrides give them."""
    build_backbone(backbone_cfg(DEPTH=14, DEFORM_ON_PER_STAGE=(False,) * 4))


def test_the_head_alone_refuses_them_too():
    cfg = backbone_cfg(RES2_OUT_CHANNELS=128)
    cfg.MODEL.ROI_HEADS.NAME = "ResNeXtRes5ROIHeads"
    shape = {"res4": ShapeSpec(channels=1024, stride=16)}
    assert "RES2_OUT_CHANNELS is 128" in refusal(build_roi_heads, cfg, shape)


@pytest.mark.parametrize("freeze_at", [-1, 6, 100])
def test_freezing_out_of_range(freeze_at):
    cfg = backbone_cfg(DEPTH=14)
    cfg.MODEL.BACKBONE.FREEZE_AT = freeze_at
    assert f"MODEL.BACKBONE: FREEZE_AT is {freeze_at}; " in refusal(build_backbone, cfg)


def test_images_without_channels():
    cfg = backbone_cfg(DEPTH=14)
    cfg.MODEL.PIXEL_MEAN = []
    assert "in_channels is 0; give 1 or more; in a config" in refusal(build_backbone, cfg)


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("IN_FEATURES", ["res3", "res5"], ["IN_FEATURES is ['res3', 'res5']", "gives ['res3'"]),
        ("IN_FEATURES", [], ["IN_FEATURES is []"]),
        ("FUSE_TYPE", "max", ["FUSE_TYPE is 'max'", "sum or avg"]),
    ],
)
def test_pyramids_that_cannot_be(key, value, words):
    cfg = backbone_cfg(DEPTH=14, OUT_FEATURES=["res3", "res4"])
    cfg.MODEL.BACKBONE.NAME = "build_resnext_fpn_backbone"
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4"]
    cfg.MODEL.FPN[key] = value
    text = refusal(build_backbone, cfg)
    for word in ("MODEL.FPN: ", *words):
        assert word in text, text


# ---- networks that fit no detector, before anything is trained ----


@pytest.mark.parametrize("name", ["build_resnext_backbone", "build_resnext_fpn_backbone"])
@pytest.mark.parametrize("depth", CIFAR_BLOCKS)
def test_networks_for_cifar_are_no_backbones(depth, name):
    cfg = backbone_cfg(DEPTH=depth)
    cfg.MODEL.BACKBONE.NAME = name
    assert refusal(build_backbone, cfg) == (
        f"MODEL.RESNETS: DEPTH is {depth}, a network for CIFAR without the res5 that a detector's "
        "head needs; set DEPTH to one of 14, 26, 50, 101, 152, 200"
    )


@pytest.mark.parametrize("depth", IMAGENET_BLOCKS)
@pytest.mark.parametrize("config", DETECTORS)
def test_detectors_that_can_be_built(config, depth):
    cfg = load_cfg(CONFIGS / config, ["MODEL.RESNETS.DEPTH", str(depth)])
    before = cfg.dump()
    cfg.freeze()
    check_detector(cfg)
    assert cfg.dump() == before


@pytest.mark.parametrize("meta", ["NonSharedRCNN", "SharedRCNN"])
@pytest.mark.parametrize(
    "config, key, value, words",
    [
        (0, "RESNETS.DEPTH", "29", ["MODEL.RESNETS: DEPTH is 29", "14, 26, 50, 101, 152, 200"]),
        (2, "RESNETS.DEPTH", "38", ["MODEL.RESNETS: DEPTH is 38", "14, 26, 50, 101, 152, 200"]),
        (0, "RESNETS.RES5_DILATION", "2", ["MODEL.RESNETS: RES5_DILATION is 2"]),
        (0, "RPN.IN_FEATURES", "['res5']", ["names res5", "RESNETS.OUT_FEATURES is ['res4']"]),
        (2, "ROI_HEADS.IN_FEATURES", "['p9']", ["names p9", "ROI_HEADS.IN_FEATURES"]),
        (0, "ROI_HEADS.IN_FEATURES", "['res3']", ["MODEL.ROI_HEADS: IN_FEATURES is ['res3']"]),
        (0, "ROI_HEADS.NAME", "Heads", ["cannot build", "KeyError", "'Heads'"]),
        (2, "FPN.IN_FEATURES", "['res6']", ["MODEL.FPN: IN_FEATURES is ['res6']"]),
        (0, "MASK_ON", "True", ["MODEL: MASK_ON is True", "ResNeXtROIHeads"]),
    ],
)
def test_detectors_that_cannot(config, key, value, words, meta):
    """By one line, whichever of the two networks it is that cannot be built."""
    opts = [f"MODEL.{key}", value, "MODEL.META_ARCHITECTURE", meta]
    text = refusal(check_detector, load_cfg(CONFIGS / DETECTORS[config], opts))
    for word in words:
        assert word in text, text


def test_a_plain_detectron2_config_is_checked_too():
    check_detector(backbone_cfg(plain_cfg))
    assert "DEPTH is 20" in refusal(check_detector, backbone_cfg(plain_cfg, DEPTH=20))


# ---- depth 200, whose features of res2..res4 are sums without a ReLU ----


def deep_cfg(config, *opts):
    narrow = ["DEPTH", "200", "NUM_GROUPS", "1", "WIDTH_PER_GROUP", "64", "NORM", "BN"]
    narrow += ["WIDTH_MULTIPLIER", "0.0625"]
    keys = [f"MODEL.RESNETS.{word}" if n % 2 == 0 else word for n, word in enumerate(narrow)]
    others = ["MODEL.DEVICE", "cpu", "MODEL.BACKBONE.FREEZE_AT", "0", "MODEL.MASK_ON", "False"]
    others += ["MODEL.META_ARCHITECTURE", "SharedRCNN", "MODEL.RPN.POST_NMS_TOPK_TEST", "8"]
    others += ["TEST.PROPOSALS_TOPK", "8", "MODEL.ROI_HEADS.NUM_CLASSES", "3"]
    return load_cfg(CONFIGS / config, [*keys, *others, *opts])


def one_image(size=(96, 128)):
    torch.manual_seed(1)
    boxes = Instances(size, gt_boxes=Boxes(torch.tensor([[8.0, 8, 70, 80]])))
    boxes.gt_classes = torch.tensor([1])
    return {"image": torch.rand(3, *size) * 255, "instances": boxes}


@pytest.mark.parametrize("config", DETECTORS[::2], ids=["C4", "FPN"])
def test_depth_200_is_trained_whole(config):
    """A step reaches every parameter of trunk, pyramid and heads; inference gives boxes."""
    torch.manual_seed(0)
    model = build_model(deep_cfg(config, "MODEL.ANCHOR_GENERATOR.SIZES", "[[32]]"))
    with EventStorage():
        losses = model.train()([one_image()])
    assert {"loss_rpn_cls", "loss_cls"} <= set(losses)
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    (output,) = model.eval()([one_image()])
    assert output["instances"].image_size == (96, 128)


def test_depth_200_in_c4_is_the_classification_network():
    """RPN and pooling read res4's sums; res5 activates them first, and ends in norm and ReLU."""
    torch.manual_seed(0)
    # In float64, since the sums of random layers are in the thousands.
    model = build_model(deep_cfg(DETECTORS[0])).double().eval()
    classifier = build_resnext("R200_1x64d_w0.0625", num_classes=3, out_features=["res4", "res5"])
    report = load_trunk(model, classifier.state_dict(), "R200")
    assert report.loaded == report.wanted and set(report.unused) == {"linear.weight", "linear.bias"}
    images = torch.randn(1, 3, 64, 64).double()
    with torch.no_grad():
        features, expected = model.backbone(images), classifier.double().eval()(images)
        assert features["res4"].min() < 0
        torch.testing.assert_close(features["res4"], expected["res4"], rtol=1e-8, atol=1e-8)
        found = model.roi_heads.res5(expected["res4"])
    assert found.min() == 0 and found.max() > 0
    torch.testing.assert_close(found, expected["res5"], rtol=1e-8, atol=1e-8)
