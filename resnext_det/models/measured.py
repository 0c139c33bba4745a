"""Which merge of groups is fastest here: measured once a layer shape, kept on disk.

The choice changes rounding, so it is kept: the same command on the same machine chooses the same
the next time. ``RESNEXT_DET_CACHE`` names another folder than ``~/.cache/resnext_det``.
"""

import contextlib
import functools
import json
import logging
import math
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from ..machine import cache_folder, processor
from .regroup import (
    PRODUCT,
    Merge,
    backward_part,
    drop,
    forward_part,
    is_dropped,
    is_product,
    own_kernels,
    tiles,
)

logger = logging.getLogger(__name__)

PARTS = Merge._fields
WIDEST = 64  # channels a merged group has at most: beyond it the zeros cost more than they save
GAIN = 0.9  # a merge is taken where it needs less than this part of the plain time
# Largest difference of our own kernels from the library, as a part of its largest value: TF32 keeps
# ten bits of a factor, bf16 seven of a result, and a wrong place in memory gives about 1.
TOLERANCES = {torch.float32: 5e-3, torch.float16: 5e-3, torch.bfloat16: 3e-2}
RUNS = 3
FILE = "regroup.json"


def candidates(groups: int, channels: int) -> list[int]:
    """Merges worth a measurement: powers of two that divide ``groups``, up to `WIDEST` channels.

    Args:
        channels: of one group.
    """
    powers = [2**n for n in range(groups.bit_length())]
    return [m for m in powers if groups % m == 0 and (m == 1 or m * channels <= WIDEST)]


