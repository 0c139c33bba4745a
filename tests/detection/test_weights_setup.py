"""Guard that nobody types pixel statistics: a weights file sets them; a wrong pair cannot run."""

import logging
from dataclasses import replace

import pytest
import torch
from detectron2.config import get_cfg as get_detectron2_cfg
from detectron2.layers import get_norm
from detectron2.modeling import build_model

from resnext_det.config import flatten, get_cfg, load_cfg
from resnext_det.detection import apply_record
from resnext_det.errors import InputError
from resnext_det.models import build_resnext
from resnext_det.weights import WeightsRecord, load_weights, read_record, save_weights
from resnext_det.weights.fit import WITH_STATISTICS

X50 = {
    "depth": 50,
    "cardinality": 32,
    "bottleneck_width": 4,
    "width_multiplier": 1.0,
    "stride_in_1x1": False,
}
MSRA = {
    "pixel_format": "BGR",
    "pixel_mean": [103.53, 116.28, 123.675],
    "pixel_std": [1.0, 1.0, 1.0],
    "architecture": {**X50, "stride_in_1x1": True},
}
SETTABLE = {
    "INPUT.FORMAT": "BGR",
    "MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675],
    "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
    "MODEL.RESNETS.STRIDE_IN_1X1": True,
}


def make_record(**changed):
    own = {
        "architecture": X50,
        "pixel_format": "RGB",
        "pixel_mean": [123.675, 116.28, 103.53],
        "pixel_std": [58.395, 57.12, 57.375],
    }
    return WeightsRecord(kind="classification", **{**own, **changed})


def make_cfg(*opts):
    x50 = ["MODEL.RESNETS.NUM_GROUPS", "32", "MODEL.RESNETS.WIDTH_PER_GROUP", "4"]
    return load_cfg(None, [*x50, *opts])


def assert_refused(cfg, record, *words):
    with pytest.raises(InputError) as refused:
        apply_record(cfg, record, "x50.safetensors")
    for word in (*words, "x50.safetensors"):
        assert word in str(refused.value)


def test_an_agreeing_record_changes_nothing():
    cfg = make_cfg()
    apply_record(cfg, make_record(), "x50.safetensors")
    assert flatten(cfg) == flatten(make_cfg())


def test_untouched_keys_are_set(caplog):
    cfg = make_cfg()
    with caplog.at_level(logging.INFO, "resnext_det"):
        apply_record(cfg, make_record(**MSRA), "msra.safetensors")
    before, after = flatten(make_cfg()), flatten(cfg)
    assert {key: after[key] for key in after if after[key] != before[key]} == SETTABLE
    for key in SETTABLE:
        assert f"{key} set to" in caplog.text
    assert "msra.safetensors" in caplog.text


def test_a_second_time_agrees_with_the_first():
    cfg = make_cfg()
    apply_record(cfg, make_record(**MSRA), "msra.safetensors")
    apply_record(cfg, make_record(**MSRA), "msra.safetensors")


@pytest.mark.parametrize(
    "key, given, ours, theirs",
    [
        ("INPUT.FORMAT", "BGR", "'BGR'", "'RGB'"),
        ("MODEL.PIXEL_MEAN", "[1, 2, 3]", "[1, 2, 3]", "[123.675, 116.28, 103.53]"),
        ("MODEL.PIXEL_STD", "[1.0, 1.0, 1.0]", "[1.0, 1.0, 1.0]", "[58.395, 57.12, 57.375]"),
        ("MODEL.RESNETS.STRIDE_IN_1X1", "True", "True", "False"),
        ("MODEL.RESNETS.DEPTH", "101", "101", "50"),
        ("MODEL.RESNETS.NUM_GROUPS", "64", "64", "32"),
        ("MODEL.RESNETS.WIDTH_PER_GROUP", "8", "8", "4"),
        ("MODEL.RESNETS.WIDTH_MULTIPLIER", "0.5", "0.5", "1.0"),
        ("MODEL.RESNETS.SHORTCUT", "False", "False", "True"),
    ],
)
def test_conflicts(key, given, ours, theirs):
    """What the user set and the file denies; the message names key, both values and the mend."""
    cfg = make_cfg(key, given)
    assert_refused(cfg, make_record(), f"{key} is {ours}, but", f"set {key} {theirs}")


@pytest.mark.parametrize(
    "field, key",
    [
        ("depth", "MODEL.RESNETS.DEPTH"),
        ("cardinality", "MODEL.RESNETS.NUM_GROUPS"),
        ("bottleneck_width", "MODEL.RESNETS.WIDTH_PER_GROUP"),
        ("width_multiplier", "MODEL.RESNETS.WIDTH_MULTIPLIER"),
    ],
)
def test_architecture_is_never_set(field, key):
    """A default depth may be meant: the network's size is not changed behind the user's back."""
    cfg = load_cfg(None)
    own = {"depth": 50, "cardinality": 1, "bottleneck_width": 64, "width_multiplier": 1.0}
    assert flatten(cfg)[key] == flatten(get_cfg())[key] == own[field]
    other = {**own, "stride_in_1x1": False, field: own[field] + 1}
    assert_refused(cfg, make_record(architecture=other), key, repr(own[field] + 1))


def test_values_set_as_the_record_has_them_are_no_conflict():
    opts = [word for key, value in SETTABLE.items() for word in (key, str(value))]
    cfg = make_cfg(*opts)
    apply_record(cfg, make_record(**MSRA), "msra.safetensors")
    assert {key: flatten(cfg)[key] for key in SETTABLE} == SETTABLE


