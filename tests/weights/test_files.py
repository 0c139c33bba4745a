"""Guard what a weights file promises: whole or not there, a record inside, no code run on reading.

Every refusal is an InputError that names the file; other programs' files come in the same way.
"""

import logging
import os
from dataclasses import replace

import pytest
import torch
from foreign import SMALL, network, torchvision_names, write, write_torch7
from safetensors.torch import save_file

from resnext_det.errors import InputError
from resnext_det.models import Architecture
from resnext_det.weights import (
    Facts,
    WeightsRecord,
    files,
    load_weights,
    read_record,
    read_source,
    read_weights,
    save_weights,
)

RECORD = WeightsRecord(
    kind="classification",
    architecture=Architecture.from_name(SMALL).as_dict(),
    pixel_format="RGB",
    pixel_mean=[123.675, 116.28, 103.53],
    pixel_std=[58.395, 57.12, 57.375],
    class_names=["Katze", "chien", "鳥"],
    class_ids=[1, 2, 90],
    top1_error=22.2,
    config="MODEL:\n  DEVICE: cpu\n",
    versions={"torch": "2"},
)
OF_AN_RPN = replace(RECORD, kind="rpn", has_statistics=False)  # of any tensors


def make_tensors():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 4, 3, 3, generator=generator)
    return {
        "stem.conv1.weight": weight,
        "res2.0.conv1.weight": weight.to(memory_format=torch.channels_last),
        "shared": weight,  # the same memory as the first
        "part": weight[2:5],
        "half": weight.bfloat16(),
        "bn1.num_batches_tracked": torch.tensor(7),
        "parameter": torch.nn.Parameter(weight.clone()),
    }


