"""Detectron's and Detectron2's proposal files: a pickled dict of lists, an entry an image.

    ids                image ids
    boxes              float32 (N, 4)
    objectness_logits  float32 (N,)
    bbox_mode          0 (XYXY_ABS) or 1 (XYWH_ABS); missing: XYXY_ABS

As Detectron2 reads them (``detectron2.data.build.load_proposals_into_dataset``); Detectron called
the ids "indexes" and the logits "scores". Here such a file is written, and what one held is
checked; it is taken apart, safely, by ``detection.proposals``.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import InputError, shown
from ..writing import open_whole
from .proposals import ProposalFile

OLD_NAMES = {"indexes": "ids", "scores": "objectness_logits"}
XYXY_ABS, XYWH_ABS = 0, 1  # values of Detectron2's BoxMode
LARGEST_ID = 2**63 - 1
FORM = "give a dict with ids, boxes, objectness_logits and bbox_mode, as Detectron2 reads it"

# ---- reading ----


def proposals_in(path: str | Path, content: Any) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Image id, boxes float32 (N, 4) XYXY_ABS and logits float32 (N,), image by image.

    Args:
        path: for messages.
        content: what the file holds, as Python and NumPy values.

    Raises:
        InputError: names the field and the image where something is missing, of another kind,
            length or shape, or not finite; while iterating for the arrays.
    """
    fields = _fields(path, content)
    mode = _mode(path, fields.get("bbox_mode", XYXY_ABS))
    ids = [_image_id(path, number, value) for number, value in enumerate(fields["ids"])]
    return _checked(path, ids, fields["boxes"], fields["objectness_logits"], mode)


def _fields(path: str | Path, content: Any) -> dict:
    if not isinstance(content, dict):
        raise InputError(path, f"holds a {type(content).__name__}, not a dict", FORM)
    fields = dict(content)
    for old, new in OLD_NAMES.items():
        if old in fields:
            fields[new] = fields.pop(old)
    for name in ("ids", "boxes", "objectness_logits"):
        if name not in fields:
            raise InputError(path, f"has no field {name} (it has {_some(fields)})", FORM)
        value = fields[name]
        if not isinstance(value, list | tuple | np.ndarray) or getattr(value, "shape", None) == ():
            raise InputError(path, f"its {name} are no list", FORM)
    counts = {name: len(fields[name]) for name in ("ids", "boxes", "objectness_logits")}
    if len(set(counts.values())) != 1:
        raise InputError(path, f"its lists differ in length: {counts}", FORM)
    return fields


def _some(fields: dict) -> str:
    names = [shown(str(name), 20) for name in fields]
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _mode(path: str | Path, value: Any) -> int:
    if not isinstance(value, int | np.integer) or int(value) not in (XYXY_ABS, XYWH_ABS):
        raise InputError(
            path,
            f"its bbox_mode is {value!r:.40}",
            "give boxes as BoxMode.XYXY_ABS (0) or XYWH_ABS (1)",
        )
    return int(value)


def _image_id(path: str | Path, number: int, value: Any) -> int:
    """Whole numbers, also as text: Detectron2 compares them as text."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if isinstance(value, str) and value.lstrip("-").isdecimal() and len(value) < 20:
        whole = str(int(value)) == value
    if not whole or abs(int(value)) > LARGEST_ID:
        raise InputError(
            path,
            f"ids[{number}] is {value!r:.40}",
            "give every image the whole number that is its id in the annotation file",
        )
    return int(value)


def _checked(path, ids: list[int], all_boxes, all_logits, mode: int) -> Iterator:
    for image_id, boxes, logits in zip(ids, all_boxes, all_logits, strict=True):
        boxes = _array(path, image_id, "boxes", boxes, (-1, 4))
        logits = _array(path, image_id, "objectness_logits", logits, (-1,))
        if len(boxes) != len(logits):
            raise InputError(
                path,
                f"image {image_id} has {len(boxes)} boxes and {len(logits)} objectness_logits",
                "give one for each box",
            )
        if mode == XYWH_ABS:
            boxes = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        yield image_id, boxes, logits


def _array(path, image_id: int, name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    """As float32 in ``shape``, where -1 stands for any length."""
    try:
        array = np.asarray(value)
    except ValueError:  # lists of unequal length
        array = np.array(None)
    if not isinstance(value, np.ndarray | list | tuple) or array.dtype.kind not in "fiu":
        raise InputError(
            path,
            f"{name} of image {image_id} is no array of real numbers ({type(value).__name__})",
            "give NumPy arrays",
        )
    if array.size == 0:
        return np.zeros((0, *shape[1:]), np.float32)
    if array.ndim != len(shape) or array.shape[1:] != shape[1:]:
        wanted = "(N, 4)" if len(shape) == 2 else "(N,)"
        raise InputError(
            path, f"{name} of image {image_id} has shape {array.shape}", f"give {wanted}"
        )
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise InputError(
            path, f"{name} of image {image_id} holds a value that is not finite", "take it out"
        )
    return array


# ---- writing ----

# The pickle is put together here: `pickle.dump` wants all arrays in memory at once, and names
# them after the NumPy that runs (numpy._core), which NumPy before 1.26 cannot read.
_START, _END = b"\x80\x03}", b"."  # protocol 3, which every Python 3 reads; an empty dict
_RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
_FLOAT32 = (
    b"cnumpy\ndtype\nX\x02\x00\x00\x00f4\x89\x88\x87R"  # dtype("f4", False, True)
    b"(K\x03X\x01\x00\x00\x00<NNN" + 2 * b"J\xff\xff\xff\xff" + b"K\x00tb"  # its state
)


def write_pickle(path: str | Path, stored: ProposalFile) -> None:
    """Write all of ``stored`` in Detectron2's form; there whole, or not at all.

    One image at a time is in memory.
    """
    with open_whole(path) as out:
        out.write(_START)
        for name, one in (("ids", _integer), ("boxes", None), ("objectness_logits", None)):
            out.write(_text(name) + b"]")
            for image_id in stored.image_ids:
                if one is None:
                    _write_array(out, stored[image_id][name == "objectness_logits"])
                else:
                    out.write(one(image_id))
                out.write(b"a")
            out.write(b"s")
        out.write(_text("bbox_mode") + _integer(XYXY_ABS) + b"s" + _END)


def _text(text: str) -> bytes:
    return b"X" + len(text).to_bytes(4, "little") + text.encode()


def _integer(value: int) -> bytes:
    data = value.to_bytes(9, "little", signed=True)
    return b"\x8a\x09" + data


def _write_array(out: BinaryIO, array: np.ndarray) -> None:
    """A float32 array: rebuilt empty, then given version, shape, dtype, order and data."""
    data = np.ascontiguousarray(array, "<f4").tobytes()
    out.write(_RECONSTRUCT + b"(K\x01(" + b"".join(map(_integer, array.shape)) + b"t" + _FLOAT32)
    out.write(b"\x89B" + len(data).to_bytes(4, "little"))
    out.write(data)
    out.write(b"tb")
