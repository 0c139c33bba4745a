"""Guard that a file's contents tell whose it is, and that no entry of it goes unnoticed.

Which pixels a network was trained on is recorded by family: a wrong fact costs accuracy in silence.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from detectron2.modeling import build_model
from foreign import caffe2_names, detectron2_names, network, torchvision_names, write, write_torch7

from resnext_det.config import load_cfg, stage_cfg
from resnext_det.errors import InputError
from resnext_det.weights import Facts, read_source
from resnext_det.weights.facts import IMAGENET, NO_FACTS
from resnext_det.weights.families import recognise, renamed

DEMO = Path(__file__).parents[2] / "configs" / "demo" / "detection.yaml"
RGB = ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
BGR = ([103.53, 116.28, 123.675], [57.375, 57.12, 58.395])
ONES = [1.0, 1.0, 1.0]
GROUPED, PLAIN, WIDE = "X14_4x8d_w0.125", "R14_1x64d_w0.125", "R14_1x128d_w0.125"


def arrays(tree):
    return {k: v.numpy() for k, v in tree.items()}


def author(tree, name):
    return {"model": arrays(tree), "__author__": name, "matching_heuristics": True}


def trained(network_, **blobs):
    """Blobs that Detectron's solver leaves beside the weights."""
    tree = caffe2_names(network_)
    tree |= {f"{k}_momentum": np.zeros_like(v) for k, v in tree.items() if k.endswith("_w")}
    return {**tree, "lr": np.float32(0.1), "weight_order": None, **blobs}