def assert_refused(read, path, *words):
    with pytest.raises(InputError) as refused:
        read(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert "\n" not in str(refused.value)
    for word in words:
        assert word in str(refused.value)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model_final.safetensors"


# ---- writing ----


def test_round_trip(path):
    tensors = make_tensors()
    save_weights(path, tensors, OF_AN_RPN)
    found, record = read_weights(path)
    assert record == read_record(path) == OF_AN_RPN
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def test_a_new_folder_is_made(tmp_path):
    save_weights(tmp_path / "run" / "rpn" / "x.safetensors", make_tensors(), RECORD)
    assert [p.name for p in (tmp_path / "run" / "rpn").iterdir()] == ["x.safetensors"]


def break_off(plain, path, metadata):
    """As a full disk or a kill would: some bytes, then no more."""
    path.write_bytes(b"half")
    raise OSError("No space left on device")


def test_a_half_written_file_is_never_left(path, monkeypatch):
    monkeypatch.setattr(files, "save_file", break_off)
    with pytest.raises(OSError, match="No space left"):
        save_weights(path, make_tensors(), RECORD)
    assert list(path.parent.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(path, monkeypatch):
    save_weights(path, make_tensors(), RECORD)
    before = path.read_bytes()
    monkeypatch.setattr(files, "save_file", break_off)
    with pytest.raises(OSError, match="No space left"):
        save_weights(path, {}, RECORD)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_nothing_stands_at_the_path_before_it_is_whole(path, monkeypatch):
    seen = []

    def watch(plain, aside, metadata):
        save_file(plain, aside, metadata=metadata)
        seen.append((path.exists(), aside.parent == path.parent))

    monkeypatch.setattr(files, "save_file", watch)
    save_weights(path, make_tensors(), RECORD)
    assert seen == [(False, True)]  # the same folder, for a rename within one disk


@pytest.mark.parametrize("own", [True, False], ids=["ours", "timm"])
def test_every_length_of_the_header(path, own):
    """A file begins with it: 0x80 is no pickle's first byte here, nor 0x50 a zip archive's P."""
    seen = set()
    tensors = network().state_dict() if own else torchvision_names(network())
    for length in range(0, 256, 8):
        if own:
            save_weights(path, tensors, replace(RECORD, config="x" * length))
        else:
            save_file(tensors, path, metadata={"format": "x" * (length + 1)})
        seen.add(path.read_bytes()[0])
        assert set(read_source(path).tensors) == set(network().state_dict())
    assert seen == set(range(0, 256, 8))


# ---- refusals ----

READERS = pytest.mark.parametrize("read", [read_record, read_weights])


@READERS
def test_missing_file(read, path):
    assert_refused(read, path, "does not exist", "MODEL.WEIGHTS")


@READERS
def test_folder(read, tmp_path):
    assert_refused(read, tmp_path, "is a folder", "give a file in it")
    (tmp_path / "model_final.safetensors").write_bytes(b"")
    assert_refused(read, tmp_path, "is a folder", f"give {tmp_path / 'model_final.safetensors'}")


@READERS
@pytest.mark.parametrize("address", ["detectron2://ImageNetPretrained/R-50.pkl", "https://x/y.pth"])
def test_address(read, address):
    assert_refused(read, address, "is an address, not a file")


BAD_VALUES = {
    "NaN": ("res3.0.conv1.weight", float("nan"), "holds NaN or infinity"),
    "infinity": ("linear.bias", float("inf"), "holds NaN or infinity"),
    "variance": ("res3.0.conv1.norm.running_var", -0.5, "holds -0.5, and no variance"),
}


@pytest.mark.parametrize("kind", ["classification", "rpn"])
@pytest.mark.parametrize("case", BAD_VALUES)
def test_values_that_no_network_has(path, kind, case):
    name, value, found = BAD_VALUES[case]
    tensors = network().state_dict()
    tensors[name].view(-1)[1] = value
    save_weights(path, tensors, replace(RECORD, kind=kind))
    assert_refused(read_weights, path, name, found)


def test_tensors_that_are_not_the_records(path):
    """Classification files only: other kinds have heads, and must fit their models exactly."""
    tensors = network().state_dict()
    other = replace(RECORD, architecture=Architecture.from_name("X14_2x16d_w0.125").as_dict())
    save_weights(path, tensors, other)
    assert_refused(read_weights, path, "res2.0.conv2.weight has shape", "X14_2x16d_w0.125")
    save_weights(path, network("X26_4x8d_w0.125").state_dict(), RECORD)
    found = f"{SMALL} by its record, holds, beyond its architecture, res2.1.conv1."
    assert_refused(read_weights, path, found)
    save_weights(path, {**tensors, "neck.weight": torch.zeros(2)}, RECORD)
    assert_refused(read_weights, path, "beyond its architecture, neck.weight")
    save_weights(path, {**tensors, "neck.weight": torch.zeros(2)}, replace(RECORD, kind="rpn"))
    assert "neck.weight" in read_weights(path)[0]


def test_a_missing_tensor_is_for_the_loading_to_allow(path):
    """MODEL.WEIGHTS_ALLOW_MISSING names it."""
    tensors = network().state_dict()
    gone = tensors.pop("res4.0.conv2.weight")
    save_weights(path, tensors, RECORD)
    assert set(read_weights(path)[0]) == set(tensors)
    model = network(seed=1)
    with pytest.raises(InputError, match="res4.0.conv2.weight missing from the file"):
        load_weights(model, path)
    load_weights(model, path, allow_missing=("res4.*.conv2.weight",))
    assert not torch.equal(model.res4[0].conv2.weight, gone)
    assert torch.equal(model.res4[0].conv1.weight, tensors["res4.0.conv1.weight"])


@pytest.mark.parametrize("norm, has_statistics", [("BN", True), ("LN", False), ("", False)])
def test_norms_without_statistics_are_told(path, norm, has_statistics):
    """GN and LN have the same tensors; GN's 32 groups do not fit so narrow a network."""
    model = network(norm=norm)
    save_weights(path, model.state_dict(), RECORD)
    tensors, record = read_weights(path)
    assert record == read_record(path) == replace(RECORD, has_statistics=has_statistics)
    assert set(tensors) == set(model.state_dict())


def test_a_detectors_statistics_are_those_of_its_trunk(path):
    tensors = {"backbone.fpn_lateral2.norm.running_mean": torch.zeros(2)}
    save_weights(path, tensors, replace(RECORD, kind="detector"))
    assert not read_record(path).has_statistics
    tensors["backbone.bottom_up.stem.conv1.norm.running_mean"] = torch.zeros(2)
    save_weights(path, tensors, replace(RECORD, kind="detector"))
    assert read_record(path).has_statistics


@READERS
@pytest.mark.parametrize(
    "content, found",
    [
        (b"", "is empty"),
        (b"x", "is no weights file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-LFS pointer"),
        (b"<!DOCTYPE html>", "is a web page"),
    ],
)
def test_other_content(read, path, content, found):
    path.write_bytes(content)
    assert_refused(read, path, found)


@READERS
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.999])
def test_cut_off_file(read, path, kept):
    save_weights(path, make_tensors(), RECORD)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    assert_refused(read, path, "not a whole safetensors file")


