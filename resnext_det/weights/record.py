"""What a weights file says of itself: the record kept in the safetensors metadata."""

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ..errors import InputError

KINDS = ("classification", "rpn", "fast_rcnn", "detector")
KEY = "resnext_det"  # the metadata key that holds the record, as JSON


@dataclass(frozen=True)
class WeightsRecord:
    """Travels inside every weights file, so that a user never types these by hand.

    Args:
        kind: one of ``KINDS``; a "detector" holds both networks.
        architecture: ``models.Architecture`` as a dict.
        pixel_format: "RGB" or "BGR", the order of the channels the network was trained on.
        pixel_mean, pixel_std: three numbers on the 0..255 scale, in ``pixel_format``'s order.
        class_names: in the order of the outputs, background left out.
        class_ids: the data set's own ids of these classes (COCO's gaps kept); may be empty.
        top1_error: percent on the validation set, single crop; None where not measured.
        config: the whole training configuration as YAML text.
        versions: of Python, torch, detectron2 and the rest, and of this package.
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

    @property
    def stride_in_1x1(self) -> bool:
        return bool(self.architecture["stride_in_1x1"])

    def to_metadata(self) -> dict[str, str]:
        return {"format": "pt", KEY: json.dumps(asdict(self))}


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
        "architecture": isinstance(record.architecture, dict)
        and "stride_in_1x1" in record.architecture,
        "pixel_format": record.pixel_format in ("RGB", "BGR"),
        "pixel_mean": _three_numbers(record.pixel_mean),
        "pixel_std": _three_numbers(record.pixel_std) and min(record.pixel_std) > 0,
        "class_names": isinstance(record.class_names, list),
    }
    for name, holds in wanted.items():
        if not holds:
            raise InputError(
                file, f"its record says {name} = {getattr(record, name)!r}", "write the file again"
            )


def _three_numbers(values: Any) -> bool:
    return (
        isinstance(values, list)
        and len(values) == 3
        and all(isinstance(v, int | float) for v in values)
    )