# how it is written, the network, the file, (format, mean, std, stride in 1x1), fused
RULES = {
    "torchvision": (torchvision_names, GROUPED, "x.pth", ("RGB", *RGB, False), False),
    "timm": (torchvision_names, GROUPED, "x.safetensors", ("RGB", *RGB, False), False),
    "torchvision, C = 1": (torchvision_names, PLAIN, "x.pth", ("RGB", *RGB, False), False),
    "detectron2, torchvision's": (
        lambda n: author(detectron2_names(n, head="stem.fc."), "torchvision"),
        GROUPED,
        "x.pkl",
        ("RGB", *RGB, False),
        False,
    ),
    "caffe2": (caffe2_names, GROUPED, "x.pkl", ("BGR", *BGR, False), False),
    "caffe2, a solver's": (trained, GROUPED, "x.pkl", ("BGR", *BGR, False), False),
    "caffe2, detectron2's wrapper": (
        lambda n: {"model": caffe2_names(n), "__author__": "Caffe2"},
        GROUPED,
        "x.pkl",
        ("BGR", *BGR, False),
        False,
    ),
    "caffe2, fused": (
        lambda n: caffe2_names(n, fused=True),
        GROUPED,
        "x.pkl",
        ("BGR", BGR[0], ONES, False),
        True,
    ),
    "caffe2, MSRA": (
        lambda n: caffe2_names(n, head="fc1000"),
        PLAIN,
        "x.pkl",
        ("BGR", BGR[0], ONES, True),
        False,
    ),
    "caffe2, MSRA fused": (
        lambda n: caffe2_names(n, fused=True, head="fc1000"),
        PLAIN,
        "x.pkl",
        ("BGR", BGR[0], ONES, True),
        True,
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_facts_of_a_family(tmp_path, rule):
    names, member, file, facts, is_fused = RULES[rule]
    model = network(member)
    source = read_source(write(tmp_path / file, names(model)))
    record = source.record
    found = (record.pixel_format, record.pixel_mean, record.pixel_std, record.stride_in_1x1)
    assert found == facts and record.fused_norm is is_fused
    assert record.family == {"timm": "torchvision"}.get(rule, rule.split(",")[0])
    assert record.architecture == {**model.architecture.as_dict(), "stride_in_1x1": facts[3]}
    for name, tensor in model.state_dict().items():
        if name in source.tensors and not (is_fused and "running" in name):
            assert torch.equal(source.tensors[name], tensor), name
    missing = set(model.state_dict()) - set(source.tensors)
    assert all(name.endswith("num_batches_tracked") for name in missing)


def test_facts_of_torch7(tmp_path):
    model = network()
    source = read_source(write_torch7(tmp_path / "x.t7", model))
    assert (source.record.family, source.record.pixel_format) == ("torch7", "RGB")
    assert (source.record.pixel_mean, source.record.pixel_std) == RGB
    assert any("gradient buffer" in line for line in source.left_out())


CIFAR = {
    10: ([125.3, 123.0, 113.9], [63.0, 62.1, 66.7]),
    100: ([129.3, 124.1, 112.4], [68.2, 65.4, 70.4]),
}


@pytest.mark.parametrize("classes", CIFAR)
def test_facts_of_a_cifar_network(tmp_path, classes):
    model = network("X20_2x16d_w0.125", num_classes=classes)
    record = read_source(write_torch7(tmp_path / "x.t7", model)).record
    assert record.pixel_format == "RGB"
    assert (record.pixel_mean, record.pixel_std) == CIFAR[classes]


ALL_OPTIONS = ["--pixel-format", "--pixel-mean", "--pixel-std", "--stride-in-1x1"]
SILENT = {
    "cifar, 7 classes": ("x.t7", lambda f: write_torch7(f, network("X20_2x16d_w0.125", 7))),
    "detectron2, no author": ("x.pth", lambda f: write(f, detectron2_names(network()))),
    "detectron2, pycls": ("x.pkl", lambda f: write(f, author(network().state_dict(), "pycls"))),
    "caffe2, wide": ("x.pkl", lambda f: write(f, caffe2_names(network(WIDE)))),
}


@pytest.mark.parametrize("case", SILENT)
def test_what_no_rule_knows_is_asked_for(tmp_path, case):
    file, make = SILENT[case]
    path = make(tmp_path / file)
    with pytest.raises(InputError, match="nothing in it says how pixels are fed") as refused:
        read_source(path)
    for option in ALL_OPTIONS:
        assert option in str(refused.value)
    with pytest.raises(InputError) as refused:
        read_source(path, Facts(pixel_format="BGR", pixel_std=(1, 1, 1)))
    assert "--pixel-std" not in str(refused.value) and "--pixel-mean" in str(refused.value)
    record = read_source(path, Facts("BGR", (1.0, 2.0, 3.0), (4.0, 5.0, 6.0), True)).record
    assert (record.pixel_format, record.pixel_mean) == ("BGR", [1.0, 2.0, 3.0])
    assert record.pixel_std == [4.0, 5.0, 6.0] and record.stride_in_1x1


@pytest.mark.parametrize(
    "given, facts",
    [
        ({}, ("RGB", *RGB, False)),
        ({"stride_in_1x1": True}, ("RGB", *RGB, True)),
        ({"pixel_std": (1.0, 2.0, 3.0)}, ("RGB", RGB[0], [1.0, 2.0, 3.0], False)),
        ({"pixel_format": "RGB"}, ("RGB", *RGB, False)),
        ({"pixel_format": "BGR"}, ("BGR", *BGR, False)),  # the same numbers by colour
        (
            {"pixel_format": "BGR", "pixel_mean": (1.0, 2.0, 3.0)},
            ("BGR", [1.0, 2.0, 3.0], BGR[1], False),
        ),
    ],
    ids=str,
)
def test_stated_facts_overrule_the_rule(tmp_path, given, facts):
    path = write(tmp_path / "x.pth", torchvision_names(network()))
    record = read_source(path, Facts(**given)).record
    found = (record.pixel_format, record.pixel_mean, record.pixel_std, record.stride_in_1x1)
    assert found == facts


@pytest.mark.parametrize(
    "field, value",
    [
        ("pixel_format", "rgb"),
        ("pixel_mean", (1.0, float("nan"), 1.0)),
        ("pixel_mean", (1.0, 1.0)),
        ("pixel_std", (1.0, 0.0, 1.0)),
        ("pixel_std", (1.0, float("inf"), 1.0)),
    ],
)
def test_facts_that_are_none(field, value):
    with pytest.raises(InputError) as refused:
        Facts(**{field: value})
    assert f"--{field.replace('_', '-')} is {value!r}" in str(refused.value)
    assert NO_FACTS.over(IMAGENET) == IMAGENET


# ---- every entry is accounted for ----


def test_solvers_blobs_are_dropped_by_reason(tmp_path):
    tree = trained(network(), iter=np.int64(7), model_iter=180000)  # a plain number in some files
    source = read_source(write(tmp_path / "x.pkl", {"blobs": tree, "cfg": "MODEL: {}"}))
    convolutions = sum(k.endswith("_w") for k in tree)
    assert source.total == len(tree) + 1
    lines = source.left_out()
    assert any(line.startswith(f"{convolutions} x the optimiser's momentum: ") for line in lines)
    assert {"lr", "iter", "model_iter"} <= source.dropped.keys()
    assert source.dropped["cfg"] == source.dropped["weight_order"] == "stands beside the weights"
    kept = {k for k in tree if k not in source.dropped}
    assert len(kept) == len(source.tensors) == source.total - len(source.dropped)
    assert f"{len(kept)} of {source.total} entries used" in str(source)


@pytest.mark.parametrize("names", [torchvision_names, caffe2_names, detectron2_names])
@pytest.mark.parametrize("key", ["extra", "layer1.0.conv1.alpha", "res2_0_branch2a_bn_x", "lr2"])
def test_unknown_entries(tmp_path, names, key):
    tree = {**names(network()), key: torch.zeros(2).numpy()}
    path = write(tmp_path / "x.pkl", {k: np.asarray(v) for k, v in tree.items()})
    with pytest.raises(InputError, match="1 of its entries are unknown") as refused:
        read_source(path)
    assert str(refused.value).startswith(f"{path}: ") and key in str(refused.value)


def test_strange_names_stay_on_one_line():
    keys = [*torchvision_names(network()), "a\nb" * 100, "\x1b[2J", "c" * 10**5]
    text = refusal(keys)
    assert "3 of its entries are unknown" in text and text.isprintable() and len(text) < 600
    assert "\n" not in refusal(["a\nb"])


def test_two_entries_for_one_tensor(tmp_path):
    tree = caffe2_names(network())
    tree["conv1_bn_s"] = tree["res_conv1_bn_s"]  # not Detectron's spelling
    with pytest.raises(InputError, match="conv1_bn_s"):
        read_source(write(tmp_path / "a.pkl", tree))
    tree["res_conv1_bn_gamma"] = tree.pop("conv1_bn_s")
    with pytest.raises(InputError, match="res_conv1_bn_s and res_conv1_bn_gamma mean the same"):
        read_source(write(tmp_path / "b.pkl", tree))


def test_a_missing_tensor_in_the_files_spelling(tmp_path):
    tree = torchvision_names(network())
    del tree["layer2.0.bn3.running_mean"]
    with pytest.raises(InputError, match="lacks layer2.0.bn3.running_mean"):
        read_source(write(tmp_path / "x.pth", tree))
    tree = caffe2_names(network())
    del tree["res3_0_branch2c_bn_rm"]
    with pytest.raises(InputError, match="lacks res3_0_branch2c_bn_rm"):
        read_source(write(tmp_path / "x.pkl", tree))


# ---- fused norms and biases ----


@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
def test_a_fused_norm_is_its_scale_and_shift(tmp_path, norm):
    model = network()
    source = read_source(write(tmp_path / "x.pkl", caffe2_names(model, fused=True)))
    other = network(norm=norm, seed=1)
    other.load_state_dict(source.tensors, strict=norm == "FrozenBN")
    layer = other.res3[0].conv2.norm.eval()
    x = torch.randn(2, layer.num_features, 5, 5, generator=torch.Generator().manual_seed(0))
    scale, shift = (source.tensors[f"res3.0.conv2.norm.{k}"] for k in ("weight", "bias"))
    expected = x * scale.reshape(1, -1, 1, 1) + shift.reshape(1, -1, 1, 1)
    # A running variance of 1 would be off by 5e-6; one rounding fewer, by 6e-8.
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected, rtol=5e-7, atol=5e-7)


@pytest.mark.parametrize("fused", [True, False])
def test_a_convolutions_bias_is_kept_as_a_mean(tmp_path, fused):
    """MSRA's files have conv1_b, which scale (w x + b) + shift takes in exactly."""
    model = network(PLAIN)
    blobs = caffe2_names(model, fused=fused)
    plain = read_source(write(tmp_path / "a.pkl", blobs))
    bias = np.linspace(-1, 1, 8, dtype=np.float32)
    zeros = {
        f"{k[:-1]}b": np.zeros(len(v), np.float32)
        for k, v in blobs.items()
        if "branch" in k and k.endswith("_w")
    }
    source = read_source(write(tmp_path / "b.pkl", {**blobs, **zeros, "conv1_b": bias}))
    assert source.dropped.pop("conv1_b").startswith("a convolution's bias, subtracted")
    assert source.dropped == dict.fromkeys(zeros, "a convolution's bias, all zeros")
    mean = "stem.conv1.norm.running_mean"
    assert torch.equal(source.tensors[mean], plain.tensors[mean] - torch.from_numpy(bias))
    for name in plain.tensors.keys() - {mean}:
        assert torch.equal(source.tensors[name], plain.tensors[name]), name


@pytest.mark.parametrize("blob", ["conv1_b", "res2_0_branch1_b"])
def test_a_bias_of_another_shape(tmp_path, blob):
    tree = {**caffe2_names(network()), blob: np.ones(1, np.float32)}
    with pytest.raises(InputError, match=f"beyond its architecture, {blob}"):
        read_source(write(tmp_path / "x.pkl", tree))


def test_half_fused(tmp_path):
    tree = caffe2_names(network())
    fused = {k: v for k, v in tree.items() if not ("res4" in k and k.endswith(("rm", "riv")))}
    with pytest.raises(InputError, match="lacks res4_0_branch"):
        read_source(write(tmp_path / "x.pkl", fused))


# ---- other networks ----


def keys_of(build, *args, **kwargs):
    with torch.device("meta"):
        return list(build(*args, **kwargs).state_dict())


def refusal(keys):
    with pytest.raises(InputError) as refused:
        renamed(keys, recognise(keys, "x.pth"), "x.pth")
    assert str(refused.value).startswith("x.pth: ") and "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    "name", ["fasterrcnn_resnet50_fpn", "retinanet_resnet50_fpn", "keypointrcnn_resnet50_fpn"]
)
def test_torchvisions_detectors(name):
    keys = keys_of(torchvision.models.get_model, name, weights=None, weights_backbone=None)
    text = refusal(keys)
    assert "holds a whole detector" in text and "classification (ImageNet) weights" in text


