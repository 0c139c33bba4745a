"""Guard what a weights file promises: whole or not there, a record inside, no code run on reading.

Every refusal is an InputError that names the file.
"""

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from resnext_det.errors import InputError
from resnext_det.weights import WeightsRecord, files, read_record, read_weights, save_weights

RECORD = WeightsRecord(
    kind="classification",
    architecture={
        "depth": 50,
        "cardinality": 32,
        "bottleneck_width": 4,
        "width_multiplier": 1.0,
        "stride_in_1x1": False,
    },
    pixel_format="RGB",
    pixel_mean=[123.675, 116.28, 103.53],
    pixel_std=[58.395, 57.12, 57.375],
    class_names=["Katze", "chien", "鳥"],
    class_ids=[1, 2, 90],
    top1_error=22.2,
    config="MODEL:\n  DEVICE: cpu\n",
    versions={"torch": "2"},
)


def make_tensors():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 4, 3, 3, generator=generator)
    return {
        "stem.conv1.weight": weight,
        "res2.0.conv1.weight": weight.to(memory_format=torch.channels_last),
        "shared": weight,  # the same memory as the first
        "part": weight[2:5],
        "half": weight.bfloat16(),
        "counter": torch.tensor(7),
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
    save_weights(path, tensors, RECORD)
    found, record = read_weights(path)
    assert record == read_record(path) == RECORD
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


# ---- refusals ----

READERS = pytest.mark.parametrize("read", [read_record, read_weights])


@READERS
def test_missing_file(read, path):
    assert_refused(read, path, "does not exist", "MODEL.WEIGHTS")


@READERS
def test_folder(read, tmp_path):
    assert_refused(read, tmp_path, "does not exist")


@READERS
@pytest.mark.parametrize("content", [b"", b"x", b"version https://git-lfs.github.com/spec/v1\n"])
def test_other_content(read, path, content):
    path.write_bytes(content)
    assert_refused(read, path, "not a whole safetensors file", "model_final.safetensors")


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
    assert_refused(read, path, "not a whole safetensors file")
    assert not made.exists()
    torch.load(path, weights_only=False)  # it would have run
    assert made.exists()


@READERS
@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}])
def test_file_of_another_program(read, path, metadata):
    save_file({"weight": torch.zeros(2)}, path, metadata=metadata)
    assert_refused(read, path, "no record", "this package wrote")


def write_with(path, **changed):
    values = {**json.loads(RECORD.to_metadata()["resnext_det"]), **changed}
    text = json.dumps({key: value for key, value in values.items() if value != "left out"})
    save_file({"weight": torch.zeros(2)}, path, metadata={"resnext_det": text})


@READERS
@pytest.mark.parametrize(
    "field, value",
    [
        ("kind", "segmentation"),
        ("kind", None),
        ("architecture", {"depth": 50}),
        ("architecture", [50, 32, 4]),
        ("pixel_format", "GRB"),
        ("pixel_mean", [1.0, 2.0]),
        ("pixel_mean", "123"),
        ("pixel_std", [58.4, 57.1]),
        ("pixel_std", [58.4, 0.0, 57.4]),
        ("pixel_std", ["58.4", "57.1", "57.4"]),
        ("pixel_std", None),
        ("class_names", "cat"),
    ],
    ids=str,
)
def test_wrong_record(read, path, field, value):
    write_with(path, **{field: value})
    assert_refused(read, path, f"{field} = {value!r}", "write the file again")


@READERS
@pytest.mark.parametrize("field", ["kind", "architecture", "pixel_format", "pixel_std"])
def test_record_without_a_field(read, path, field):
    write_with(path, **{field: "left out"})
    assert_refused(read, path, "record cannot be read", field)


@READERS
@pytest.mark.parametrize("text", ["", "{", "5", "[]", "null", "[" * 100_000])
def test_record_that_is_none(read, path, text):
    save_file({"weight": torch.zeros(2)}, path, metadata={"resnext_det": text})
    assert_refused(read, path, "record cannot be read")


def test_a_newer_version_may_say_more(path):
    """Fields that are not known yet are passed over."""
    write_with(path, licence="Apache-2.0")
    assert read_record(path) == RECORD
