"""Reading and writing weights files: ours, safetensors with a record, and other programs'."""

import hashlib
import logging
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..errors import InputError
from ..models import Architecture
from ..writing import written_whole
from .facts import NO_FACTS, Facts
from .kinds import is_safetensors
from .layout import check_layout, check_real
from .machine import phrase, told_of
from .names import trunk_name
from .norms import check_variances, has_statistics
from .reading import Source, read_foreign
from .record import KEY, WeightsRecord, record_from_metadata
from .state_dicts import plain_tensor

logger = logging.getLogger(__name__)


def save_weights(path: str | Path, tensors: dict[str, torch.Tensor], record: WeightsRecord) -> None:
    """Write tensors and record to ``path``; a half-written file is never left there.

    Raises:
        InputError: the disk is full, or ``path`` cannot be written.
    """
    with written_whole(path) as aside:
        save_file(plain(tensors), aside, metadata=record.to_metadata())


def plain(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies on the CPU: safetensors refuses shared memory and any order but NCHW."""
    return {
        k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()
    }


def fingerprint(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 of names and values, in hexadecimal; equal weights have equal ones in any file."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(name.encode())
        total.update(tensors[name].contiguous().numpy().tobytes())
    return total.hexdigest()


def read_record(path: str | Path) -> WeightsRecord:
    """What is known of a weights file; of ours the tensors are not read. Raises as `read_weights`.

    Another program's has no record: its family and shapes say what is known (`read_foreign`).
    """
    return _own_record(path) or read_foreign(path).record


def read_weights(path: str | Path) -> tuple[dict[str, torch.Tensor], WeightsRecord]:
    """All tensors (on the CPU), in our names, and the record; logs what was left out.

    Raises:
        InputError: the file is missing, cut off, not of a known family (see `read_foreign`), its
            record is wrong, or its tensors are not those of the record's network, are not
            finite, or hold a negative variance.
    """
    source = read_source(path)
    if source.record.family != "resnext_det" or source.dropped:
        logger.info("%s: %s", path, source)
    return source.tensors, source.record


def read_source(path: str | Path, given: Facts = NO_FACTS) -> Source:
    """As `read_weights`, with what the file held beside them.

    Args:
        given: facts that another program's file does not carry; ours carry them.
    """
    record = _own_record(path)
    if record is None:
        return read_foreign(path, given)
    if given != NO_FACTS:
        raise InputError(
            path,
            "has a record that says how pixels are fed to it",
            "leave --pixel-format, --pixel-mean, --pixel-std and --stride-in-1x1 away",
        )
    tensors = _own_tensors(path)
    if record.kind == "classification":
        check_layout(
            tensors,
            Architecture(**record.architecture),
            str(path),
            known="by its record",
            may_lack=True,  # what a model misses is named, or allowed, where it is loaded
        )
    check_real(tensors, str(path))
    check_variances(tensors, path)
    return Source(str(path), tensors, record, {}, len(tensors))


def _own_record(path: str | Path) -> WeightsRecord | None:
    """The record in a safetensors file of ours; None for any other file."""
    if not is_safetensors(path):
        return None
    with _open(path) as file:
        metadata, names = file.metadata() or {}, list(file.keys())
    if KEY not in metadata:
        return None
    record = record_from_metadata(metadata, str(path))
    if record.kind != "classification":  # whose other parts have norms of their own
        names = filter(trunk_name, names)
    return replace(record, has_statistics=has_statistics(names))


def _own_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    with _open(path) as file, told_of(path):
        return {
            key: plain_tensor(phrase(key), file.get_tensor(key))
            for key in file.keys()  # noqa: SIM118
        }


def _open(path: str | Path):
    try:
        return safe_open(str(path), framework="pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            path,
            f"is not a whole safetensors file ({phrase(error)})",
            "copy, download or train it again",
        ) from error