@pytest.mark.parametrize("stage", ["rpn", "fast_rcnn", None])
def test_detectron2s_detectors(stage):
    cfg = load_cfg(DEMO, ["MODEL.DEVICE", "cpu"])
    model = build_model(stage_cfg(cfg, stage) if stage else cfg)
    assert "holds a whole detector" in refusal(list(model.state_dict()))


@pytest.mark.parametrize(
    "blob",
    "conv_rpn_w conv_rpn_fpn2_w rpn_cls_logits_w bbox_pred_b cls_score_w fc6_w fpn_res2_2_sum_w "
    "_[mask]_fcn1_w conv_fcn1_w kps_score_lowres_w retnet_cls_conv_n0_fpn3_w".split(),
)
def test_detectrons_detectors(tmp_path, blob):
    tree = {**caffe2_names(network()), blob: np.zeros(3, np.float32)}
    path = write(tmp_path / "model_final.pkl", {"blobs": tree, "cfg": "x"})
    with pytest.raises(InputError, match="holds a whole detector") as refused:
        read_source(path)
    assert blob in str(refused.value) and refused.value.file == str(path)


WRAPPED = {
    "Lightning": lambda n: {
        "state_dict": {f"model.{k}": v for k, v in torchvision_names(n).items()}
    },
    "net": lambda n: {
        "net": {f"module.{k}": v for k, v in torchvision_names(n).items()},
        "acc": 77.0,
    },
    "MMPretrain": lambda n: {"state_dict": openmmlab(n), "meta": {"epoch": 100}},
    "MMPretrain in Lightning": lambda n: {f"model.{k}": v for k, v in openmmlab(n).items()},
    "MMPretrain's trunk": lambda n: {
        k: v for k, v in openmmlab(n).items() if k.startswith("backbone.")
    },
}


