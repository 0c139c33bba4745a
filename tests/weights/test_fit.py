"""Guard what no shape shows: a file for another stride, other pixels or norms is not loaded.

Every refusal names the file, the field, both values and what to set.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg as get_detectron2_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.backbone import build_resnet_backbone
from foreign import caffe2_names, empty, fill, network, torchvision_names, write
from torch import nn

from resnext_det.config import load_cfg, stage_cfg
from resnext_det.errors import InputError
from resnext_det.models import build_resnext
from resnext_det.weights import WeightsRecord, check_fit, load_weights

CONFIG = Path(__file__).parents[2] / "configs" / "demo" / "detection.yaml"
MEMBER = "X14_4x8d_w0.125"
TINY = {
    "MODEL.DEVICE": "cpu",
    "MODEL.PRECISION": "fp32",
    "MODEL.RESNETS.NORM": "FrozenBN",
    "MODEL.RESNETS.NUM_GROUPS": "4",
    "MODEL.RESNETS.WIDTH_PER_GROUP": "8",
    "MODEL.RESNETS.WIDTH_MULTIPLIER": "0.125",
    "MODEL.ROI_HEADS.NUM_CLASSES": "3",
}
RGB = {"pixel_mean": [123.675, 116.28, 103.53], "pixel_std": [58.395, 57.12, 57.375]}


def detector(stage=None, **changed):
    values = TINY | {key.replace("__", "."): value for key, value in changed.items()}
    cfg = load_cfg(CONFIG, [word for pair in values.items() for word in pair])
    return build_model(stage_cfg(cfg, stage) if stage else cfg)


def record_of(member=MEMBER, kind="classification", **changed):
    architecture = network(member).architecture.as_dict()
    values = {"architecture": architecture, "pixel_format": "RGB", **RGB, **changed}
    return WeightsRecord(kind=kind, **values)


def refusal(model, record):
    with pytest.raises(InputError) as refused:
        check_fit(model, record, "x.pth")
    text = str(refused.value)
    assert text.startswith("x.pth: ") and "\n" not in text
    return text


@pytest.mark.parametrize("stage", [None, "rpn", "fast_rcnn", "joint"])
def test_an_agreeing_file_fits(stage):
    check_fit(detector(stage), record_of(), "x.pth")
    check_fit(detector(stage).half(), record_of(), "x.pth")  # whose mean is rounded


# ---- the architecture ----

OTHERS = {
    "depth": ("X26_4x8d_w0.125", 26, 14, "MODEL.RESNETS.DEPTH"),
    "cardinality": ("X14_2x8d_w0.125", 2, 4, "MODEL.RESNETS.NUM_GROUPS"),
    "bottleneck_width": ("X14_4x16d_w0.125", 16, 8, "MODEL.RESNETS.WIDTH_PER_GROUP"),
    "width_multiplier": ("X14_4x8d_w0.25", 0.25, 0.125, "MODEL.RESNETS.WIDTH_MULTIPLIER"),
    "stride_in_1x1": (f"{MEMBER}_stride1x1", True, False, "MODEL.RESNETS.STRIDE_IN_1X1"),
    "shortcut": (f"{MEMBER}_noshortcut", False, True, "MODEL.RESNETS.SHORTCUT"),
}


@pytest.mark.parametrize("kind", ["classification", "rpn"])
@pytest.mark.parametrize("field", OTHERS)
def test_every_field(field, kind):
    member, theirs, ours, key = OTHERS[field]
    text = refusal(network(), record_of(member, kind))
    assert f"its {field} is {theirs!r}, that of the model is {ours!r}" in text
    assert f"set {key} {theirs!r} (build_resnext: {field}={theirs!r})" in text
    assert "apply_record" in text
    text = refusal(detector("rpn"), record_of(member, kind))
    assert f"its {field} is {theirs!r}, that of the model's backbone is {ours!r}" in text


def test_every_trunk_is_compared():
    """The second of two networks alone is another."""
    model = detector()
    model.fast_rcnn.backbone = build_resnext("X26_4x8d_w0.125", out_features=["res4"])
    assert "the model's fast_rcnn.backbone is 26" in refusal(model, record_of())


def test_a_deeper_file_is_not_loaded(tmp_path):
    model = detector("rpn")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    path = write(tmp_path / "x26.pth", torchvision_names(network("X26_4x8d_w0.125")))
    with pytest.raises(InputError, match="depth is 26, that of the model's backbone is 14"):
        load_weights(model, path)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


# ---- the stride, by the blocks themselves ----


def test_the_stride_of_a_roi_heads_res5():
    """A head knows no architecture; its blocks have the stride at one of two places."""
    model = detector("fast_rcnn")
    model.backbone = nn.Identity()
    check_fit(model, record_of(), "x.pth")
    text = refusal(model, record_of(f"{MEMBER}_stride1x1"))
    assert "stride_in_1x1 is True, that of the model's roi_heads.res5.0 is False" in text


def test_a_res5_without_a_stride_fits_both():
    small = {
        "MODEL__ROI_BOX_HEAD__RES5_STRIDE": "1",
        "MODEL__ROI_BOX_HEAD__POOLER_RESOLUTION": "7",
    }
    model = detector("fast_rcnn", **small)
    model.backbone = nn.Identity()
    for member in (MEMBER, f"{MEMBER}_stride1x1"):
        check_fit(model, record_of(member), "x.pth")


@pytest.mark.parametrize("stride_in_1x1", [True, False])
def test_detectron2s_own_backbone(tmp_path, stride_in_1x1):
    """Detectron2's default place is the 1x1, where torchvision's weights do not belong."""
    cfg = get_detectron2_cfg()
    keys = cfg.MODEL.RESNETS
    keys.NUM_GROUPS, keys.WIDTH_PER_GROUP, keys.STRIDE_IN_1X1 = 32, 4, stride_in_1x1
    model = nn.ModuleDict({"backbone": build_resnet_backbone(cfg, ShapeSpec(channels=3))})
    source = fill(empty(build_resnext, depth="X50_32x4d", num_classes=10))
    path = write(tmp_path / "x50.pth", torchvision_names(source))
    if stride_in_1x1:
        with pytest.raises(InputError, match="stride_in_1x1 is False, .* backbone.res3.0 is True"):
            load_weights(model, path)
    else:
        load_weights(model, path)
        state = source.state_dict()
        assert torch.equal(model["backbone"].res4[5].conv2.weight, state["res4.5.conv2.weight"])


# ---- pixels ----


@pytest.mark.parametrize(
    "changed, found, key",
    [
        ({"pixel_format": "BGR"}, "pixel_format is 'BGR', that of", "INPUT.FORMAT"),
        ({"pixel_mean": [1.0, 2.0, 3.0]}, "pixel_mean is [1.0, 2.0, 3.0], that", "PIXEL_MEAN"),
        ({"pixel_std": [1.0, 1.0, 1.0]}, "pixel_std is [1.0, 1.0, 1.0], that", "PIXEL_STD"),
    ],
)
@pytest.mark.parametrize("stage", [None, "rpn", "fast_rcnn", "joint"])
def test_other_pixels(changed, found, key, stage):
    record = record_of(**changed)
    if stage == "rpn" and "pixel_format" in changed:  # a ProposalNetwork does not know its own
        return check_fit(detector(stage), record, "x.pth")
    text = refusal(detector(stage), record)
    assert (
        f"is {RGB.get(next(iter(changed)), 'RGB')!r}; set" in text
    )  # the model's, not its float32
    assert found in text and key in text and f"{next(iter(changed.values()))!r}" in text


def test_rounded_statistics_fit():
    near = [value + 5e-4 for value in RGB["pixel_mean"]]
    check_fit(detector(), record_of(pixel_mean=near), "x.pth")
    far = [RGB["pixel_mean"][0] + 2e-3, *RGB["pixel_mean"][1:]]
    assert "pixel_mean" in refusal(detector(), record_of(pixel_mean=far))


def test_a_network_without_pixel_statistics_takes_any():
    check_fit(network(), record_of(pixel_format="BGR", pixel_std=[1.0, 1.0, 1.0]), "x.pth")


# ---- fused norms ----


@pytest.mark.parametrize("norm, fits", [("FrozenBN", True), ("BN", False), ("SyncBN", False)])
def test_fused_norms(tmp_path, norm, fits):
    path = write(tmp_path / "x.pkl", caffe2_names(network(), fused=True))
    model = network(norm=norm, seed=1)
    if fits:
        assert load_weights(model, path).fused_norm
        return
    with pytest.raises(InputError, match="fused to scale and shift .* stem.conv1.norm") as refused:
        load_weights(model, path)
    assert str(refused.value).startswith(f"{path}: ") and '"FrozenBN"' in str(refused.value)


def test_norms_that_the_file_does_not_fill_may_train():
    """A head's own, beside a frozen trunk."""
    model = detector("fast_rcnn")
    model.roi_heads.extra = nn.BatchNorm2d(4)
    fused = replace(record_of(), fused_norm=True)
    check_fit(model, fused, "x.pth")
    model.backbone.res3[0].conv1.norm = nn.BatchNorm2d(8)
    assert "the model's backbone.res3.0.conv1.norm is a BatchNorm2d" in refusal(model, fused)
