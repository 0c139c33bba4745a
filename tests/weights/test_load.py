"""Guard the step from classification to detection: every trunk tensor is the file's, or it is said.

The models are the package's own detectors, small: two networks, res5 in the second one's RoI heads.
"""

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from resnext_det.classification.classifier import Classifier
from resnext_det.config import architecture_arguments, load_cfg, stage_cfg, trunk_arguments
from resnext_det.errors import InputError
from resnext_det.models import Architecture, build_resnext
from resnext_det.weights import WeightsRecord, load_all, load_trunk, load_weights, save_weights

CONFIG = Path(__file__).parents[2] / "configs" / "demo" / "detection.yaml"
TINY = {
    "MODEL.DEVICE": "cpu",
    "MODEL.PRECISION": "fp32",
    "MODEL.RESNETS.NORM": "FrozenBN",
    "MODEL.RESNETS.NUM_GROUPS": "4",
    "MODEL.RESNETS.WIDTH_PER_GROUP": "8",
    "MODEL.RESNETS.WIDTH_MULTIPLIER": "0.125",
    "MODEL.ROI_HEADS.NUM_CLASSES": "3",
}
RES5 = "fast_rcnn.roi_heads.res5.0.conv1.weight"
COUNTER = "num_batches_tracked"
NARROW = "X14_4x8d_w0.125"


@pytest.fixture(scope="module")
def cfg():
    return load_cfg(CONFIG, [word for pair in TINY.items() for word in pair])


@pytest.fixture
def detector(cfg):
    """A fresh one for each test, for loading changes it."""
    torch.manual_seed(0)
    model = build_model(cfg)
    assert type(model).__name__ == "NonSharedRCNN"
    return model


def with_value(cfg, key, value):
    cfg = cfg.clone()
    cfg.MODEL.RESNETS[key] = value
    return cfg


def classifier(cfg, **others):
    return build_resnext(**{**trunk_arguments(cfg), "norm": "BN", **others}, num_classes=5)


@pytest.fixture
def tensors(cfg):
    """A classification file's: every value unlike any start value."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.rand(tensor.shape, generator=generator) + 2
        if tensor.is_floating_point()
        else tensor + 9
        for name, tensor in classifier(cfg).state_dict().items()
    }


def record_for(cfg, kind="classification"):
    return WeightsRecord(
        kind=kind,
        architecture=Architecture(**architecture_arguments(cfg)).as_dict(),
        pixel_format="RGB",
        pixel_mean=list(cfg.MODEL.PIXEL_MEAN),
        pixel_std=list(cfg.MODEL.PIXEL_STD),
    )


def copy_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_refused(load, *words):
    with pytest.raises(InputError) as refused:
        load()
    assert str(refused.value).startswith("x50.safetensors: ")
    for word in words:
        assert word in str(refused.value)


def places(keys):
    return {".".join(key.split(".")[:3]) for key in keys}


# ---- the trunk ----

TRUNK = {f"{net}.backbone.{part}" for net in ("rpn", "fast_rcnn") for part in ("stem", "res2")}
TRUNK |= {f"{net}.backbone.{part}" for net in ("rpn", "fast_rcnn") for part in ("res3", "res4")}
TRUNK |= {"fast_rcnn.roi_heads.res5"}


def in_the_file(key):
    """Written anew, without the package's table of names."""
    return key.partition("backbone.")[2] or key.partition("roi_heads.")[2]


def test_every_trunk_tensor_is_the_files(detector, tensors):
    before = copy_of(detector)
    report = load_trunk(detector, tensors, "x50.safetensors")
    after = detector.state_dict()
    changed = [key for key in after if not torch.equal(after[key], before[key])]
    assert places(changed) == TRUNK
    trunk = [key for key in after if places([key]) <= TRUNK]
    assert changed == trunk  # each of them, and no tensor of a head
    for key in trunk:
        assert torch.equal(after[key], tensors[in_the_file(key)]), key
    assert report.loaded == report.wanted == len(trunk)
    assert report.fresh == () and report.unused == ("linear.weight", "linear.bias")
    assert str(report).startswith(f"loaded {len(trunk)} of {len(trunk)} tensors")


