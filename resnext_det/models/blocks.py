"""The ResNeXt block in the three forms of Fig. 3, one parameter layout for all of them.

(c), the grouped convolution, is Detectron2's ``BottleneckBlock`` and the form to train in.
(a) and (b) own no weights: they compute path by path on slices of (c)'s, so that any
checkpoint fits any form and the paper's claim, equal functions, can be measured. In float64
they agree to 1e-12, in float32 to 2e-6 of a tensor's largest value (outputs, gradients and
running statistics, measured on blocks of the paper's sizes); they are many times slower.
"""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from detectron2.layers import FrozenBatchNorm2d, get_norm
from detectron2.modeling.backbone.resnet import BottleneckBlock
from torch import nn

from ..errors import InputError
from .convolve import PLAIN, convolve
from .folding import ForgetsFolded
from .recompute import recomputed
from .training_norm import count_batch

Norm = str | Callable[[int], nn.Module]  # what Detectron2's get_norm takes
FORMS = ("a", "b", "c")
NORMS = ("BN", "SyncBN", "FrozenBN", "GN", "LN")


def check_form(form: str) -> None:
    """Raises InputError where ``form`` is none of "a", "b", "c"."""
    if form not in FORMS:
        raise InputError("MODEL.RESNETS", f"FORM is {form!r}", f"choose one of {', '.join(FORMS)}")


def check_norm(norm: Norm, channels: Iterable[int]) -> None:
    """Ask Detectron2's ``get_norm`` for each number of ``channels`` before anything is built.

    Raises:
        InputError: a name it does not know, or GN (32 groups) on channels 32 does not divide.
    """
    choose = f'choose one of {", ".join(NORMS)}, or "" for none'
    if callable(norm):
        return
    if not isinstance(norm, str):
        raise InputError("MODEL.RESNETS.NORM", f"found {norm!r}", choose)
    for number in sorted(set(channels)):
        try:
            get_norm(norm, number)
        except KeyError as error:
            raise InputError("MODEL.RESNETS.NORM", f"found {norm!r}", choose) from error
        except ValueError as error:
            raise InputError(
                "MODEL.RESNETS.NORM",
                f"{norm} cannot divide {number} channels into its groups ({error})",
                "choose another norm or other widths",
            ) from error


def _check_sliceable(norm: nn.Module | None) -> None:
    # Exact types: a subclass, such as Detectron2's NaiveSyncBatchNorm, computes something else.
    if norm is not None and type(norm) not in (nn.BatchNorm2d, FrozenBatchNorm2d):
        raise InputError(
            "MODEL.RESNETS.NORM",
            f"forms (a) and (b) cannot slice {type(norm).__name__}: its statistics "
            "are not those of one channel in one process (SyncBN joins processes; "
            "groups of GN and LN cross the paths)",
            'choose BN, FrozenBN or "", or form "c"',
        )


def sliced(norm: nn.Module | None) -> Callable[[torch.Tensor, slice], torch.Tensor]:
    """One forward of ``norm`` as a function of (N, d, H, W) and the d channels that these are.

    To be called once a forward pass: it counts the batch. Running statistics are updated in
    place, through views.

    Raises:
        InputError: the norm's statistics are not per channel and process (SyncBN, GN, LN).
    """
    _check_sliceable(norm)
    if norm is None:
        return lambda y, channels: y
    is_frozen = isinstance(norm, FrozenBatchNorm2d)
    uses_batch = not is_frozen and (norm.training or norm.running_mean is None)
    keeps_running = is_frozen or not norm.training or norm.track_running_stats
    momentum = 0.0 if is_frozen else count_batch(norm)
    running = (norm.running_mean, norm.running_var) if keeps_running else (None, None)

    def run(y: torch.Tensor, channels: slice) -> torch.Tensor:
        mean, var, weight, bias = (
            None if tensor is None else tensor[channels]
            for tensor in (*running, norm.weight, norm.bias)
        )
        return F.batch_norm(y, mean, var, weight, bias, uses_batch, momentum, norm.eps)

    return run


