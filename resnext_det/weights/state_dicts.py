"""One flat dict of tensors out of whatever training programs put around it."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .containers import Contents
from .machine import STATE_DICT, Refused, phrase, told_of

logger = logging.getLogger(__name__)

# Under which key training programs keep the weights; the first that is there is taken.
WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "blobs",
    "state_dict_ema",
    "model_ema",
    "net",
)
MAX_WRAPPERS = 3  # {"model": {"state_dict": ...}} and one more
# DistributedDataParallel, torch.compile, and attributes in which Lightning modules keep a network.
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
DETECTRON1_NOTES = ("weight_order", "cfg")  # texts that stand among Detectron1's blobs
MAX_NOTE = 200  # characters of a text that is handed on


def tensors_of(contents: Contents, path: str | Path) -> tuple[dict[str, torch.Tensor], dict]:
    """The weights as one flat dict, out of the wrappers that training programs put around them.

    A prefix of `PREFIXES` that all names have is taken off. Detectron1's ``*_momentum`` blobs
    stay; its None entries and notes go to the extras.

    Args:
        path: the file's name, for messages.

    Returns:
        name -> tensor (dense, on the CPU, dtype as stored), and the extras: whatever stands
        beside the weights. Numbers, short texts, True, False and None keep their values; the rest
        (an optimizer's state, other weights) is only described, as "(dict of 3)".

    Raises:
        InputError: there are no tensors; or, naming it, an entry is no tensor, is sparse,
            quantised, complex or without values, or holds NaN or infinity.
    """
    with told_of(path):
        weights, extras = _unwrap(contents.tree)
        tensors = {}
        for name, value in weights.items():
            is_note = value is None or type(value) in (bool, int, float)
            if contents.kind == "pickle" and (is_note or name in DETECTRON1_NOTES):
                extras.setdefault(name, _note(value))
            else:
                tensors[_name(name)] = plain_tensor(phrase(name), value)
        if not tensors:
            raise Refused("holds no tensors", STATE_DICT)
        return _without_prefix(tensors), extras


def _unwrap(tree: Any) -> tuple[dict, dict]:
    extras: dict[str, Any] = {}
    for _ in range(MAX_WRAPPERS):
        if not isinstance(tree, dict):
            break
        keys = [key for key in WRAPPERS if _holds_tensors(tree.get(key))]
        if not keys:
            return tree, extras
        for key in keys[1:]:
            logger.info("the weights are those under %r; %r is left", keys[0], key)
        for key, value in tree.items():
            if key != keys[0]:
                extras.setdefault(str(key), _note(value))
        tree = tree[keys[0]]
    if not isinstance(tree, dict):
        raise Refused(f"holds {_describe(tree)}, not a dict of tensors", STATE_DICT)
    return tree, extras


def _holds_tensors(value: Any) -> bool:
    """Whether a dict holds a tensor, itself or in a dict inside."""
    return isinstance(value, dict) and any(
        isinstance(v, torch.Tensor | np.ndarray) or _holds_tensors(v) for v in value.values()
    )


def _note(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    short = isinstance(value, str) and len(value) <= MAX_NOTE
    return value if short or type(value) in (bool, int, float, type(None)) else _describe(value)


def _describe(value: Any) -> str:
    """ "(dict of 3)", "(tensor of (64, 3, 7, 7))": never the value, which may be of any size."""
    if isinstance(value, torch.Tensor | np.ndarray):
        return f"(tensor of {tuple(value.shape)})"
    size = f" of {len(value)}" if isinstance(value, dict | list | tuple | str | bytes) else ""
    return f"({type(value).__name__}{size})"


def _name(name: Any) -> str:
    if not isinstance(name, str):
        raise Refused(f"names a tensor by {_describe(name)}, not by text", STATE_DICT)
    return name


def plain_tensor(name: str, value: Any) -> torch.Tensor:
    """The value as a dense tensor of finite real numbers. Raises Refused, naming it otherwise."""
    if isinstance(value, np.ndarray | np.generic):
        value = torch.from_numpy(np.asarray(value))
    if not isinstance(value, torch.Tensor):
        raise Refused(f"{name} is {_describe(value)}, not a tensor", STATE_DICT)
    kinds = {
        "nested": value.is_nested,
        "sparse": value.layout != torch.strided,
        "quantised": value.is_quantized,
        "complex": value.is_complex(),
        "meta (without values)": value.is_meta,
    }
    for kind, holds in kinds.items():
        if holds:
            raise Refused(f"{name} is a {kind} tensor", "give dense tensors of real numbers")
    value = value.detach()
    if value.is_floating_point() and not _is_finite(value):
        raise Refused(f"{name} holds NaN or infinity", "give weights from a run that did not fail")
    return value


def _is_finite(value: torch.Tensor) -> bool:
    value = value.float() if value.itemsize == 1 else value  # float8 has no isfinite
    return bool(torch.isfinite(value).all())


def _without_prefix(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found = [p for p in PREFIXES if all(k.startswith(p) and k != p for k in tensors)]
    if not found:
        return tensors
    return _without_prefix({key.removeprefix(found[0]): value for key, value in tensors.items()})