@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
@pytest.mark.parametrize("stage", ["rpn", "fast_rcnn"])
def test_one_network_alone(cfg, tensors, stage, norm):
    """With batch norm that trains as well, whose step counter is not counted as a tensor."""
    model = build_model(stage_cfg(with_value(cfg, "NORM", norm), stage))
    report = load_trunk(model, tensors, "x50.safetensors")
    state = model.state_dict()
    trunk = [
        key
        for key in state
        if key.startswith(("backbone.", "roi_heads.res5.")) and not key.endswith(COUNTER)
    ]
    assert report.loaded == report.wanted == len(trunk)
    for key in trunk:
        assert torch.equal(state[key], tensors[in_the_file(key)]), key
    unused = {name.split(".")[0] for name in report.unused}
    assert unused == ({"linear", "res5"} if stage == "rpn" else {"linear"})


def test_missing_tensor(detector, tensors):
    before = copy_of(detector)
    del tensors["res5.0.conv1.weight"]
    assert_refused(
        lambda: load_trunk(detector, tensors, "x50.safetensors"),
        RES5,
        "missing from the file",
        "MODEL.WEIGHTS_ALLOW_MISSING",
    )
    for key, tensor in detector.state_dict().items():
        assert torch.equal(tensor, before[key]), key  # nothing was loaded half


def test_many_missing_tensors_are_counted(detector, tensors):
    tensors = {key: value for key, value in tensors.items() if not key.startswith("res3")}
    gone = sum(".res3." in key for key in detector.state_dict())
    wanted = sum(places([key]) <= TRUNK for key in detector.state_dict())
    assert_refused(
        lambda: load_trunk(detector, tensors, "x50.safetensors"),
        f"loaded {wanted - gone} of {wanted} tensors",
        "res3.",
        "...",
    )


def test_other_shape(detector, tensors):
    before = copy_of(detector)
    tensors["res5.0.conv1.weight"] = torch.zeros(3, 4, 1, 1)
    ours = tuple(detector.state_dict()[RES5].shape)
    assert_refused(
        lambda: load_trunk(detector, tensors, "x50.safetensors"), RES5, "(3, 4, 1, 1)", str(ours)
    )
    for key, tensor in detector.state_dict().items():
        assert torch.equal(tensor, before[key]), key


@pytest.mark.parametrize("patterns", [(RES5,), ("*.res5.*",), ("nothing", "fast_rcnn.*")])
def test_allowed_to_be_missing(detector, tensors, patterns):
    before = detector.state_dict()[RES5].clone()
    del tensors["res5.0.conv1.weight"]
    report = load_trunk(detector, tensors, "x50.safetensors", allow_missing=patterns)
    assert report.fresh == (RES5,) and report.loaded == report.wanted - 1
    assert torch.equal(detector.state_dict()[RES5], before)
    assert "1 start fresh" in str(report)


def test_another_pattern_allows_nothing(detector, tensors):
    del tensors["res5.0.conv1.weight"]
    assert_refused(
        lambda: load_trunk(detector, tensors, "x50.safetensors", allow_missing=("*.res4.*",)), RES5
    )


def test_unused_ones_are_listed(detector, tensors):
    report = load_trunk(detector, tensors, "x50.safetensors")
    assert report.unused == ("linear.weight", "linear.bias")
    assert "2 of the file not used here" in str(report) and "linear.weight" in str(report)


@pytest.mark.parametrize(
    "name", ["res6.0.conv1.weight", "res5.1.conv1.weight", "stem.conv1.bias", "fc.weight", "linear"]
)
def test_any_other_left_over_is_refused(detector, tensors, name):
    before = copy_of(detector)
    tensors[name] = torch.zeros(1)
    assert_refused(
        lambda: load_trunk(detector, tensors, "x50.safetensors"),
        f"holds 1 tensors this model has no place for ({name})",
    )
    for key, tensor in detector.state_dict().items():
        assert torch.equal(tensor, before[key]), key


def test_a_stage_of_which_the_model_has_a_part_is_whole(cfg, tensors):
    """An RPN on res4 has nothing of res5, which may stay unused; of res4 it has all."""
    model = build_model(stage_cfg(cfg, "rpn"))
    tensors["res5.7.conv1.weight"] = torch.zeros(1)
    assert "res5.7.conv1.weight" in load_trunk(model, tensors, "x50.safetensors").unused
    tensors["res4.7.conv1.weight"] = torch.zeros(1)
    assert_refused(lambda: load_trunk(model, tensors, "x50.safetensors"), "(res4.7.conv1.weight)")


def test_another_depth_is_not_taken(cfg, detector):
    """A deeper file has all the names of a shallower one, and more of them."""
    deeper = classifier(cfg, depth=26).state_dict()
    assert_refused(
        lambda: load_trunk(detector, deeper, "x50.safetensors"),
        "no place for (res2.1.conv1.weight",
        "by its shapes it is X26_4x8d_w0.125",
    )
    shallower = classifier(cfg).state_dict()
    deep = build_model(with_value(cfg, "DEPTH", 26))
    assert_refused(
        lambda: load_trunk(deep, shallower, "x50.safetensors"), "missing", ".1.", f"it is {NARROW}"
    )