class Bottleneck(ForgetsFolded, BottleneckBlock):
    """1x1 reduce, 3x3 in C paths, 1x1 restore, each with norm; shortcut added, then ReLU.

    Inputs (N, in_channels, H, W), outputs (N, out_channels, ceil(H / stride), ceil(W / stride)).

    Args:
        in_channels, out_channels, bottleneck_channels, stride, num_groups, norm,
            stride_in_1x1: as Detectron2's ``BottleneckBlock``; ``num_groups`` is C and
            ``bottleneck_channels`` is C * d. There is no dilation: no network here has any.
        form: "a" aggregated transformations, "b" early concatenation, "c" grouped convolution
            (paper, Fig. 3). State dicts are the same for all three.
        has_shortcut: False leaves out identity and projection (paper, Sec. 5.1).

    Raises:
        InputError: unknown form, or a norm that forms (a) and (b) cannot slice.
    """

    compute = PLAIN

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck_channels: int,
        stride: int = 1,
        num_groups: int = 1,
        norm: Norm = "BN",
        stride_in_1x1: bool = False,
        form: str = "c",
        has_shortcut: bool = True,
    ):
        check_form(form)
        super().__init__(
            in_channels,
            out_channels,
            bottleneck_channels=bottleneck_channels,
            stride=stride,
            num_groups=num_groups,
            norm=norm,
            stride_in_1x1=stride_in_1x1,
        )
        self.form, self.has_shortcut = form, has_shortcut
        if not has_shortcut:
            self.shortcut = None
        if form != "c":
            _check_sliceable(self.conv2.norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.compute.recompute and torch.is_grad_enabled():
            return recomputed(self._forward, x, self)
        return self._forward(x)

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.form == "c":
            return self._grouped(x)
        out = {"a": self._aggregated, "b": self._concatenated}[self.form](x)
        if self.has_shortcut:
            out += x if self.shortcut is None else self.shortcut(x)
        return F.relu_(out)

    def _grouped(self, x: torch.Tensor) -> torch.Tensor:
        """Fig. 3(c)."""
        compute, shortcut = self.compute, None
        out = convolve(self.conv1, x, relu=True, compute=compute)
        out = convolve(self.conv2, out, relu=True, compute=compute)
        if self.has_shortcut:
            projection = self.shortcut
            shortcut = (
                x if projection is None else convolve(projection, x, relu=False, compute=compute)
            )
        return convolve(self.conv3, out, relu=True, add=shortcut, compute=compute)

    def _paths(self, x: torch.Tensor) -> list[tuple[torch.Tensor, slice]]:
        """The C transformations up to their 3x3: (N, d, H, W) each, and their channels."""
        conv1, conv2 = self.conv1, self.conv2
        norm1, norm2 = sliced(conv1.norm), sliced(conv2.norm)
        width = conv2.out_channels // conv2.groups
        paths = []
        for first in range(0, conv2.out_channels, width):
            own = slice(first, first + width)
            y = F.conv2d(x, conv1.weight[own], stride=conv1.stride)
            y = F.relu_(norm1(y, own))
            y = F.conv2d(y, conv2.weight[own], None, conv2.stride, conv2.padding)
            paths.append((F.relu_(norm2(y, own)), own))
        return paths

    def _concatenated(self, x: torch.Tensor) -> torch.Tensor:
        """Fig. 3(b)."""
        return self.conv3(torch.cat([y for y, _ in self._paths(x)], dim=1))

    def _aggregated(self, x: torch.Tensor) -> torch.Tensor:
        """Fig. 3(a), Eq. 2; the norm stands behind the sum (paper, footnote 6)."""
        terms = [F.conv2d(y, self.conv3.weight[:, own]) for y, own in self._paths(x)]
        # (c) sums inside one convolution, in float32 also where its result is half precision.
        wide = torch.promote_types(terms[0].dtype, torch.float32)
        total = sum(term.to(wide) for term in terms).to(terms[0].dtype)
        return total if self.conv3.norm is None else self.conv3.norm(total)
