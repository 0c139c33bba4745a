"""Guard the promise of every family: the file's network here computes what it computes there.

Random weights and statistics, evaluation mode, float32, one thread: each difference is exactly 0
where nothing else is said.
"""

from pathlib import Path

import pytest
import torch
import torchvision
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg as get_detectron2_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone, build_model
from detectron2.modeling.backbone import build_resnet_backbone
from foreign import caffe2_names, detectron2_names, empty, fill, network, torchvision_names, write
from torch import nn

from resnext_det.config import get_cfg, load_cfg, stage_cfg
from resnext_det.detection.weights_setup import apply_record
from resnext_det.errors import InputError
from resnext_det.models import build_resnext
from resnext_det.weights import load_weights, read_record

CONFIG = Path(__file__).parents[2] / "configs" / "faster_rcnn_X50_32x4d.yaml"
CLASSES = 10
FAST = 4  # the pickle protocol; tests/weights/test_families.py has Detectron's own
IMAGES = torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(3))


def ours_from(path, norm="BN"):
    """A user's three lines."""
    record = read_record(path)
    model = empty(build_resnext, **record.architecture, norm=norm, num_classes=CLASSES)
    load_weights(model, path)
    return model.eval()


@torch.no_grad()
def assert_same_outputs(path, peer):
    assert torch.equal(ours_from(path)(IMAGES)["linear"], peer.eval()(IMAGES))


# ---- torchvision and timm ----