@pytest.mark.parametrize("norm", ["LN", ""])
def test_norms_without_statistics(cfg, tensors, norm):
    """Scale and shift alone would be taken, and the means and variances left behind."""
    model = build_model(with_value(cfg, "NORM", norm))
    assert_refused(
        lambda: load_trunk(model, tensors, "x50.safetensors"),
        "norm.running_mean",
        "MODEL.RESNETS.NORM",
        '"FrozenBN", "BN" or "SyncBN"',
    )
    without = classifier(cfg, norm=norm).state_dict()
    load_trunk(model, without, "x50.safetensors")
    frozen = build_model(cfg)
    assert_refused(
        lambda: load_trunk(frozen, without, "x50.safetensors"), "norm.", "MODEL.RESNETS.NORM"
    )


# ---- whole models ----


def test_a_plain_model_is_told_what_to_build(cfg, tensors):
    """There is no config that it was trained with."""
    other = classifier(cfg, depth=26)
    build = f'build_resnext("{NARROW}", num_classes=5)'
    assert_refused(lambda: load_all(other, tensors, "x50.safetensors"), "missing", build)
    other = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 7))
    assert_refused(lambda: load_all(other, tensors, "x50.safetensors"), "no place for", build)
    other = build_resnext(**{**trunk_arguments(cfg), "norm": "BN"}, num_classes=7)
    assert_refused(
        lambda: load_all(other, tensors, "x50.safetensors"), "linear.weight", "(5, 256)", build
    )


@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
def test_load_all(cfg, norm):
    first, second = (build_model(with_value(cfg, "NORM", norm)) for _ in range(2))
    content = {name: tensor + 1 for name, tensor in copy_of(first).items()}
    report = load_all(second, content, "x50.safetensors")
    assert report.loaded == report.wanted == sum(not key.endswith(COUNTER) for key in content)
    for key, tensor in second.state_dict().items():
        assert torch.equal(tensor, content[key]), key


def test_load_all_refuses_left_overs(detector):
    content = {**copy_of(detector), "mask_head.conv.weight": torch.zeros(1)}
    assert_refused(
        lambda: load_all(detector, content, "x50.safetensors"),
        "1 tensors this model has no place for",
        "mask_head.conv",
    )


def test_load_all_refuses_missing_ones(detector):
    content = copy_of(detector)
    del content["fast_rcnn.roi_heads.box_predictor.cls_score.bias"]
    assert_refused(
        lambda: load_all(detector, content, "x50.safetensors"),
        "fast_rcnn.roi_heads.box_predictor.cls_score.bias",
        "missing",
    )


def test_load_all_refuses_another_class_count(detector):
    content = copy_of(detector)
    key = "fast_rcnn.roi_heads.box_predictor.cls_score.bias"
    content[key] = torch.zeros(81)
    assert_refused(lambda: load_all(detector, content, "x50.safetensors"), key, "(81,)", "(4,)")


# ---- from a file ----


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x50.safetensors"


def test_classification_file_into_a_detector(cfg, detector, tensors, path):
    record = record_for(cfg)
    save_weights(path, tensors, record)
    assert load_weights(detector, path) == record
    assert torch.equal(detector.state_dict()[RES5], tensors["res5.0.conv1.weight"])


def test_classification_file_into_a_classifier(cfg, tensors, path):
    """Whole: the head too."""
    save_weights(path, tensors, record_for(cfg))
    model = classifier(cfg)
    load_weights(model, path)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, tensors[key]), key


def test_detector_file_must_fit_exactly(cfg, detector, path):
    content = copy_of(detector)
    save_weights(path, content, record_for(cfg, "detector"))
    load_weights(detector, path)
    del content["fast_rcnn.roi_heads.box_predictor.cls_score.bias"]
    save_weights(path, content, record_for(cfg, "detector"))
    with pytest.raises(InputError, match="cls_score.bias") as refused:
        load_weights(detector, path)
    assert str(refused.value).startswith(f"{path}: ")


def test_classification_file_into_the_trainers_classifier(cfg, tensors, path):
    """Which has the trunk and nothing beside it."""
    save_weights(path, tensors, record_for(cfg))
    model = Classifier(classifier(cfg))
    load_weights(model, path)
    for key, tensor in model.trunk.state_dict().items():
        assert torch.equal(tensor, tensors[key]), key
