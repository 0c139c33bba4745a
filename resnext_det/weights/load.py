"""Putting a file's tensors into a model, every one accounted for."""

import fnmatch
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ..errors import InputError
from .files import read_weights
from .names import trunk_name
from .record import WeightsRecord

logger = logging.getLogger(__name__)

# BN's step counter: FrozenBN has none, and its value changes nothing at momentum 0.1.
COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class LoadReport:
    """How many of the tensors that a model wants came from the file, and what was left over."""

    loaded: int
    wanted: int
    unused: tuple[str, ...]
    fresh: tuple[str, ...]

    def __str__(self) -> str:
        text = f"loaded {self.loaded} of {self.wanted} tensors"
        if self.fresh:
            text += f"; {len(self.fresh)} start fresh ({_parts(self.fresh)})"
        if self.unused:
            text += f"; {len(self.unused)} of the file not used here ({_parts(self.unused)})"
        return text


def _parts(keys: tuple[str, ...]) -> str:
    """Keys grouped by their modules: "roi_heads.box_predictor, ..."."""
    seen = dict.fromkeys(
        ".".join(k.split(".")[:2]) if not k.startswith("res") else k.split(".")[0] for k in keys
    )
    return ", ".join(seen)


def load_trunk(
    model: nn.Module,
    tensors: dict[str, torch.Tensor],
    source: str | Path,
    allow_missing: tuple[str, ...] = (),
) -> LoadReport:
    """Load classification weights into every trunk tensor of a detection network.

    Args:
        model: any model whose keys `trunk_name` knows.
        tensors: as `read_weights` returns them, in classification names.
        source: the file's name, for messages.
        allow_missing: fnmatch patterns of model keys that may be missing from the file.

    Raises:
        InputError: a trunk tensor is missing from the file or has another shape.
    """
    wanted = {key: trunk_name(key) for key in model.state_dict() if trunk_name(key)}
    found = {key: tensors[name] for key, name in wanted.items() if name in tensors}
    used = {wanted[key] for key in found}
    report = _load(model, found, set(wanted), source, allow_missing)
    unused = tuple(k for k in tensors if k not in used and not k.endswith(COUNTER))
    return LoadReport(report.loaded, report.wanted, unused, report.fresh)


def load_all(
    model: nn.Module,
    tensors: dict[str, torch.Tensor],
    source: str | Path,
    allow_missing: tuple[str, ...] = (),
) -> LoadReport:
    """Load a file that was written from the same kind of model; names must agree both ways.

    Raises:
        InputError: a tensor is missing, left over, or has another shape.
    """
    wanted = set(model.state_dict())
    left_over = [k for k in tensors if k not in wanted and not k.endswith(COUNTER)]
    if left_over:
        raise InputError(
            source,
            f"holds {len(left_over)} tensors this model has no place for "
            f"({_parts(tuple(left_over))})",
            "use the config it was trained with",
        )
    return _load(model, tensors, wanted, source, allow_missing)


def _load(model, found, wanted, source, allow_missing) -> LoadReport:
    wanted = {k for k in wanted if not k.endswith(COUNTER)}
    missing = sorted(wanted - set(found))
    refused = [k for k in missing if not any(fnmatch.fnmatch(k, p) for p in allow_missing)]
    if refused:
        raise InputError(
            source,
            f"loaded {len(wanted) - len(missing)} of {len(wanted)} tensors: "
            f"{', '.join(refused[:3])}{' ...' if len(refused) > 3 else ''} missing from the file",
            "use the config it was trained with, or name them in MODEL.WEIGHTS_ALLOW_MISSING",
        )
    state = model.state_dict()
    for key in found:
        if key in state and state[key].shape != found[key].shape:
            raise InputError(
                source,
                f"{key} has shape {tuple(found[key].shape)}, the model's is "
                f"{tuple(state[key].shape)}",
                "use the config it was trained with",
            )
    model.load_state_dict({k: v for k, v in found.items() if k in state}, strict=False)
    return LoadReport(len(wanted) - len(missing), len(wanted), (), tuple(missing))


def load_weights(
    model: nn.Module, path: str | Path, allow_missing: tuple[str, ...] = ()
) -> WeightsRecord:
    """Load a weights file into a model and return the file's record.

    A classification file goes into every trunk of a detection model (its heads start
    fresh) or, whole, into a classification model; other kinds must fit the model exactly.

    Args:
        allow_missing: fnmatch patterns of model keys that may be missing from the file
            (MODEL.WEIGHTS_ALLOW_MISSING); they keep their values.

    Raises:
        InputError: see `read_weights`, `load_trunk` and `load_all`.
    """
    tensors, record = read_weights(path)
    detection = any(trunk_name(key) for key in model.state_dict())
    load = load_trunk if record.kind == "classification" and detection else load_all
    logger.info("%s: %s", path, load(model, tensors, path, tuple(allow_missing)))
    return record
