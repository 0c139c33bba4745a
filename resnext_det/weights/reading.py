"""Another program's classification weights, turned into ours with a record."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..errors import InputError
from .containers import read_container
from .facts import NO_FACTS, Facts, rule_of
from .families import FAMILIES, OWN_CHECKPOINT, first, recognise, renamed, spelling
from .layout import architecture_from
from .norms import check_variances, fill_fused, fold_biases
from .record import WeightsRecord
from .state_dicts import tensors_of
from .torch7_modules import torch7_weights

BESIDE = "stands beside the weights"
STATE_IT = "convert it by tools/convert_weights.py with"


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

    Caffe2's fused norms (scale and shift alone) get statistics that change nothing (`fill_fused`).

    Args:
        given: facts that the user states; they overrule the family's.

    Raises:
        InputError: see `read_container`, `tensors_of`, `torch7_weights`, `recognise`, `renamed`,
            `architecture_from` and `check_variances`; or nothing says how the network's pixels
            are fed.
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
    is_fused = family == "caffe2" and fill_fused(tensors)
    dropped |= {named[name]: reason for name, reason in fold_biases(tensors).items()}
    dropped |= dict.fromkeys(extras, BESIDE)
    record = _record(
        path,
        family,
        tensors,
        given,
        is_fused=is_fused,
        author=str(extras.get("__author__", "")),
        spelled=spelling(named, family),
        is_own=any(map(OWN_CHECKPOINT.fullmatch, found)),
    )
    return Source(str(path), tensors, record, dropped, len(found) + len(extras))


def _record(
    path: str | Path,
    family: str,
    tensors: dict[str, torch.Tensor],
    given: Facts,
    is_fused: bool = False,
    author: str = "",
    spelled: Callable[[str], str] = str,
    is_own: bool = False,
) -> WeightsRecord:
    architecture = architecture_from(tensors, False, str(path), spelled)
    check_variances(tensors, path, spelled)
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
            ("give the model_final.safetensors that the finished run wrote, or " if is_own else "")
            + f"{STATE_IT} {' '.join(facts.unknown)}",
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
