"""Writing weights for other programs: torchvision (``torch.save``) and timm (safetensors).

Both feed their networks RGB pixels of ImageNet's mean and deviation. What was trained on others
is turned into that where the first convolution can express it: its inputs in the other order, and
each multiplied by the quotient of the deviations. It cannot express another mean, which would
have to be subtracted before the padding with zeros.
"""

import math
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ..errors import InputError
from ..models import Architecture
from ..writing import open_for_torch, written_whole
from .facts import IMAGENET
from .files import plain, save_weights
from .layout import check_layout
from .names import to_torchvision
from .norms import COUNTER
from .reading import Source
from .record import WeightsRecord

TARGETS = {"resnext_det": ".safetensors", "torchvision": ".pth", "timm": ".safetensors"}
CONV1 = "stem.conv1.weight"
OURS = "write it as --to resnext_det"
NO_HEAD = "it has no head: load it into a network without one, or with strict=False"
FUSED = "its norms are fused: they must stay in evaluation mode when it is trained further"


def check_target(path: str | Path, source: str | Path, to: str) -> None:
    """Before anything is read: raises InputError where ``path`` cannot be written as ``to``."""
    path = Path(path)
    if path.exists():
        is_source = Path(source).exists() and path.samefile(source)
        found = "is the file to convert" if is_source else "exists already"
        raise InputError(path, found, "choose another name for the result")
    if path.suffix != TARGETS[to]:
        raise InputError(
            path, f"does not end in {TARGETS[to]}", f"--to {to} writes a {TARGETS[to]} file"
        )


def export_weights(path: str | Path, source: Source, to: str) -> list[str]:
    """Write ``source`` as ``to`` reads it, a key of `TARGETS`; never over a file that is there.

    torchvision's ``load_state_dict`` takes the result strictly; so does timm's of the same name.

    Returns:
        What a user of the new file should know, a sentence each.

    Raises:
        InputError: ``path`` exists or cannot be written, or the network, its pixels' mean or its
            kind has no equal there.
    """
    check_target(path, source.path, to)
    tensors = source.tensors if to == "resnext_det" else _for_torchvision(source)
    try:
        _write(path, tensors, source.record, to)
    except (OSError, SafetensorError, RuntimeError) as error:  # what `writing` has no words for
        reason = str(error).splitlines()[0]
        raise InputError(path, f"cannot be written ({reason})", "choose another place") from error
    if to == "resnext_det":
        return []
    return [NO_HEAD] * ("fc.weight" not in tensors) + [FUSED] * source.record.fused_norm


def _write(path, tensors: dict[str, torch.Tensor], record: WeightsRecord, to: str) -> None:
    if to == "resnext_det":
        save_weights(path, tensors, record)
    elif to == "torchvision":
        with open_for_torch(path) as file:
            torch.save(tensors, file)
    else:
        with written_whole(path) as aside:
            save_file(tensors, aside, metadata={"format": "pt"})


def _for_torchvision(source: Source) -> dict[str, torch.Tensor]:
    record = source.record
    if record.kind != "classification":
        raise InputError(source.path, f"holds {record.kind} weights", "give classification weights")
    architecture = Architecture(**record.architecture)
    _check_network(architecture, source.path)
    check_layout(source.tensors, architecture, source.path)
    tensors = {**source.tensors, CONV1: _conv1(source.tensors[CONV1], record, source.path)}
    for mean in [name for name in tensors if name.endswith(".running_mean")]:
        # The step counter is an entry of theirs; FrozenBN and Caffe2 have none.
        tensors.setdefault(mean.replace("running_mean", COUNTER), torch.tensor(0))
    return plain({to_torchvision(name): tensor for name, tensor in tensors.items()})


def _check_network(architecture: Architecture, path: str) -> None:
    faults = {
        "is a CIFAR network": architecture.is_cifar,
        "has pre-activation blocks": architecture.is_preactivation,
        "has its stride in the 1x1, theirs is in the 3x3": architecture.stride_in_1x1,
        "has no shortcuts": not architecture.shortcut,
        f"has a stem of {architecture.stem_channels} channels, theirs has 64": (
            architecture.width_multiplier != 1
        ),
    }
    for fault, holds in faults.items():
        if holds:
            raise InputError(
                path, f"{architecture.name} {fault}: torchvision and timm build no such one", OURS
            )


def _conv1(weight: torch.Tensor, record: WeightsRecord, path: str) -> torch.Tensor:
    """The first convolution for RGB pixels of ImageNet's mean and deviation, (64, 3, 7, 7).

    w ((x - m) / s) = (w t / s) ((x - m) / t), in float64 until the end.
    """
    turn = -1 if record.pixel_format != IMAGENET.pixel_format else 1
    mean, std = record.pixel_mean[::turn], record.pixel_std[::turn]
    for ours, theirs in zip(mean, IMAGENET.pixel_mean, strict=True):
        if not math.isclose(ours, theirs, rel_tol=1e-6):
            raise InputError(
                path,
                f"was trained on pixels of mean {record.pixel_mean} ({record.pixel_format}), "
                f"torchvision and timm subtract {list(IMAGENET.pixel_mean)} (RGB), and no weights "
                "make up for that beside the padding",
                OURS,
            )
    if turn < 0:
        weight = weight.flip(1)
    scale = torch.tensor(IMAGENET.pixel_std, dtype=torch.float64) / torch.tensor(
        std, dtype=torch.float64
    )
    return (weight.double() * scale.reshape(1, 3, 1, 1)).to(weight.dtype)