class Attack:
    """What a pickle can do: unpickling this makes a folder."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@READERS
def test_pickle_is_refused_without_being_run(read, tmp_path):
    path, made = tmp_path / "model_final.pth", tmp_path / "made"
    torch.save({"model": Attack(made)}, path)
    assert_refused(read, path, "mkdir")
    assert not made.exists()
    torch.load(path, weights_only=False)  # it would have run
    assert made.exists()


@READERS
@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}])
def test_file_of_another_kind_of_network(read, path, metadata):
    save_file({"weight": torch.zeros(2)}, path, metadata=metadata)
    assert_refused(read, path, "no known family (weight)", "torchvision")


@READERS
def test_wrong_record(read, path):
    """tests/weights/test_record.py has all the ways."""
    save_file({"weight": torch.zeros(2)}, path, metadata={"resnext_det": '{"kind": "rpn"}'})
    assert_refused(read, path, "record cannot be read")


# ---- other programs' files ----


def write_foreign(folder, form):
    model = network()
    if form == "torch7":
        return model, write_torch7(folder / "x14.t7", model)
    tree = torchvision_names(model)
    if form == "checkpoint":
        tree = {"state_dict": {f"module.{k}": v for k, v in tree.items()}, "epoch": 3}
    return model, write(folder / f"x14.{'safetensors' if form == 'timm' else 'pth'}", tree)


@pytest.mark.parametrize("form", ["torchvision", "timm", "checkpoint", "torch7"])
def test_other_programs_files_are_read_alike(tmp_path, form, caplog):
    model, path = write_foreign(tmp_path, form)
    with caplog.at_level(logging.INFO, "resnext_det"):
        tensors, record = read_weights(path)
    assert record == read_record(path)
    assert record.kind == "classification" and record.class_names == []
    assert record.family == ("torch7" if form == "torch7" else "torchvision")
    assert record.architecture == model.architecture.as_dict()
    expected = model.state_dict()
    if form == "torch7":  # Torch7 counts no batches
        expected = {k: v for k, v in expected.items() if "num_batches" not in k}
    assert set(tensors) == set(expected)
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    (line,) = caplog.messages
    assert line.startswith(f"{path}: ") and "entries used" in line
    assert ("1 x stands beside the weights: epoch" in line) == (form == "checkpoint")


@pytest.mark.parametrize("form", ["torchvision", "timm", "torch7"])
def test_load_weights_takes_them(tmp_path, form):
    model, path = write_foreign(tmp_path, form)
    other = network(seed=1)
    record = load_weights(other, path)
    assert record.pixel_format == "RGB" and record.pixel_std == [58.395, 57.12, 57.375]
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name


def test_facts_are_for_files_without_a_record(path):
    save_weights(path, network().state_dict(), RECORD)
    source = read_source(path)
    assert source.record == RECORD and source.total == len(source.tensors) and not source.dropped
    with pytest.raises(InputError, match="--pixel-format") as refused:
        read_source(path, Facts(pixel_format="BGR"))
    assert refused.value.file == str(path)


def test_our_own_weights_are_read_without_a_line(path, caplog):
    save_weights(path, network().state_dict(), RECORD)
    with caplog.at_level(logging.INFO, "resnext_det"):
        read_weights(path)
    assert caplog.messages == []
