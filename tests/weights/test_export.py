"""Guard the way out: torchvision and timm take the files strictly, and compute the same.

What they cannot express is refused; a file that is there is never touched.
"""

import os
from dataclasses import replace

import pytest
import torch
from foreign import caffe2_names, network, torchvision_names, write
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torchvision.models.resnet import Bottleneck, ResNet

from resnext_det.errors import InputError
from resnext_det.weights import (
    Facts,
    WeightsRecord,
    export,
    export_weights,
    read_source,
    read_weights,
    save_weights,
)
from resnext_det.weights.export import TARGETS, check_target

MEMBER = "X14_4x4d"  # of torchvision's own width, 6 M parameters
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


@pytest.fixture(scope="module")
def model():
    return network(MEMBER)


@pytest.fixture(scope="module")
def torchvision_file(model, tmp_path_factory):
    return write(tmp_path_factory.mktemp("torchvision") / "x14.pth", torchvision_names(model))


def peer(state):
    """torchvision's network, loaded strictly."""
    with torch.device("meta"):
        made = ResNet(Bottleneck, [1, 1, 1, 1], num_classes=5, groups=4, width_per_group=4)
    made.load_state_dict(state, assign=True)
    return made.eval()


def own(tmp_path, name="own.safetensors", member="X14_4x8d_w0.125", **changed):
    """A file of ours."""
    made = network(member, num_classes=5)
    record = WeightsRecord(
        **{
            "kind": "classification",
            "architecture": made.architecture.as_dict(),
            "pixel_format": "RGB",
            "pixel_mean": list(MEAN),
            "pixel_std": list(STD),
            **changed,
        }
    )
    save_weights(tmp_path / name, made.state_dict(), record)
    return read_source(tmp_path / name)


def assert_equal(found, expected):
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


# ---- there and back ----


def test_torchvision_and_back(torchvision_file, model, tmp_path):
    """To the bit, its step counters too."""
    ours, back = tmp_path / "x.safetensors", tmp_path / "back.pth"
    assert export_weights(ours, read_source(torchvision_file), "resnext_det") == []
    tensors, record = read_weights(ours)
    assert_equal(tensors, model.state_dict())
    assert record == read_source(torchvision_file).record
    assert export_weights(back, read_source(ours), "torchvision") == []
    state = torch.load(back, weights_only=True)
    assert_equal(state, torchvision_names(model))
    peer(state)


def test_timm_and_back(model, tmp_path):
    theirs = write(tmp_path / "timm.safetensors", torchvision_names(model))
    ours, back = tmp_path / "ours.safetensors", tmp_path / "back.safetensors"
    export_weights(ours, read_source(theirs), "resnext_det")
    export_weights(back, read_source(ours), "timm")
    assert_equal(load_file(back), load_file(theirs))
    with safe_open(str(back), "pt") as file:
        assert file.metadata() == {"format": "pt"}  # as timm's own files


def test_trained_here(tmp_path):
    """A file of ours with everything in its record."""
    source = own(tmp_path, member=MEMBER, class_names=["a"] * 5, top1_error=1.0, config="x: 1")
    export_weights(tmp_path / "x.pth", source, "torchvision")
    state = torch.load(tmp_path / "x.pth", weights_only=True)
    assert_equal(state, torchvision_names(network(MEMBER)))
    export_weights(tmp_path / "again.safetensors", source, "resnext_det")
    assert read_source(tmp_path / "again.safetensors").record == source.record


# ---- pixels ----


def images():
    """(2, 3, 64, 64), RGB, 0..255."""
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2)) * 255


def normalised(images, pixel_format, mean, std):
    if pixel_format == "BGR":
        images = images.flip(1)
    shape = (1, 3, 1, 1)
    return (images - torch.tensor(mean).reshape(shape)) / torch.tensor(std).reshape(shape)


PIXELS = {
    "BGR": ({"pixel_format": "BGR"}, 2e-5),
    "another deviation": ({"pixel_std": [1.0, 2.0, 3.0]}, 2e-5),
    "BGR, deviation 1": (
        {"pixel_format": "BGR", "pixel_mean": list(MEAN[::-1]), "pixel_std": [1.0] * 3},
        2e-5,
    ),
    "mean by 0..1": ({"pixel_mean": [0.485 * 255, 0.456 * 255, 0.406 * 255]}, 2e-5),
}


