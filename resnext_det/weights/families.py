"""Whose weights a file holds, told from its keys alone, and every key's place or reason.

timm's variants that differ from a plain network in layers without weights (resnetaa50,
resnetblur50) have the plain one's keys and shapes: no program can tell them from it.
"""

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from ..errors import InputError
from .machine import phrase
from .names import from_caffe2, from_detectron2, from_torchvision, to_caffe2, to_torchvision

FAMILIES = {
    "resnext_det": "resnext_det",
    "torchvision": "torchvision or timm",
    "detectron2": "Detectron2",
    "caffe2": "Caffe2 (Detectron)",
    "torch7": "Torch7",
}
FROM: dict[str, Callable[[str], str | None]] = {
    "torchvision": from_torchvision,
    "detectron2": from_detectron2,
    "caffe2": from_caffe2,
}
TO = {"torchvision": to_torchvision, "caffe2": to_caffe2}
MARKS = {
    "caffe2": re.compile(r"conv1_w|res[2-5]_[0-9]+_branch.+"),
    "torchvision": re.compile(r"(backbone\.)?(conv1|layer[1-4]\.[0-9]+)\..+"),
    "detectron2": re.compile(
        r"(backbone\.(bottom_up\.)?|trunk\.)?(stem\.conv1|res[2-5]\.[0-9]+)\..+"
    ),
}
# Modules of Detectron2's, torchvision's and MMDetection's detectors; blobs of Detectron1's.
DETECTOR = re.compile(
    r"(.+\.)?(proposal_generator|roi_heads?|rpn|rpn_head|bbox_head|neck|fpn_(lateral|output)[2-6]"
    r"|head\.(cls|bbox|classification|regression)_[a-z]+)\..+"
    r"|(conv_rpn|rpn_|retnet_|bbox_pred|cls_score|fpn_|fc[67]_|conv_fcn|kps_|_\[mask\]).*"
)
OWN_CHECKPOINT = re.compile(r"trunk\.(stem|res[2-5]|linear)\..+")
# Networks beside the family, by a key that the family has not.
VARIANTS = (
    (re.compile(r"(backbone\.)?(conv1|stem)\.[0-9]+\..+"), "a deep stem"),
    (re.compile(r"(backbone\.)?layer[1-4]\..+\.conv[123]\..+\..+"), "convolutions of another kind"),
    (re.compile(r".+\.(se|eca|ca|attn)\..+"), "channel attention (squeeze and excitation)"),
    (re.compile(r".+\.downsample\.2\..+"), "shortcuts with average pooling"),
    (re.compile(r".+_gn_[sb]"), "group normalisation"),
)
PLAIN = "give a plain ResNet or ResNeXt of bottleneck blocks, for instance resnext50_32x4d"
# Caffe2's blobs that are no weights of the network.
CAFFE2_DROPS = (
    (re.compile(r".+_momentum"), "the optimiser's momentum"),
    (re.compile(r"(?i)lr|(model_)?iter|one|optimizer_iteration|weight_order"), "solver's state"),
)


def recognise(keys: Iterable[str], path: str | Path) -> str:
    """ "torchvision", "detectron2" or "caffe2".

    Raises:
        InputError: a detector's keys, or unknown ones.
    """
    keys = list(keys)
    detectors = [key for key in keys if DETECTOR.fullmatch(key)]
    if detectors:
        raise InputError(
            path,
            f"holds a whole detector ({first(detectors)})",
            "give the classification (ImageNet) weights that its training started from",
        )
    counts = {family: sum(map(bool, map(m.fullmatch, keys))) for family, m in MARKS.items()}
    family = max(counts, key=counts.get)
    if counts[family]:
        return family
    raise InputError(
        path,
        f"its names are of no known family ({first(keys)})",
        "give ResNet or ResNeXt weights as torchvision, timm, Detectron2, Detectron (Caffe2) or "
        "Torch7 save them",
    )


def renamed(keys: Iterable[str], family: str, path: str | Path) -> tuple[dict, dict[str, str]]:
    """Every key's place.

    Returns:
        {our name: key}, and {key: the reason why it is no weight of the network}.

    Raises:
        InputError: a key is unknown (the network is named where it is a known variant), or two
            keys mean the same tensor.
    """
    named: dict[str, str] = {}
    dropped, unknown = {}, []
    for key in keys:
        name = FROM[family](key)
        if name in named:
            raise InputError(path, f"{named[name]} and {key} mean the same", "leave one of them")
        if name is not None:
            named[name] = key
        elif family == "caffe2" and _caffe2_drop(key):
            dropped[key] = _caffe2_drop(key)
        else:
            unknown.append(key)
    _check_variant(named, unknown, family, path)
    if unknown:
        raise InputError(
            path,
            f"{len(unknown)} of its entries are unknown among {FAMILIES[family]} weights "
            f"({first(unknown)})",
            PLAIN,
        )
    return named, dropped


def _caffe2_drop(key: str) -> str | None:
    return next((reason for mark, reason in CAFFE2_DROPS if mark.fullmatch(key)), None)


def _check_variant(
    named: dict[str, str], unknown: list[str], family: str, path: str | Path
) -> None:
    variants = [(w, [k for k in unknown if mark.fullmatch(k)]) for mark, w in VARIANTS]
    blocks = [key for name, key in named.items() if name.startswith("res")]
    norms = [key for name, key in named.items() if name.endswith(".norm.weight")]
    if not any(".conv3." in name for name in named):
        variants.append(("blocks of two convolutions (ResNet-18, -34)", blocks))
    if family != "caffe2" and not any(name.endswith("running_mean") for name in named):
        variants.append(("norms without running statistics (group normalisation)", norms))
    for words, matching in variants:
        if matching:
            raise InputError(path, f"is a network with {words} ({first(matching)})", PLAIN)


def spelling(named: dict[str, str], family: str) -> Callable[[str], str]:
    """A function that says what a tensor of ours is called in the file, or would be."""
    return lambda name: named.get(name) or TO.get(family, str)(name) or name


def first(keys: list[str]) -> str:
    """The first three, for a message of one line, whatever a file calls its entries."""
    keys = [phrase(key) for key in keys[:4]]
    return ", ".join(keys[:3]) + (" ..." if len(keys) > 3 else "")
