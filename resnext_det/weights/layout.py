"""Which member of the family a set of tensors is, read off their shapes."""

import re
from collections.abc import Callable

import torch

from ..errors import InputError
from ..models import BLOCKS_PER_STAGE, Architecture, build_resnext
from ..models.architecture import STEM_CHANNELS
from .families import first
from .norms import COUNTER, has_statistics

BLOCK = re.compile(r"res([2-5])\.([0-9]{1,3})\.conv[123]\.weight")
MEND = "give a whole ResNet or ResNeXt of bottleneck blocks"


def architecture_from(
    tensors: dict[str, torch.Tensor],
    stride_in_1x1: bool,
    source: str,
    spelled: Callable[[str], str] = str,
) -> Architecture:
    """The architecture whose tensors these are, all of them and in every shape.

    Depth is read off the number of blocks, C and d off the first 3x3 (C * d outputs, d inputs a
    path), the width multiplier off the stem (64 channels at 1.0). A Wide ResNet is a member too:
    torchvision's wide_resnet50_2 is R50_1x128d.

    Args:
        tensors: of a classifier, with or without its head, in our names.
        stride_in_1x1: which shapes do not show.
        source: the file's name, for messages.
        spelled: what a tensor of ours is called in that file.

    Raises:
        InputError: there is no such member, or a tensor is missing, left over, has another
            shape than in that member, or holds no real numbers.
    """
    stem = _convolution(tensors, "stem.conv1.weight", source, spelled)
    middle = _convolution(tensors, "res2.0.conv2.weight", source, spelled)
    channels, inputs = middle[:2]
    if channels % inputs or inputs * STEM_CHANNELS % stem[0]:
        raise InputError(
            source,
            f"{spelled('res2.0.conv2.weight')} has shape {tuple(middle)} behind a stem of "
            f"{stem[0]} channels, which is no C x d",
            MEND,
        )
    depth = _depth(tensors, source)
    try:
        architecture = Architecture(
            depth=depth,
            cardinality=channels // inputs,
            bottleneck_width=inputs * STEM_CHANNELS // stem[0],
            width_multiplier=stem[0] / STEM_CHANNELS,
            stride_in_1x1=stride_in_1x1,
            shortcut=any(".shortcut." in name for name in tensors),
        )
    except InputError as error:
        raise InputError(source, f"its shapes mean that {error.found}", MEND) from error
    check_layout(tensors, architecture, source, spelled)
    return architecture


def _convolution(tensors, name: str, source: str, spelled) -> torch.Size:
    if name not in tensors:
        raise InputError(source, f"has no {spelled(name)}", MEND)
    shape = tensors[name].shape
    if len(shape) != 4 or 0 in shape:
        raise InputError(source, f"{spelled(name)} has shape {tuple(shape)}, not of four", MEND)
    return shape


def _depth(tensors: dict[str, torch.Tensor], source: str) -> int:
    found = [match for match in map(BLOCK.fullmatch, tensors) if match]
    blocks = {stage: {int(m[2]) for m in found if m[1] == stage} for stage in "2345"}
    counts = tuple(len(numbers) for numbers in blocks.values() if numbers)
    depths = [depth for depth, known in BLOCKS_PER_STAGE.items() if known == counts]
    if not depths:
        raise InputError(
            source,
            f"has {', '.join(map(str, counts))} blocks in its stages, which no depth has",
            f"give a network of depth {', '.join(map(str, BLOCKS_PER_STAGE))}",
        )
    return depths[0]


def check_layout(
    tensors: dict[str, torch.Tensor],
    architecture: Architecture,
    source: str,
    spelled: Callable[[str], str] = str,
    known: str = "by its shapes",
    may_lack: bool = False,
) -> None:
    """Compare names and shapes with those of the network itself; the head may be missing.

    Args:
        known: where the architecture was read, for messages.
        may_lack: other tensors may be missing too (MODEL.WEIGHTS_ALLOW_MISSING).

    Raises:
        InputError: names the tensor in the file's own spelling.
    """
    head = tensors.get("linear.weight")
    with torch.device("meta"):  # shapes without memory
        classes = len(head) if head is not None and head.dim() else 0
        model = build_resnext(
            **architecture.as_dict(), norm=_norm_of(tensors), num_classes=classes or None
        )
    due = {name: tensor.shape for name, tensor in model.state_dict().items()}
    missing = [name for name in due if name not in tensors and not name.endswith(COUNTER)]
    missing = [] if may_lack else missing
    left_over = [name for name in tensors if name not in due]
    for names, words in ((missing, "lacks"), (left_over, "holds, beyond its architecture,")):
        if names:
            found = first([spelled(name) for name in names])
            raise InputError(source, f"{architecture.name} {known}, {words} {found}", MEND)
    for name, tensor in tensors.items():
        if tensor.shape != due[name]:
            raise InputError(
                source,
                f"{spelled(name)} has shape {tuple(tensor.shape)}, in {architecture.name} it has "
                f"{tuple(due[name])}",
                MEND,
            )
    check_real(tensors, source, spelled)


def check_real(
    tensors: dict[str, torch.Tensor], source: str, spelled: Callable[[str], str] = str
) -> None:
    """Raises InputError for a tensor of whole numbers that is no counter of a norm's batches."""
    for name, tensor in tensors.items():
        if not (tensor.is_floating_point() or name.endswith(COUNTER)):
            raise InputError(source, f"{spelled(name)} is of {tensor.dtype}", "give real numbers")


def _norm_of(tensors: dict[str, torch.Tensor]) -> str:
    """A norm that has these tensors: with statistics, with scale and shift alone, or none."""
    if has_statistics(tensors):
        return "BN"
    return "LN" if "stem.conv1.norm.weight" in tensors else ""