def openmmlab(model):
    return {
        f"head.{k}" if k.startswith("fc.") else f"backbone.{k}": v
        for k, v in torchvision_names(model).items()
    }


@pytest.mark.parametrize("form", WRAPPED)
def test_what_training_programs_put_around_them(tmp_path, form):
    model = network()
    tree = WRAPPED[form](model)
    source = read_source(write(tmp_path / "x.pth", tree))
    assert source.record.family == "torchvision" and source.record.pixel_format == "RGB"
    expected = model.state_dict()
    if "trunk" in form:
        expected = {k: v for k, v in expected.items() if not k.startswith("linear.")}
    assert set(source.tensors) == set(expected)
    assert all(torch.equal(source.tensors[name], expected[name]) for name in expected)
    assert set(source.dropped) == {"acc", "meta"} & set(tree)


@pytest.mark.parametrize(
    "key, found",
    [
        ("head.fc2.weight", "1 of its entries are unknown among torchvision or timm weights"),
        ("neck.gap.weight", "holds a whole detector"),
        ("backbone.stem.0.weight", "a deep stem"),
        ("backbone.layer1.0.se.fc1.weight", "channel attention"),
        ("fc.weight", "head.fc.weight and fc.weight mean the same"),
    ],
)
def test_openmmlabs_other_entries(key, found):
    text = refusal([*openmmlab(network()), key])
    assert found in text and key in text