class MeasuredRegrouping:
    """A `regroup.Regrouping` that measures a layer shape when it first meets it.

    Sizes are put into classes of a factor of two by their number of pixels, so that a detector,
    whose images differ, does not measure at every batch.

    Args:
        folder: where the choices are kept; None keeps them in this process only.
    """

    def __init__(self, folder: Path | None):
        self.path = None if folder is None else folder / FILE
        self.known: dict[str, dict[str, dict[int, float]]] = self._read()
        self.has_said = False

    def __call__(
        self, x: torch.Tensor, weight: torch.Tensor, stride: tuple[int, int], groups: int
    ) -> Merge:
        if not torch.is_grad_enabled():
            return Merge()  # a pass without gradients has other ways (models/folding.py)
        key = self.key(x, weight, stride, groups)
        if key not in self.known:
            self._say_once()
            self.known[key] = measure(x, weight, stride, groups)
            self._write()
        return chosen(self.known[key])

    def _say_once(self) -> None:
        if not self.has_said:
            where = "this process" if self.path is None else self.path
            logger.info("measuring how convolutions are computed soonest; kept in %s", where)
        self.has_said = True

    @staticmethod
    def key(x: torch.Tensor, weight: torch.Tensor, stride: tuple[int, int], groups: int) -> str:
        """Everything that a time depends on."""
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        layout = "channels_last" if _is_last(x) else "contiguous"
        pixels = round(math.log2(max(1, x.shape[0] * x.shape[2] * x.shape[3])))
        return ", ".join(
            (
                _machine(kind),
                f"torch {torch.__version__}",
                str(dtype).removeprefix("torch."),
                layout,
                f"{x.shape[1]} to {weight.shape[0]} channels in {groups} groups",
                f"{weight.shape[2]}x{weight.shape[3]} stride {stride[0]}",
                f"2^{pixels} pixels",
            )
        )

    def _read(self) -> dict:
        if self.path is None or not self.path.exists():
            return {}
        try:
            found = json.loads(self.path.read_text())
            return {
                key: {part: {int(m): float(t) for m, t in times[part].items()} for part in PARTS}
                for key, times in found.items()
            }
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            logger.warning("%s cannot be used (%s): measuring again", self.path, error)
            return {}

    def _write(self) -> None:
        if self.path is None:
            return
        aside = self.path.with_name(f".{FILE}.{os.getpid()}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Another process may have written meanwhile: what it found is kept.
            self.known = {**self.known, **self._read()}
            aside.write_text(json.dumps(self.known, indent=1))
            os.replace(aside, self.path)
        except OSError as error:
            logger.info("%s cannot be written (%s): kept in this process", self.path, error)
            with contextlib.suppress(OSError):  # it may not be there
                aside.unlink()
            self.path = None


def _is_last(x: torch.Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


def _machine(kind: str) -> str:
    if kind == "cuda":
        kernels = own_kernels()
        triton = "no Triton" if kernels is None else f"Triton {kernels.triton.__version__}"
        return f"{torch.cuda.get_device_name()}, {triton}"
    return f"{processor()} x {torch.get_num_threads()}"


def measure(
    x: torch.Tensor, weight: torch.Tensor, stride: tuple[int, int], groups: int
) -> dict[str, dict[int, float]]:
    """Milliseconds of each part of a layer's step by merge, on random tensors of this shape.

    Kernels of our own (`regroup.tiles`) are among them once they have given the library's result.

    Returns:
        {"forward" | "grad_input" | "grad_weight": {merge: median milliseconds}}.
    """
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    layout = torch.channels_last if _is_last(x) else torch.contiguous_format
    # A generator of its own: measuring must not move the run's random numbers.
    generator = torch.Generator().manual_seed(0)

    def random(shape) -> torch.Tensor:
        values = torch.randn(shape, generator=generator).to(x.device, dtype)
        return values.contiguous(memory_format=layout)

    pad = tuple(size // 2 for size in weight.shape[2:])
    with torch.no_grad(), torch.autocast(kind, enabled=False):
        inputs, own = random(x.shape), random(weight.shape)
        outputs = torch.nn.functional.conv2d(inputs, own, None, stride, pad, 1, groups)
        grad = random(outputs.shape)
        merges = candidates(groups, weight.shape[1])
        merges += [PRODUCT] * is_product(weight, groups)
        place = (stride, pad, (1, 1), groups)
        runs: dict[str, Callable[[int], torch.Tensor]] = {
            "forward": partial(forward_part, inputs, own, None, place)
        }
        for part in ("grad_input", "grad_weight"):
            runs[part] = partial(backward_part, part, grad, inputs, own, place)
        times = {
            part: {merge: _median_ms(partial(run, merge), kind) for merge in merges}
            for part, run in runs.items()
        }
        for merge in tiles(inputs, own, stride, groups):
            for part, run in runs.items():
                times[part] |= _measured_tile(part, merge, run, kind)
    return times


def _measured_tile(part: str, merge: int, run: Callable, kind: str) -> dict[int, float]:
    """{merge: milliseconds}, or {} where our own kernel fails."""
    if not agrees(part, merge, run):
        return {}
    taken = _median_ms(partial(run, merge), kind)
    return {} if is_dropped(part, merge) else {merge: taken}


def agrees(part: str, merge: int, run: Callable[[int], torch.Tensor]) -> bool:
    """Whether one of `regroup.tiles` computes what the library does; if not, it is dropped.

    Args:
        run: the part, as a function of the merge.
    """
    found, expected = run(merge), run(1)
    if is_dropped(part, merge):  # it has failed, and the library stood in for it
        return False
    largest = expected.float().abs().max()
    error = float((found.float() - expected.float()).abs().max() / largest)
    if not error <= TOLERANCES[expected.dtype]:  # not a number is no agreement either
        drop(part, merge, f"it is off by {error:.2g} of the largest value")
    return not is_dropped(part, merge)


def _median_ms(run: Callable[[], object], kind: str) -> float:
    times = []
    for number in range(RUNS + 1):
        if kind == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        if kind == "cuda":
            torch.cuda.synchronize()
        if number:  # the first run is slower: memory, code
            times.append(1e3 * (time.perf_counter() - start))
    return sorted(times)[RUNS // 2]


def chosen(times: dict[str, dict[int, float]]) -> Merge:
    """The fastest merge of each part, the plain one unless another clearly wins."""
    best = []
    for part in PARTS:
        merge = min(times[part], key=times[part].get)
        best.append(merge if times[part][merge] < GAIN * times[part][1] else 1)
    return Merge(*best)


def rows(known: dict[str, dict[str, dict[int, float]]]) -> list[tuple[str, ...]]:
    """A line a layer of `MeasuredRegrouping.known`: its shape, and of each part what was chosen.

    "4: 1.04 of 1.98" is four groups as one, and milliseconds beside those of the plain
    convolution; "product" a product of matrices, "blocks of 32" our own kernel on so many
    channels, "-" the plain convolution.
    """
    found = []
    for key, times in sorted(known.items()):
        choice = zip(PARTS, chosen(times), strict=True)
        found.append((key, *(_in_words(times[part], merge) for part, merge in choice)))
    return found


def _in_words(times: dict[int, float], merge: int) -> str:
    name = f"blocks of {-merge}" if merge < 0 else str(merge)
    name = "product" if merge == PRODUCT else name
    return "-" if merge == 1 else f"{name}: {times[merge]:.2f} of {times[1]:.2f}"


@functools.cache
def regrouping_of(choice: str) -> MeasuredRegrouping | None:
    """MODEL.REGROUP as what `convolve` takes: "auto" measures, "off" leaves groups as they are."""
    return MeasuredRegrouping(cache_folder()) if choice == "auto" else None
