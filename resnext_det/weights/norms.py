"""Batch norms as files have them, and what ours need: fused ones, biases, impossible variances."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from ..errors import InputError

# BN's step counter: FrozenBN and Caffe2 have none, and its value changes nothing at momentum 0.1.
COUNTER = "num_batches_tracked"
STATISTICS = (".running_mean", ".running_var")
EPS = 1e-5  # of all norms here and of nn.SpatialBatchNormalization
ZEROS = "a convolution's bias, all zeros"
FOLDED = "a convolution's bias, subtracted from the running mean behind it"
CONVOLUTION_BIAS = re.compile(r".+\.(conv[123]|shortcut)\.bias")


def has_statistics(names: Iterable[str]) -> bool:
    """Whether any of these tensors is a running mean or variance, which GN and LN have not."""
    return any(name.endswith(STATISTICS) for name in names)


def fill_fused(tensors: dict[str, torch.Tensor]) -> bool:
    """Give norms without any statistics those that change nothing; False where there are some.

    The running variance is 1 - eps: with it a norm is exactly its scale and shift.
    """
    if has_statistics(tensors):
        return False
    for name in [name for name in tensors if name.endswith(".norm.weight")]:
        module, channels = name.removesuffix("weight"), tensors[name].shape
        tensors[f"{module}running_mean"] = torch.zeros(channels)
        tensors[f"{module}running_var"] = torch.ones(channels) - EPS
    return True


def fold_biases(tensors: dict[str, torch.Tensor]) -> dict[str, str]:
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


def check_variances(
    tensors: dict[str, torch.Tensor],
    source: str | Path,
    spelled: Callable[[str], str] = str,
) -> None:
    """Raises InputError where a running variance is negative; names it as the file spells it."""
    for name, tensor in tensors.items():
        if name.endswith(".running_var") and not bool((tensor >= 0).all()):
            raise InputError(
                source,
                f"{spelled(name)} holds {float(tensor.min()):g}, and no variance is negative",
                "download or copy it again, or give weights from a run that did not fail",
            )
