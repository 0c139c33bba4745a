"""Reading and writing weights files: safetensors, which cannot run code, written whole or not."""

import hashlib
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..errors import InputError
from .record import WeightsRecord, record_from_metadata


def save_weights(path: str | Path, tensors: dict[str, torch.Tensor], record: WeightsRecord) -> None:
    """Write tensors and record to ``path``; a half-written file is never left there."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # clone: safetensors refuses tensors that share memory or are not in NCHW order.
    plain = {
        k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()
    }
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(plain, aside, metadata=record.to_metadata())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def fingerprint(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 of names and values, in hexadecimal; equal weights have equal ones in any file."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(name.encode())
        total.update(tensors[name].contiguous().numpy().tobytes())
    return total.hexdigest()


def read_record(path: str | Path) -> WeightsRecord:
    """The record alone, without reading the tensors. Raises InputError as `read_weights`."""
    with _open(path) as file:
        return record_from_metadata(file.metadata(), str(path))


def read_weights(path: str | Path) -> tuple[dict[str, torch.Tensor], WeightsRecord]:
    """All tensors (on the CPU) and the record.

    Raises:
        InputError: the file is missing, cut off, not safetensors, or carries no record.
    """
    with _open(path) as file:
        record = record_from_metadata(file.metadata(), str(path))
        try:
            return {key: file.get_tensor(key) for key in file.keys()}, record  # noqa: SIM118
        except (SafetensorError, ValueError) as error:
            raise InputError(path, f"is damaged ({error})", "copy or train it again") from error


def _open(path: str | Path):
    if not Path(path).is_file():
        raise InputError(
            path,
            "the weights file does not exist",
            "give MODEL.WEIGHTS a file that a training run wrote (`make demo` writes "
            'output/demo/classification/model_final.safetensors; "" starts from random weights)',
        )
    try:
        return safe_open(str(path), framework="pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            path,
            f"is not a whole safetensors file ({error})",
            "give a model_final.safetensors that this package wrote",
        ) from error