@pytest.mark.parametrize("case", PIXELS)
def test_other_pixels(torchvision_file, model, tmp_path, case):
    """The same outputs on the same picture; sums in another order round differently."""
    given, tolerance = PIXELS[case]
    facts = Facts(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})
    source = read_source(torchvision_file, facts)
    # Random weights on pixels of deviation 1 would give outputs of thousands.
    scale = torch.tensor(STD) / torch.tensor(source.record.pixel_std)
    source.tensors["stem.conv1.weight"] /= scale.mean()
    ours = network(MEMBER, seed=1)
    ours.load_state_dict(source.tensors)
    export_weights(tmp_path / "x.pth", source, "torchvision")
    theirs = peer(torch.load(tmp_path / "x.pth", weights_only=True))
    record = source.record
    with torch.no_grad():
        expected = ours(
            normalised(images(), record.pixel_format, record.pixel_mean, record.pixel_std)
        )["linear"]
        found = theirs(normalised(images(), "RGB", MEAN, STD))
    assert expected.std() > 0.05
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * expected.abs().max())


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("to", ["torchvision", "timm"])
def test_caffe2_to_others(model, tmp_path, fused, to):
    """BGR pixels, deviation 1 where norms are fused, to RGB and ImageNet's: the same outputs."""
    blobs = caffe2_names(model, fused=fused)
    blobs["conv1_w"] = blobs["conv1_w"] / (57 if fused else 1)
    source = read_source(write(tmp_path / "x.pkl", blobs))
    path = tmp_path / f"x{TARGETS[to]}"
    notices = export_weights(path, source, to)
    assert len(notices) == fused and all("fused" in notice for notice in notices)
    theirs = peer(load_file(path) if to == "timm" else torch.load(path, weights_only=True))
    ours = network(MEMBER, norm="FrozenBN", seed=1)
    ours.load_state_dict(source.tensors, strict=True)
    record = source.record
    with torch.no_grad():
        expected = ours(
            normalised(images(), record.pixel_format, record.pixel_mean, record.pixel_std)
        )["linear"]
        found = theirs(normalised(images(), "RGB", MEAN, STD))
    assert expected.std() > 0.05
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * expected.abs().max())


def test_only_the_first_convolution_changes(torchvision_file, tmp_path):
    facts = Facts(pixel_format="BGR", pixel_std=(57.375, 57.12, 58.395 / 2))
    source = read_source(torchvision_file, facts)
    export_weights(tmp_path / "x.pth", source, "torchvision")
    state = torch.load(tmp_path / "x.pth", weights_only=True)
    plain = torch.load(torchvision_file, weights_only=True)
    changed = [name for name in plain if not torch.equal(state[name], plain[name])]
    assert changed == ["conv1.weight"]
    turned = plain["conv1.weight"].flip(1)
    assert torch.equal(state["conv1.weight"][:, 1:], turned[:, 1:])
    assert torch.equal(state["conv1.weight"][:, 0], 2 * turned[:, 0])


# ---- what they have and we have not, and the other way round ----


def test_step_counters_are_theirs(model, tmp_path):
    source = read_source(write(tmp_path / "x.pkl", caffe2_names(model)))
    export_weights(tmp_path / "x.pth", source, "torchvision")
    state = torch.load(tmp_path / "x.pth", weights_only=True)
    counters = [v for k, v in state.items() if k.endswith("num_batches_tracked")]
    assert len(counters) == sum(k.endswith("running_mean") for k in state)
    assert all(v == 0 and v.dtype == torch.int64 for v in counters)
    peer(state)


@pytest.mark.parametrize("to", ["torchvision", "timm"])
def test_without_a_head(torchvision_file, tmp_path, to):
    state = torch.load(torchvision_file, weights_only=True)
    state = {k: v for k, v in state.items() if not k.startswith("fc.")}
    source = read_source(write(tmp_path / "trunk.pth", state))
    path = tmp_path / f"x{TARGETS[to]}"
    (notice,) = export_weights(path, source, to)
    assert "has no head" in notice
    found = load_file(path) if to == "timm" else torch.load(path, weights_only=True)
    assert_equal(found, state)


