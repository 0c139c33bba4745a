"""Guard the README's two lines for your own Detectron2 script: import, name the backbone, done."""

import subprocess
import sys

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
)
from detectron2.modeling.proposal_generator.rpn import RPN_HEAD_REGISTRY

import resnext_det
from resnext_det.config import get_cfg


@pytest.mark.parametrize(
    "registry, name",
    [
        (BACKBONE_REGISTRY, "build_resnext_backbone"),
        (BACKBONE_REGISTRY, "build_resnext_fpn_backbone"),
        (META_ARCH_REGISTRY, "NonSharedRCNN"),
        (ROI_HEADS_REGISTRY, "ResNeXtRes5ROIHeads"),
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
