"""What a weights file says of itself: the record kept in the safetensors metadata."""

import json
import reprlib
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ..errors import InputError
from ..models import Architecture
from .families import FAMILIES

KINDS = ("classification", "rpn", "fast_rcnn", "detector")
KEY = "resnext_det"  # the metadata key that holds the record, as JSON
FORMATS = ("RGB", "BGR")
# Of the architecture. The first records had no other fields, whose defaults their networks had.
REQUIRED = {"depth", "cardinality", "bottleneck_width", "stride_in_1x1"}


@dataclass(frozen=True)
class WeightsRecord:
    """Travels inside every weights file, so that a user never types these by hand.

    Args:
        kind: one of ``KINDS``; a "detector" holds both networks.
        architecture: ``models.Architecture`` as a dict.
        pixel_format: "RGB" or "BGR", the order of the channels the network was trained on.
        pixel_mean, pixel_std: three numbers on the 0..255 scale, in ``pixel_format``'s order.
        class_names: in the order of the outputs, background left out; empty where the weights
            are another program's, whose files have none.
        class_ids: the data set's own ids of these classes (COCO's gaps kept); may be empty.
        top1_error: percent on the validation set, single crop; None where not measured.
        config: the whole training configuration as YAML text.
        versions: of Python, torch, detectron2 and the rest, and of this package.
        family: whose weights these were: "resnext_det", or one of `families.FAMILIES`.
        fused_norm: the norms' running statistics were multiplied into scale and shift, so that
            only a norm that keeps them as they are (FrozenBN) is right in training.
        has_statistics: the norms have running statistics, as batch norm's do and GN's and LN's do
            not. Not written: the file's tensors say it.
    """

    kind: str
    architecture: dict[str, Any]
    pixel_format: str
    pixel_mean: list[float]
    pixel_std: list[float]
    class_names: list[str] = field(default_factory=list)
    class_ids: list[int] = field(default_factory=list)
    top1_error: float | None = None
    config: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    family: str = "resnext_det"
    fused_norm: bool = False
    has_statistics: bool = True

    @property
    def stride_in_1x1(self) -> bool:
        return bool(self.architecture["stride_in_1x1"])

    def to_metadata(self) -> dict[str, str]:
        values = {name: value for name, value in asdict(self).items() if name != "has_statistics"}
        return {"format": "pt", KEY: json.dumps(values)}


def record_from_metadata(metadata: dict[str, str] | None, file: str) -> WeightsRecord:
    """Raises InputError, naming ``file``, where the record is missing or not ours."""
    text = (metadata or {}).get(KEY)
    if text is None:
        raise InputError(
            file,
            "holds no record of architecture and pixel format",
            "give a model_final.safetensors that this package wrote",
        )
    try:
        values = json.loads(text)
        known = {f.name for f in fields(WeightsRecord)}
        record = WeightsRecord(**{k: v for k, v in values.items() if k in known})
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            file, f"its record cannot be read ({error})", "write the file again"
        ) from error
    _check(record, file)
    return record


def _check(record: WeightsRecord, file: str) -> None:
    wanted = {
        "kind": record.kind in KINDS,
        "architecture": _is_architecture(record.architecture),
        "pixel_format": record.pixel_format in FORMATS,
        "pixel_mean": are_numbers(record.pixel_mean),
        "pixel_std": are_numbers(record.pixel_std) and min(record.pixel_std) > 0,
        "class_names": _all_of(str, record.class_names),
        "class_ids": _all_of(int, record.class_ids),
        "top1_error": record.top1_error is None or _is_number(record.top1_error),
        "config": isinstance(record.config, str),
        "versions": isinstance(record.versions, dict)
        and _all_of(str, list(record.versions.values())),
        "family": isinstance(record.family, str) and record.family in FAMILIES,
        "fused_norm": isinstance(record.fused_norm, bool),
        "has_statistics": isinstance(record.has_statistics, bool),
    }
    for name, holds in wanted.items():
        if not holds:
            found = _short.repr(getattr(record, name))
            raise InputError(file, f"its record says {name} = {found}", "write the file again")


# repr() of what a stranger nested deep ends in a RecursionError.
_short = reprlib.Repr()
_short.maxlevel, _short.maxdict, _short.maxlist = 3, 8, 8
_short.maxstring = _short.maxother = 60


def _is_architecture(values: Any) -> bool:
    """Unknown fields are refused: a later version's would change what the network computes."""
    if not isinstance(values, dict) or not values.keys() >= REQUIRED:
        return False
    try:
        Architecture(**values)
    except (TypeError, InputError):
        return False
    return True


def _is_number(value: Any) -> bool:
    """Of any size a pixel could have; neither nan nor inf, which Python's JSON knows, is."""
    return type(value) in (int, float) and -1e9 < value < 1e9


def are_numbers(values: Any) -> bool:
    """Whether these are three finite numbers, as a pixel's mean and deviation are."""
    return isinstance(values, list) and len(values) == 3 and all(map(_is_number, values))


def _all_of(kind: type, values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is kind for value in values)
