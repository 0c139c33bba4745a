"""Putting a file's tensors into a model, every one accounted for."""

import fnmatch
import logging
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ..errors import InputError
from .files import read_weights
from .fit import check_fit
from .layout import architecture_from
from .names import OWN, TRUNK_PARTS, trunk_name
from .norms import COUNTER
from .record import WeightsRecord

logger = logging.getLogger(__name__)

HEAD = "linear."  # of a classification file
OF_A_NORM = re.compile(r".+\.norm[123]?\.(weight|bias|running_mean|running_var)")


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

    What may stay unused is the head (``linear.*``) and a stage that the model has nothing of, as
    res5 where an RPN stands on res4.

    Args:
        model: any model whose keys `trunk_name` knows.
        tensors: as `read_weights` returns them, in classification names.
        source: the file's name, for messages.
        allow_missing: fnmatch patterns of model keys that may be missing from the file.

    Raises:
        InputError: a trunk tensor is missing from the file or has another shape, or another of
            the file's tensors is left over. Nothing is loaded then.
    """
    wanted = {key: trunk_name(key) for key in model.state_dict() if trunk_name(key)}
    found = {key: tensors[name] for key, name in wanted.items() if name in tensors}
    used = set(wanted.values())
    unused = tuple(k for k in tensors if k not in used and not k.endswith(COUNTER))
    kept = {_part(name) for name in used}
    spare = (HEAD, *(part for part in TRUNK_PARTS if part not in kept))
    _check_left_over([k for k in unused if not k.startswith(spare)], tensors, source)
    report = _load(model, found, set(wanted), tensors, source, allow_missing)
    return LoadReport(report.loaded, report.wanted, unused, report.fresh)


def _part(name: str) -> str:
    """Of `TRUNK_PARTS`."""
    return f"{name.split('.')[0]}."


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
    _check_left_over(left_over, tensors, source)
    return _load(model, tensors, wanted, tensors, source, allow_missing)


def _check_left_over(names: list[str], tensors: dict[str, torch.Tensor], source) -> None:
    if names:
        raise InputError(
            source,
            f"holds {len(names)} tensors this model has no place for "
            f"({', '.join(names[:3])}{' ...' if len(names) > 3 else ''})",
            _mend(names, tensors, source),
        )


def _mend(names: list[str], tensors: dict[str, torch.Tensor], source) -> str:
    """What to do about tensors that only one of file and model has."""
    if all(map(OF_A_NORM.fullmatch, names)):
        return (
            'build the model with the norm of the file: "FrozenBN", "BN" or "SyncBN" where it has '
            "running statistics (MODEL.RESNETS.NORM)"
        )
    return _network_mend(tensors, source)


def _network_mend(tensors: dict[str, torch.Tensor], source) -> str:
    try:
        name = architecture_from(tensors, False, str(source)).name
    except InputError:  # no classification network, or not all of one
        return "use the config it was trained with"
    head = tensors.get(f"{HEAD}weight")
    classes = "" if head is None else f", num_classes={len(head)}"
    return (
        f'by its shapes it is {name}: build that, build_resnext("{name}"{classes}) or the same in '
        "MODEL.RESNETS"
    )


def _load(model, found, wanted, tensors, source, allow_missing) -> LoadReport:
    wanted = {k for k in wanted if not k.endswith(COUNTER)}
    missing = sorted(wanted - set(found))
    refused = [k for k in missing if not any(fnmatch.fnmatch(k, p) for p in allow_missing)]
    if refused:
        raise InputError(
            source,
            f"loaded {len(wanted) - len(missing)} of {len(wanted)} tensors: "
            f"{', '.join(refused[:3])}{' ...' if len(refused) > 3 else ''} missing from the file",
            f"{_mend(refused, tensors, source)}, or name them in MODEL.WEIGHTS_ALLOW_MISSING",
        )
    state = model.state_dict()
    for key in found:
        if key in state and state[key].shape != found[key].shape:
            raise InputError(
                source,
                f"{key} has shape {tuple(found[key].shape)}, the model's is "
                f"{tuple(state[key].shape)}",
                _network_mend(tensors, source),
            )
    model.load_state_dict({k: v for k, v in found.items() if k in state}, strict=False)
    return LoadReport(len(wanted) - len(missing), len(wanted), (), tuple(missing))


def load_weights(
    model: nn.Module, path: str | Path, allow_missing: tuple[str, ...] = ()
) -> WeightsRecord:
    """Load a weights file into a model and return the file's record.

    A classification file goes into every trunk of a detection model (its heads start
    fresh) or, whole, into a classification model; other kinds must fit the model exactly. The
    model must be built for the file's pixels and stride too: `read_record` before it is built
    tells them, and `resnext_det.detection.apply_record` puts them into its config.

    Args:
        allow_missing: fnmatch patterns of model keys that may be missing from the file
            (MODEL.WEIGHTS_ALLOW_MISSING); they keep their values.

    Raises:
        InputError: see `read_weights`, `check_fit`, `load_trunk` and `load_all`.
    """
    tensors, record = read_weights(path)
    check_fit(model, record, path)
    model = _network(model)
    detection = any(trunk_name(key) for key in model.state_dict())
    load = load_trunk if record.kind == "classification" and detection else load_all
    logger.info("%s: %s", path, load(model, tensors, path, tuple(allow_missing)))
    return record


def _network(model: nn.Module) -> nn.Module:
    """The trunk of a `classification.Classifier`, which has nothing beside it."""
    keys = model.state_dict()
    return model.trunk if keys and all(key.startswith(OWN) for key in keys) else model
