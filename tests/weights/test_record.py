"""Guard the record inside every weights file: written and read back whole, wrong ones refused."""

import json
from dataclasses import asdict, replace

import pytest

from resnext_det.errors import InputError
from resnext_det.models import Architecture
from resnext_det.weights import WeightsRecord
from resnext_det.weights.record import KEY, record_from_metadata

RECORD = WeightsRecord(
    kind="classification",
    architecture=Architecture(depth=14, cardinality=4, bottleneck_width=8).as_dict(),
    pixel_format="BGR",
    pixel_mean=[103.53, 116.28, 123.675],
    pixel_std=[1.0, 1, 57.375],
    class_names=["Katze", "chien", "鳥"],
    class_ids=[1, 2, 90],
    top1_error=22.2,
    config="MODEL:\n  DEVICE: cpu\n",
    versions={"torch": "2"},
    family="caffe2",
    fused_norm=True,
)


def read(text):
    return record_from_metadata({KEY: text}, "x.safetensors")


def refusal(text):
    with pytest.raises(InputError) as refused:
        read(text)
    assert refused.value.file == "x.safetensors" and "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400
    return str(refused.value)


def test_round_trip():
    assert read(RECORD.to_metadata()[KEY]) == RECORD


def test_a_record_of_the_first_version_has_neither_family_nor_shortcut():
    values = asdict(RECORD)
    del values["family"], values["fused_norm"], values["architecture"]["shortcut"]
    record = read(json.dumps(values))
    assert (record.family, record.fused_norm) == ("resnext_det", False)
    assert Architecture(**record.architecture).shortcut


def test_a_newer_version_may_say_more():
    assert read(json.dumps({**asdict(RECORD), "licence": "Apache-2.0"})) == RECORD


NAN, INFINITE = float("nan"), float("inf")
WRONG = [
    ("kind", "segmentation"),
    ("kind", None),
    ("kind", ["classification"]),
    ("architecture", {"depth": 50}),
    *(
        ("architecture", {k: v for k, v in RECORD.architecture.items() if k != left_out})
        for left_out in ("depth", "cardinality", "bottleneck_width", "stride_in_1x1")
    ),
    ("architecture", [50, 32, 4]),
    ("architecture", {**RECORD.architecture, "depth": 51}),
    ("architecture", {**RECORD.architecture, "depth": "50"}),
    ("architecture", {**RECORD.architecture, "stride_in_1x1": 0}),
    ("architecture", {**RECORD.architecture, "width_multiplier": NAN}),
    ("architecture", {**RECORD.architecture, "attention": True}),
    ("pixel_format", "GRB"),
    ("pixel_format", None),
    ("pixel_mean", [1.0, 2.0]),
    ("pixel_mean", "123"),
    ("pixel_mean", [NAN, 1.0, 1.0]),
    ("pixel_mean", [1.0, INFINITE, 1.0]),
    ("pixel_mean", [True, 1.0, 1.0]),
    ("pixel_mean", [10**400, 1.0, 1.0]),
    ("pixel_std", [58.4, 57.1]),
    ("pixel_std", [58.4, 0.0, 57.4]),
    ("pixel_std", [58.4, -1.0, 57.4]),
    ("pixel_std", [58.4, NAN, 57.4]),
    ("pixel_std", ["58.4", "57.1", "57.4"]),
    ("pixel_std", None),
    ("class_names", "cat"),
    ("class_names", ["cat", 3]),
    ("class_names", None),
    ("class_ids", [1.5]),
    ("class_ids", [True]),
    ("class_ids", {"1": 1}),
    ("top1_error", "22.2"),
    ("top1_error", NAN),
    ("config", None),
    ("config", ["MODEL"]),
    ("versions", ["torch"]),
    ("versions", {"torch": 2}),
    ("family", None),
    ("family", "keras"),
    ("family", "x" * 10**5),
    ("family", "torch7\n"),
    ("fused_norm", 1),
    ("fused_norm", "no"),
]


@pytest.mark.parametrize("field, value", WRONG, ids=str)
def test_wrong_fields(field, value):
    text = refusal(json.dumps({**asdict(RECORD), field: value}))
    assert text.startswith(f"x.safetensors: its record says {field} = ")
    assert "write the file again" in text


def test_the_value_is_named():
    assert "pixel_std = [58.4, 0.0, 57.4]" in refusal(
        replace(RECORD, pixel_std=[58.4, 0.0, 57.4]).to_metadata()[KEY]
    )


@pytest.mark.parametrize("field", ["kind", "architecture", "pixel_format", "pixel_std"])
def test_without_a_field(field):
    values = asdict(RECORD)
    del values[field]
    text = refusal(json.dumps(values))
    assert "record cannot be read" in text and field in text


@pytest.mark.parametrize("text", ["", "{", "5", "[]", "null", "[" * 100_000, '{"kind":' * 100_000])
def test_no_record_at_all(text):
    assert "record cannot be read" in refusal(text)


@pytest.mark.parametrize("depth", [10, 400, 800, 950, 990])
@pytest.mark.parametrize("field", ["kind", "architecture", "class_names", "versions", "top1_error"])
def test_deep_values(field, depth):
    """JSON that can still be parsed, but not be printed or compared by recursion."""
    deep = "[" * depth + "]" * depth
    whole = json.dumps({**asdict(RECORD), field: "here"})
    refusal(whole.replace('"here"', deep))


@pytest.mark.parametrize("field", ["kind", "class_names", "versions", "family", "config"])
def test_long_values(field):
    text = refusal(json.dumps({**asdict(RECORD), field: [list(range(10**5))] * 2}))
    assert field in text


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}])
def test_a_file_without_record(metadata):
    with pytest.raises(InputError, match="x.safetensors: holds no record .*this package wrote"):
        record_from_metadata(metadata, "x.safetensors")
