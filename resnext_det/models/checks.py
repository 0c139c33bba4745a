"""Whether the arguments of a network can be met, asked before anything is built.

Every function raises InputError, naming the config key or the argument, where they cannot.
"""

from typing import Any

from ..errors import InputError
from .architecture import Architecture
from .blocks import Norm, check_form, check_norm
from .preactivation import check_preactivation_form
from .precision import DTYPES


def check_precision(precision: str) -> None:
    """A key of ``DTYPES``; "auto" is to be resolved before."""
    if precision not in DTYPES:
        raise InputError(
            "MODEL", f"PRECISION is {precision!r}", f"choose one of {', '.join(DTYPES)}"
        )


def check_numbers(
    architecture: Architecture, num_classes: Any, freeze_at: Any, in_channels: Any
) -> None:
    """Classes, frozen stages and the images' channels, of any type."""
    last = architecture.stages[-1]
    if num_classes is not None and (type(num_classes) is not int or num_classes < 1):
        raise InputError(
            "build_resnext",
            f"num_classes is {num_classes!r}",
            "give a whole number, 1 or more, or None for no head",
        )
    if type(freeze_at) is not int or not 0 <= freeze_at <= last:
        raise InputError(
            "MODEL.BACKBONE",
            f"FREEZE_AT is {freeze_at!r}",
            f"give 0 (nothing), 1 (the stem) or up to {last} (all of stem, res2..res{last})",
        )
    if type(in_channels) is not int or in_channels < 1:
        raise InputError(
            "build_resnext",
            f"in_channels is {in_channels!r}",
            "give 1 or more; in a config they are as many as MODEL.PIXEL_MEAN has values",
        )


def check_features(
    architecture: Architecture, out_features: list[str] | None, has_head: bool
) -> None:
    """OUT_FEATURES, among the stages and, with a head, "linear"."""
    names = ["stem", *(f"res{stage}" for stage in architecture.stages)] + ["linear"] * has_head
    if out_features is not None and not (out_features and set(out_features) <= set(names)):
        raise InputError(
            "MODEL.RESNETS",
            f"OUT_FEATURES is {out_features!r}",
            f"name one or more of {', '.join(names)}",
        )


def check_layers(architecture: Architecture, norm: Norm, form: str) -> None:
    """Form and norm, the norm on every number of channels that occurs."""
    check = check_preactivation_form if architecture.is_preactivation else check_form
    check(form)
    channels = [architecture.stem_channels]
    for stage in architecture.stages:
        channels += [architecture.out_channels(stage), architecture.bottleneck_channels(stage)]
    check_norm(norm, channels)