REFUSED = {
    "detector": ({"kind": "detector"}, {}, "holds detector weights"),
    "mean": ({"pixel_mean": [102.98, 115.95, 122.77]}, {}, "mean [102.98, 115.95, 122.77] (RGB)"),
    "mean in the other order": ({"pixel_format": "BGR", "pixel_mean": list(MEAN)}, {}, "(BGR)"),
    "stride": ({}, {"member": "X14_4x4d_stride1x1"}, "has its stride in the 1x1"),
    "width": ({}, {"member": "X14_4x8d_w0.125"}, "has a stem of 8 channels"),
    "CIFAR": ({}, {"member": "X20_2x16d_w0.125"}, "is a CIFAR network"),
    "pre-activation": ({}, {"member": "R200_1x16d_w0.125"}, "has pre-activation blocks"),
    "no shortcuts": ({}, {"member": "X14_4x4d_noshortcut"}, "has no shortcuts"),
}


@pytest.mark.parametrize("to", ["torchvision", "timm"])
@pytest.mark.parametrize("case", REFUSED)
def test_what_they_cannot_express(tmp_path, case, to):
    changed, member, found = REFUSED[case]
    source = own(tmp_path, **{"member": MEMBER, **member}, **changed)
    with pytest.raises(InputError) as refused:
        export_weights(tmp_path / f"x{TARGETS[to]}", source, to)
    assert refused.value.file == source.path
    assert found in str(refused.value) and "\n" not in str(refused.value)
    assert os.listdir(tmp_path) == ["own.safetensors"]
    export_weights(tmp_path / "copy.safetensors", source, "resnext_det")  # which takes all


@pytest.mark.parametrize("to", ["torchvision", "timm"])
def test_tensors_that_are_not_the_records(tmp_path, to):
    """As somebody's own code could put them together; a file of this kind is not even read."""
    source = own(tmp_path, member=MEMBER)
    other = replace(source.record, architecture=network("X14_8x2d").architecture.as_dict())
    with pytest.raises(InputError, match=r"res2.0.conv2.weight has shape \(16, 4, 3, 3\)"):
        export_weights(tmp_path / f"x{TARGETS[to]}", replace(source, record=other), to)


# ---- files ----


@pytest.mark.parametrize("to", TARGETS)
def test_a_file_that_is_there_stays(tmp_path, to):
    source = own(tmp_path, member=MEMBER)
    path = tmp_path / f"x{TARGETS[to]}"
    path.write_text("mine")
    with pytest.raises(InputError, match="exists already") as refused:
        export_weights(path, source, to)
    assert refused.value.file == str(path) and path.read_text() == "mine"


@pytest.mark.parametrize("to, name", [("torchvision", "x.safetensors"), ("timm", "x.pth")])
def test_the_names_ending(tmp_path, to, name):
    with pytest.raises(InputError, match=f"--to {to} writes a {TARGETS[to]} file"):
        check_target(tmp_path / name, tmp_path / "in.pth", to)


def test_input_is_not_output(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_text("mine")
    (tmp_path / "link.safetensors").symlink_to(path)
    for source in (path, tmp_path / "link.safetensors", tmp_path / "." / "x.safetensors"):
        with pytest.raises(InputError, match="is the file to convert"):
            check_target(path, source, "resnext_det")


FULL_DISK = {  # as torch.save, safetensors and Python itself say it
    "unexpected pos 704 vs 598": RuntimeError("unexpected pos 704 vs 598\nframe #0"),
    "I/O error: No space": SafetensorError("I/O error: No space"),
    "No space left on device": OSError(28, "No space left on device", "x"),
}


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("words", FULL_DISK)
def test_nothing_is_left_of_a_write_that_fails(tmp_path, to, words, monkeypatch):
    source = own(tmp_path, member=MEMBER)

    def fail(tensors, path, **others):
        (path.write if hasattr(path, "write") else path.write_bytes)(b"half")
        raise FULL_DISK[words]

    monkeypatch.setattr(export, "save_file", fail)
    monkeypatch.setattr("resnext_det.weights.files.save_file", fail)
    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(InputError, match=rf"cannot be written \({words}\)"):
        export_weights(tmp_path / f"x{TARGETS[to]}", source, to)
    assert os.listdir(tmp_path) == ["own.safetensors"]


def test_a_folder_that_cannot_be_made(tmp_path):
    source = own(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        export_weights(tmp_path / "file" / "x.safetensors", source, "resnext_det")


def test_the_source_is_not_changed(torchvision_file, tmp_path):
    source = read_source(torchvision_file, Facts(pixel_format="BGR"))
    before = {name: tensor.clone() for name, tensor in source.tensors.items()}
    export_weights(tmp_path / "x.pth", replace(source), "torchvision")
    assert_equal(source.tensors, before)
