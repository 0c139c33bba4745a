"""Whether a file's record and a model agree where shapes and names do not show it.

A network with its stride at another place, or fed other pixels, takes the same tensors and gives
other features without an error.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.layers import CNNBlockBase
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import InputError
from ..models import Architecture, ResNeXt
from ..models.architecture import FIELDS
from .names import trunk_name
from .record import WeightsRecord

KEYS = {field: f"MODEL.RESNETS.{key}" for field, (key, *_) in FIELDS.items()}
NORM = "MODEL.RESNETS.NORM"
# Of Detectron2's get_norm, those with a running mean and variance.
WITH_STATISTICS = ("FrozenBN", "BN", "SyncBN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")
NEAR = 1e-3  # of means and deviations, 0..255: files and configs write three decimals or more


def are_near(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether two means or deviations are the same numbers, rounding apart."""
    return len(first) == len(second) and all(
        abs(a - b) < NEAR for a, b in zip(first, second, strict=True)
    )


def agree(first: Any, second: Any) -> bool:
    """Whether two values of a field or key are the same; of lists of numbers, rounding apart."""
    return are_near(first, second) if isinstance(first, list | tuple) else first == second


def check_fit(model: nn.Module, record: WeightsRecord, path: str | Path) -> None:
    """Compare all that a model knows of itself with a file's record.

    That is the architecture of every `ResNeXt` in it; the stride's place in all other blocks that
    the file goes into, such as a RoI head's res5, as far as they have a stride; mean, deviation
    and order of the pixels wherever the model has them (Detectron2's meta-architectures); and for
    fused norms (`WeightsRecord.fused_norm`), that no norm will measure statistics again.

    Raises:
        InputError: names the file, the field, both values and the mend.
    """
    for field, theirs, ours, key, place in _compared(model, record):
        if not agree(theirs, ours):
            argument = f" (build_resnext: {field}={theirs!r})" if field in KEYS else ""
            raise InputError(
                path,
                f"its {field} is {theirs!r}, that of the model{place} is {ours!r}",
                f"set {key} {theirs!r}{argument} before the model is built (resnext_det.detection."
                "apply_record(cfg, record, path) sets or checks all such keys), or give other "
                "weights",
            )
    if record.fused_norm:
        _check_frozen(model, record, path)


def _compared(model: nn.Module, record: WeightsRecord) -> Iterator[tuple[str, Any, Any, str, str]]:
    """(field, the file's value, the model's, config key, place in the model)."""
    theirs = Architecture(**record.architecture).as_dict()
    for name, module in model.named_modules():
        place = f"'s {name}" if name else ""
        if isinstance(module, ResNeXt):
            ours = module.architecture.as_dict()
            for field, key in KEYS.items():
                yield field, theirs[field], ours[field], key, place
        stride_in_1x1 = _stride_in_1x1(module)
        if stride_in_1x1 is not None and _is_loaded(model, name, record):
            field = "stride_in_1x1"
            yield field, theirs[field], stride_in_1x1, KEYS[field], place
        yield from ((*values, place) for values in _pixels(module, record))


def _stride_in_1x1(block: nn.Module) -> bool | None:
    """None where it is no bottleneck block, or has no stride, as res5 on RoIs of 7x7."""
    if not (isinstance(block, CNNBlockBase) and hasattr(block, "conv3")):
        return None
    for conv, answer in ((block.conv1, True), (block.conv2, False)):
        if isinstance(conv, nn.Conv2d) and max(conv.stride) > 1:
            return answer
    return None


def _pixels(module: nn.Module, record: WeightsRecord) -> Iterator[tuple[str, Any, Any, str]]:
    mean, std = getattr(module, "pixel_mean", None), getattr(module, "pixel_std", None)
    if not (isinstance(mean, torch.Tensor) and isinstance(std, torch.Tensor)):
        return
    order = getattr(module, "input_format", None)  # a ProposalNetwork does not know it
    if order is not None:
        yield "pixel_format", record.pixel_format, order, "INPUT.FORMAT"
    for field, ours, key in (
        ("pixel_mean", mean, "MODEL.PIXEL_MEAN"),
        ("pixel_std", std, "MODEL.PIXEL_STD"),
    ):
        theirs = getattr(record, field)
        rounded = torch.tensor(theirs, dtype=ours.dtype).tolist()  # a model in half precision
        found = [round(number, 4) for number in ours.flatten().tolist()]
        yield field, theirs, theirs if are_near(rounded, found) else found, key


def _is_loaded(model: nn.Module, name: str, record: WeightsRecord) -> bool:
    """Whether a classification file has anything for this module; other files have for all."""
    is_detector = record.kind == "classification" and any(map(trunk_name, model.state_dict()))
    return not is_detector or trunk_name(f"{name}.") is not None


def _check_frozen(model: nn.Module, record: WeightsRecord, path: str | Path) -> None:
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and _is_loaded(model, name, record):
            raise InputError(
                path,
                "its norms are fused to scale and shift and have no statistics to train on, and "
                f"the model's {name} is a {type(module).__name__}",
                'build the model with norm="FrozenBN" (MODEL.RESNETS.NORM), or give other weights',
            )


def check_norm(norm: str, record: WeightsRecord, source: str | Path) -> None:
    """Whether a config's norm can take a file's.

    It is never set: which one is trained with is the user's choice among those that fit.

    Raises:
        InputError: names the key, its value and the mend.
    """
    if record.fused_norm and norm != "FrozenBN":
        found = "are fused to scale and shift and have no statistics to train on"
        mend = f'set {NORM} "FrozenBN"'
    elif record.has_statistics and norm not in WITH_STATISTICS:
        found = "have running statistics, which that has no place for"
        mend = f'set {NORM} "FrozenBN", "BN" or "SyncBN"'
    elif not record.has_statistics and norm in WITH_STATISTICS:
        found = "have no running statistics"
        mend = f"set {NORM} to the one that they were trained with"
    else:
        return
    raise InputError(
        "config",
        f"{NORM} is {norm!r}, but the norms of {source} {found}",
        f"{mend} or give other weights",
    )


def conflict(key: str, ours: Any, theirs: Any, source: str | Path) -> InputError:
    """A config key that says another thing than the weights it is to be used with."""
    return InputError(
        "config",
        f"{key} is {ours!r}, but {source} was trained with {theirs!r}",
        f"set {key} {theirs!r} or give other weights",
    )