TORCHVISION = {
    "resnet50": "R50_1x64d",
    "resnet101": "R101_1x64d",
    "resnext50_32x4d": "X50_32x4d",
    "resnext101_32x8d": "X101_32x8d",
    "resnext101_64x4d": "X101_64x4d",
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(tmp_path, name):
    peer = fill(empty(getattr(torchvision.models, name), num_classes=CLASSES))
    path = write(tmp_path / f"{name}.pth", peer.state_dict())
    assert_same_outputs(path, peer)
    path.unlink()  # up to 330 MB


@pytest.mark.parametrize("name", ["resnext50_32x4d", "resnext101_32x4d"])
def test_timm(tmp_path, name):
    timm = pytest.importorskip("timm", reason="timm is the peer here; pip install timm")
    peer = fill(empty(timm.create_model, model_name=name, num_classes=CLASSES))
    path = write(tmp_path / f"{name}.safetensors", peer.state_dict())
    assert_same_outputs(path, peer)
    path.unlink()


# ---- Detectron2 ----

NAMES = ["stem", "res2", "res3", "res4", "res5"]


def backbone_cfg(cfg, member):
    architecture = network_of(member).architecture
    keys = cfg.MODEL.RESNETS
    keys.DEPTH, keys.NUM_GROUPS = architecture.depth, architecture.cardinality
    keys.WIDTH_PER_GROUP, keys.NORM = architecture.bottleneck_width, "FrozenBN"
    keys.STRIDE_IN_1X1 = architecture.stride_in_1x1
    keys.OUT_FEATURES = NAMES
    return cfg


def network_of(member):
    with torch.device("meta"):
        return network(member, num_classes=CLASSES)


def detectron2_from(path, member):
    """Detectron2's own backbone, loaded by Detectron2's own code."""
    cfg = backbone_cfg(get_detectron2_cfg(), member)
    model = build_resnet_backbone(cfg, ShapeSpec(channels=3)).eval()
    DetectionCheckpointer(model).load(str(path))
    return model


def backbone_from(path, member):
    """Ours, by the same keys."""
    cfg = backbone_cfg(get_cfg(), member)
    cfg.MODEL.BACKBONE.NAME = "build_resnext_backbone"
    cfg.MODEL.CHANNELS_LAST = False  # another memory layout, other sums' order
    cfg.MODEL.FUSE = False  # likewise
    apply_record(cfg, read_record(path), str(path))
    model = nn.ModuleDict({"backbone": build_backbone(cfg, ShapeSpec(channels=3))}).eval()
    load_weights(model, path)
    return model["backbone"]


FILES = {
    "MSRA": ("R50_1x64d_stride1x1", lambda n: caffe2_names(n, head="fc1000")),
    "FAIR": ("X50_32x4d", caffe2_names),
    "converted from torchvision": (
        "X50_32x4d",
        lambda n: {
            "model": {k: v.numpy() for k, v in detectron2_names(n, head="stem.fc.").items()},
            "__author__": "torchvision",
            "matching_heuristics": True,
        },
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_detectron2(tmp_path, kind):
    """The same file through Detectron2's loader and ours, every feature of the same backbone."""
    member, names = FILES[kind]
    source = fill(empty(network, name=member, num_classes=CLASSES))
    path = write(tmp_path / "x.pkl", names(source), FAST)
    with torch.no_grad():
        ours, theirs = backbone_from(path, member)(IMAGES), detectron2_from(path, member)(IMAGES)
        assert torch.equal(ours_from(path)(IMAGES)["linear"], source(IMAGES)["linear"])
    for name in NAMES:
        assert torch.equal(ours[name], theirs[name]), name


def test_detectron2_fused(tmp_path):
    """Where a file has no running variance, Detectron2's loader puts 1, ours 1 - 1e-5.

    So each of its norms divides by 1.000005 beside the scale. That apart, all is equal.
    """
    member = "X50_32x4d"
    source = fill(empty(network, name=member, num_classes=CLASSES))
    path = write(tmp_path / "x.pkl", caffe2_names(source, fused=True), FAST)
    theirs = detectron2_from(path, member)
    with torch.no_grad():
        ours = backbone_from(path, member)(IMAGES)
        found = theirs(IMAGES)
        for name in NAMES:
            scale = ours[name].abs().max()
            assert 0 < (found[name] - ours[name]).abs().max() < 2e-4 * scale
        for key, tensor in theirs.state_dict().items():
            if key.endswith("running_var"):
                assert torch.equal(tensor, torch.ones_like(tensor))
                tensor.sub_(1e-5)
        found = theirs(IMAGES)
    for name in NAMES:
        assert torch.equal(found[name], ours[name]), name


# ---- a detector from another program's weights ----


def own_cfg(path, *opts):
    opts = ["MODEL.DEVICE", "cpu", "MODEL.CHANNELS_LAST", "False", "MODEL.FUSE", "False", *opts]
    cfg = load_cfg(CONFIG, opts)
    apply_record(cfg, read_record(path), str(path))
    return cfg


@pytest.mark.parametrize("family", ["torchvision", "caffe2"])
def test_a_c4_detector(tmp_path, family):
    """MODEL.WEIGHTS of another program: trunk, RoI head and pixels are the file's."""
    source = fill(empty(torchvision.models.resnext50_32x4d, num_classes=CLASSES))
    path = write(tmp_path / "x50.pth", source.state_dict())
    if family == "caffe2":
        named = ours_from(path)
        path = write(tmp_path / "x50.pkl", caffe2_names(named), FAST)
    cfg = own_cfg(path)
    assert cfg.INPUT.FORMAT == {"torchvision": "RGB", "caffe2": "BGR"}[family]
    turn = -1 if family == "caffe2" else 1
    model = build_model(stage_cfg(cfg, "fast_rcnn")).eval()
    record = load_weights(model, path)
    assert record.family == family
    assert model.pixel_mean.flatten().tolist() == pytest.approx([123.675, 116.28, 103.53][::turn])
    assert model.pixel_std.flatten().tolist() == pytest.approx([58.395, 57.12, 57.375][::turn])
    trunk = nn.Sequential(
        source.conv1,
        source.bn1,
        source.relu,
        source.maxpool,
        source.layer1,
        source.layer2,
        source.layer3,
    )
    with torch.no_grad():
        res4, expected = model.backbone(IMAGES)["res4"], trunk(IMAGES)
        assert torch.equal(res4, expected)
        assert torch.equal(model.roi_heads.res5(expected), source.layer4(expected))


def test_a_detector_of_another_depth_is_refused(tmp_path):
    path = write(tmp_path / "x.pth", torchvision_names(network("X14_32x4d")))
    with pytest.raises(InputError, match="MODEL.RESNETS.DEPTH is 50, but .* was trained with 14"):
        own_cfg(path)


def test_fused_norms_need_frozen_ones(tmp_path):
    source = fill(empty(network, name="X50_32x4d", num_classes=CLASSES))
    path = write(tmp_path / "x.pkl", caffe2_names(source, fused=True), FAST)
    assert own_cfg(path).MODEL.RESNETS.NORM == "FrozenBN"
    with pytest.raises(InputError, match='set MODEL.RESNETS.NORM "FrozenBN"'):
        own_cfg(path, "MODEL.RESNETS.NORM", "BN")