def test_rounded_statistics_agree():
    """Files and configs write them with three decimals or more."""
    cfg = make_cfg("MODEL.PIXEL_MEAN", "[124.0, 117.0, 104.0]")
    apply_record(cfg, make_record(pixel_mean=[124.0000001, 117.0, 103.9999999]), "x50.safetensors")
    assert cfg.MODEL.PIXEL_MEAN == [124.0, 117.0, 104.0]
    assert_refused(make_cfg("MODEL.PIXEL_MEAN", "[123.675, 116.28, 103.54]"), make_record(), "MEAN")


def test_records_of_the_first_version_have_shortcuts():
    """They said nothing of them; their networks had them."""
    assert "shortcut" not in X50
    apply_record(make_cfg(), make_record(), "x50.safetensors")
    without = make_record(architecture={**X50, "shortcut": False})
    assert_refused(make_cfg(), without, "MODEL.RESNETS.SHORTCUT is True, but")
    apply_record(make_cfg("MODEL.RESNETS.SHORTCUT", "False"), without, "x50.safetensors")


# ---- norms ----


@pytest.mark.parametrize("norm", ["BN", "SyncBN", "GN", ""])
def test_fused_norms_are_not_trained_on(norm):
    """Their statistics are not the data's: batch norm would start from wrong ones."""
    cfg = make_cfg("MODEL.RESNETS.NORM", norm)
    assert_refused(
        cfg,
        make_record(fused_norm=True),
        f"MODEL.RESNETS.NORM is {norm!r}",
        'set MODEL.RESNETS.NORM "FrozenBN"',
    )
    if norm in ("BN", "SyncBN"):
        apply_record(cfg, make_record(), "x50.safetensors")


def test_fused_norms_fit_frozen_ones():
    cfg = make_cfg("MODEL.RESNETS.NORM", "FrozenBN")
    apply_record(cfg, make_record(fused_norm=True), "x50.safetensors")


@pytest.mark.parametrize("norm", ["GN", "LN", ""])
def test_statistics_need_a_norm_that_has_them(norm):
    """Scale and shift alone would fit GN and LN, and another function would start training."""
    cfg = make_cfg("MODEL.RESNETS.NORM", norm)
    assert_refused(
        cfg,
        make_record(),
        f"MODEL.RESNETS.NORM is {norm!r}",
        "have running statistics",
        'set MODEL.RESNETS.NORM "FrozenBN", "BN" or "SyncBN"',
    )
    without = make_record(has_statistics=False)
    apply_record(cfg, without, "x50.safetensors")
    frozen = make_cfg("MODEL.RESNETS.NORM", "FrozenBN")
    assert_refused(frozen, without, "NORM is 'FrozenBN'", "have no running statistics")


@pytest.mark.parametrize("norm", WITH_STATISTICS)
def test_norms_that_have_them(norm):
    """As Detectron2 itself builds them."""
    assert {"running_mean", "running_var"} <= set(get_norm(norm, 4).state_dict())
    apply_record(make_cfg("MODEL.RESNETS.NORM", norm), make_record(), "x50.safetensors")


# ---- from Python ----


def test_a_plain_detectron2_config():
    """Its own defaults (BGR, deviation 1, stride in the 1x1) are nobody's choice."""
    cfg = get_detectron2_cfg()
    cfg.MODEL.RESNETS.NUM_GROUPS, cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 32, 4
    apply_record(cfg, make_record(), "x50.safetensors")
    assert (cfg.INPUT.FORMAT, cfg.MODEL.PIXEL_MEAN) == ("RGB", make_record().pixel_mean)
    assert cfg.MODEL.PIXEL_STD == make_record().pixel_std
    assert cfg.MODEL.RESNETS.STRIDE_IN_1X1 is False
    cfg.MODEL.PIXEL_STD = [2.0, 2.0, 2.0]
    assert_refused(cfg, make_record(), "MODEL.PIXEL_STD is [2.0, 2.0, 2.0]")


@pytest.mark.parametrize("config", [get_cfg, get_detectron2_cfg])
def test_from_a_file_to_a_loaded_detector(tmp_path, config):
    """The four lines of README.md, and what happens without the second."""
    trunk = build_resnext("X14_4x8d", num_classes=5)
    path = tmp_path / "x14.safetensors"
    save_weights(
        path,
        trunk.state_dict(),
        replace(make_record(**MSRA), architecture=trunk.architecture.as_dict()),
    )
    cfg = config()
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.ROI_HEADS.NAME = (
        "build_resnext_backbone",
        "ResNeXtRes5ROIHeads",
    )
    cfg.MODEL.DEVICE, cfg.MODEL.RESNETS.DEPTH = "cpu", 14
    cfg.MODEL.RESNETS.NUM_GROUPS, cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 4, 8
    cfg.MODEL.RESNETS.NORM, cfg.MODEL.RESNETS.OUT_FEATURES = "FrozenBN", ["res4"]
    with pytest.raises(InputError, match=f"{path}: its .*apply_record"):
        load_weights(build_model(cfg), path)
    apply_record(cfg, read_record(path), path)
    model = build_model(cfg)
    load_weights(model, path)
    assert torch.equal(model.roi_heads.res5[0].conv1.weight, trunk.res5[0].conv1.weight)
    assert model.input_format == "BGR"
    assert model.pixel_mean.flatten().tolist() == pytest.approx(MSRA["pixel_mean"])
