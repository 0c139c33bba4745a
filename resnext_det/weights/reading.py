"""Another program's classification weights, turned into ours with a record."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..errors import InputError
from .containers import read_container, tensors_of
from .facts import NO_FACTS, Facts, rule_of
from .families import FAMILIES, first, recognise, renamed, spelling
from .layout import architecture_from
from .record import WeightsRecord
from .torch7_modules import torch7_weights

BESIDE = "stands beside the weights"
ZEROS = "a convolution's bias, all zeros"
FOLDED = "a convolution's bias, subtracted from the running mean behind it"
CONVOLUTION_BIAS = re.compile(r".+\.(conv[123]|shortcut)\.bias")
EPS = 1e-5  # of all norms here; Detectron2's FrozenBN has the same running_var to begin with


@dataclass(frozen=True)
class Source:
    """A weights file, read.

    Args:
        path: the file's name.
        tensors: in our names, on the CPU.
        record: what is known of them.
        dropped: the file's entries that were not taken over as they are, with the reason.
        total: the number of its entries.
    """

    path: str
    tensors: dict[str, torch.Tensor]
    record: WeightsRecord
    dropped: dict[str, str]
    total: int

    def left_out(self) -> list[str]:
        """A line for each reason, such as "2 x stands beside the weights: epoch, optimizer"."""
        groups: dict[str, list[str]] = {}
        for entry, reason in self.dropped.items():
            groups.setdefault(reason, []).append(entry)
        return [f"{len(keys)} x {reason}: {first(keys)}" for reason, keys in groups.items()]

    def __str__(self) -> str:
        used = f"{self.total - len(self.dropped)} of {self.total} entries used"
        family = FAMILIES.get(self.record.family, self.record.family)
        return "; ".join([f"{family} weights, {used}", *self.left_out()])


def read_foreign(path: str | Path, given: Facts = NO_FACTS) -> Source:
    """Another program's classification weights, every entry accounted for.

    Caffe2's fused norms (scale and shift alone) get a running mean of 0 and a running variance of
    1 - 1e-5, with which a norm of eps 1e-5 is exactly that scale and shift.

    Args:
        given: facts that the user states; they overrule the family's.

    Raises:
        InputError: see `read_container`, `tensors_of`, `torch7_weights`, `recognise`, `renamed`
            and `architecture_from`; or nothing says how the network's pixels are fed.
    """
    contents = read_container(path)
    if contents.kind == "torch7":
        tensors, dropped = torch7_weights(path)
        record = _record(path, "torch7", tensors, given)
        return Source(str(path), tensors, record, dropped, len(tensors) + len(dropped))
    found, extras = tensors_of(contents, path)
    family = recognise(found, path)
    named, dropped = renamed(found, family, path)
    tensors = {name: found[key] for name, key in named.items()}
    is_fused = family == "caffe2" and _fill_fused(tensors)
    dropped |= {named[name]: reason for name, reason in _fold_biases(tensors).items()}
    dropped |= dict.fromkeys(extras, BESIDE)
    record = _record(
        path,
        family,
        tensors,
        given,
        is_fused=is_fused,
        author=str(extras.get("__author__", "")),
        spelled=spelling(named, family),
    )
    return Source(str(path), tensors, record, dropped, len(found) + len(extras))


def _fill_fused(tensors: dict[str, torch.Tensor]) -> bool:
    """Give norms without any statistics those that change nothing; False where there are some."""
    if any(name.endswith((".running_mean", ".running_var")) for name in tensors):
        return False
    for name in [name for name in tensors if name.endswith(".norm.weight")]:
        module, channels = name.removesuffix("weight"), tensors[name].shape
        tensors[f"{module}running_mean"] = torch.zeros(channels)
        tensors[f"{module}running_var"] = torch.ones(channels) - EPS
    return True


def _fold_biases(tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    """Take the biases of convolutions with a norm out; gives what became of each.

    scale (w x + b - mean) + shift is the same function with mean - b. Detectron, whose own
    layers have none, leaves MSRA's conv1_b out; there its network was another than MSRA's.
    """
    reasons = {}
    for name in [name for name in tensors if CONVOLUTION_BIAS.fullmatch(name)]:
        mean = f"{name.removesuffix('bias')}norm.running_mean"
        if mean not in tensors or tensors[mean].shape != tensors[name].shape:
            continue  # the comparison with the architecture will name it
        bias = tensors.pop(name)
        reasons[name] = FOLDED if bias.any() else ZEROS
        if bias.any():
            tensors[mean] = tensors[mean] - bias
    return reasons


def _record(
    path: str | Path,
    family: str,
    tensors: dict[str, torch.Tensor],
    given: Facts,
    is_fused: bool = False,
    author: str = "",
    spelled: Callable[[str], str] = str,
) -> WeightsRecord:
    architecture = architecture_from(tensors, False, str(path), spelled)
    if family != "torch7" and (architecture.is_cifar or not architecture.shortcut):
        raise InputError(
            path,
            f"{architecture.name} by its shapes, which {FAMILIES[family]} does not build",
            "give a network for ImageNet, whole",
        )
    classes = len(tensors.get("linear.weight", ()))
    facts = given.over(rule_of(family, architecture, classes, is_fused, author))
    if facts.unknown:
        raise InputError(
            path,
            f"nothing in it says how pixels are fed to it ({FAMILIES[family]} names, "
            f"{architecture.name})",
            f"convert it by tools/convert_weights.py with {' '.join(facts.unknown)}",
        )
    return WeightsRecord(
        kind="classification",
        architecture=replace(architecture, stride_in_1x1=facts.stride_in_1x1).as_dict(),
        pixel_format=facts.pixel_format,
        pixel_mean=list(facts.pixel_mean),
        pixel_std=list(facts.pixel_std),
        family=family,
        fused_norm=is_fused,
    )