def test_a_checkpoint_of_ours(tmp_path):
    """Its tensors are all there, but nothing in it says how its pixels are fed."""
    model = network()
    tree = {"model": {f"trunk.{k}": v for k, v in model.state_dict().items()}, "iteration": 7}
    path = write(tmp_path / "model_0000007.pth", tree)
    with pytest.raises(InputError, match="give the model_final.safetensors .* or convert it by"):
        read_source(path)
    source = read_source(path, Facts("BGR", (1.0, 2.0, 3.0), (4.0, 5.0, 6.0), False))
    assert source.record.architecture == model.architecture.as_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(source.tensors[name], tensor), name


@pytest.mark.parametrize("value", [-1.0, -1e-7])
@pytest.mark.parametrize(
    "names, file, key",
    [
        (torchvision_names, "x.pth", "layer2.0.bn3.running_var"),
        (caffe2_names, "x.pkl", "res3_0_branch2c_bn_riv"),
        (detectron2_names, "x.pth", "res3.0.conv3.norm.running_var"),
    ],
)
def test_a_negative_variance(tmp_path, names, file, key, value):
    model = network()
    model.res3[0].conv3.norm.running_var[1] = value
    path = write(tmp_path / file, names(model))
    with pytest.raises(InputError) as refused:
        read_source(path, Facts("RGB", *map(tuple, RGB), False))
    assert str(refused.value).startswith(f"{path}: {key} holds {value:g}, and no variance")


VARIANTS = {
    "seresnext50_32x4d": ["channel attention", "layer1.0.se.fc1.weight"],
    "ecaresnet50t": ["a deep stem", "conv1.0.weight"],
    "resnext50d_32x4d": ["a deep stem", "conv1.0.weight"],
    "resnet50c": ["a deep stem", "conv1.0.weight"],
    "skresnext50_32x4d": ["convolutions of another kind", "layer1.0.conv1.conv.weight"],
    "resnest14d": ["a deep stem", "conv1.0.weight"],
    "resnet50_gn": ["norms without running statistics", "bn1.weight"],
    "resnet18": ["blocks of two convolutions", "layer1.0.conv1.weight"],
    "resnetv2_50": ["names are of no known family", "stem.conv.weight"],
    "vgg11": ["names are of no known family", "features.0.weight"],
    "regnetx_002": ["names are of no known family", "stem.conv.weight"],
}


@pytest.mark.parametrize("name", VARIANTS)
def test_timms_other_networks(name):
    timm = pytest.importorskip("timm", reason="its names are the point")
    text = refusal(keys_of(timm.create_model, name))
    for word in VARIANTS[name]:
        assert word in text


def test_pooled_shortcuts():
    """avg_down alone: timm has it with a deep stem only."""
    keys = [
        k.replace("downsample.1", "downsample.2").replace("downsample.0", "downsample.1")
        for k in torchvision_names(network())
    ]
    text = refusal(keys)
    assert "shortcuts with average pooling" in text and "layer1.0.downsample.2.weight" in text


def test_group_norm_of_caffe2():
    keys = [k.replace("_bn_", "_gn_") for k in caffe2_names(network(), fused=True)]
    assert "group normalisation (res_conv1_gn_s, res_conv1_gn_b" in refusal(keys)


@pytest.mark.parametrize("member", ["X14_4x8d_w0.125_noshortcut", "X20_2x16d_w0.125"])
@pytest.mark.parametrize("names", [torchvision_names, caffe2_names])
def test_what_the_family_does_not_build(tmp_path, member, names):
    path = write(tmp_path / "x.pkl", {k: np.asarray(v) for k, v in names(network(member)).items()})
    with pytest.raises(InputError, match=f"{member} by its shapes, which .* does not build"):
        read_source(path)
