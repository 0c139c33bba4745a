"""Our own kernels in Triton's interpreter, beside torch's convolution in float64.

    TRITON_INTERPRET=1 python triton_cases.py

Prints {case: {result: largest difference, as a part of the largest value}} as JSON. A process of
its own: Triton chooses between compiler and interpreter when it is imported.
"""

import json
from typing import NamedTuple

import torch
import torch.nn.functional as F


class Case(NamedTuple):
    """A layer: ``groups`` groups of ``ins`` to ``outs`` channels on (batch, height, width)."""

    groups: int
    ins: int
    outs: int
    size: tuple[int, int, int]
    stride: int = 1
    padding: int = 1
    dilation: int = 1
    dtype: str = "float32"
    bias: bool = False
    weight_last: bool = False


CASES = {
    "32 x 4": Case(32, 4, 4, (2, 9, 7)),
    "32 x 4, stride 2": Case(32, 4, 4, (1, 9, 8), stride=2),
    "32 x 8": Case(32, 8, 8, (1, 5, 6)),
    "32 x 8, stride 2": Case(32, 8, 8, (1, 6, 5), stride=2, bias=True),
    "32 x 16": Case(32, 16, 16, (1, 3, 4), weight_last=True),
    "32 x 16, stride 2": Case(32, 16, 16, (1, 4, 3), stride=2),
    "2 x 64": Case(2, 64, 64, (3, 5, 5)),
    "2 x 64, stride 2": Case(2, 64, 64, (2, 7, 9), stride=2, weight_last=True),
    "2 x 40": Case(2, 40, 40, (1, 5, 4), bias=True),
    "4 x 24, stride 2": Case(4, 24, 24, (1, 5, 6), stride=2),
    "several tiles": Case(4, 4, 4, (3, 11, 13)),
    "several tiles, stride 2": Case(4, 4, 4, (3, 17, 13), stride=2),
    "groups that fill no block": Case(5, 6, 6, (2, 4, 5)),
    "widening": Case(6, 4, 8, (2, 5, 4), bias=True),
    "narrowing, stride 2": Case(6, 8, 4, (2, 5, 4), stride=2),
    "dilation": Case(4, 4, 4, (1, 9, 8), padding=2, dilation=2),
    "dilation, stride 2": Case(4, 4, 4, (1, 9, 8), stride=2, padding=2, dilation=2),
    "dilation, stride 3": Case(4, 4, 4, (1, 10, 8), stride=3, padding=1, dilation=2),
    "no padding": Case(4, 4, 4, (1, 5, 6), padding=0),
    "one pixel, stride 2": Case(4, 4, 4, (2, 1, 1), stride=2),
    "one column": Case(4, 4, 4, (2, 6, 1), stride=2),
    "fp16": Case(8, 4, 4, (2, 6, 5), dtype="float16", bias=True),
    "fp16, stride 2": Case(8, 4, 4, (2, 6, 5), stride=2, dtype="float16"),
}


def tensors(case: Case, device: str = "cpu") -> list[torch.Tensor]:
    """Input, weight and bias (or None) in float64, of numbers that the case's type has."""
    random = torch.Generator().manual_seed(0)
    batch, height, width = case.size
    shapes = (
        (batch, case.groups * case.ins, height, width),
        (case.groups * case.outs, case.ins, 3, 3),
        (case.groups * case.outs,),
    )
    own = getattr(torch, case.dtype)
    values = [torch.randn(shape, generator=random).to(own).double().to(device) for shape in shapes]
    return values if case.bias else [*values[:2], None]


def place_of(case: Case) -> tuple:
    pairs = [(number, number) for number in (case.stride, case.padding, case.dilation)]
    return (*pairs, case.groups)


def results(convolution, case: Case, values: list, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Output and gradients of ``convolution(x, weight, bias, *place)``."""
    x, weight, bias = (None if v is None else v.detach().to(dtype) for v in values)
    x = x.contiguous(memory_format=torch.channels_last)
    if case.weight_last:
        weight = weight.contiguous(memory_format=torch.channels_last)
    wanted = {"grad x": x, "grad weight": weight, "grad bias": bias}
    wanted = {name: t.requires_grad_() for name, t in wanted.items() if t is not None}
    out = convolution(x, weight, bias, *place_of(case))
    slopes = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    grads = torch.autograd.grad(out, list(wanted.values()), slopes)
    return {"out": out.detach(), **dict(zip(wanted, grads, strict=True))}


def errors(case: Case, block: int, device: str = "cpu") -> dict[str, float]:
    """Of our kernels with blocks of so many channels, as parts of the largest value."""
    from resnext_det.models.regroup import Merge, regrouped_conv2d

    def ours(*arguments):
        return regrouped_conv2d(*arguments, Merge(-block, -block, -block))

    values, own = tensors(case, device), getattr(torch, case.dtype)
    expected = results(F.conv2d, case, values, torch.float64)
    found = results(ours, case, values, own)
    for name, tensor in found.items():
        assert tensor.dtype == own and tensor.shape == expected[name].shape, name
    return {
        name: float((found[name].double() - true).abs().max() / true.abs().max())
        for name, true in expected.items()
    }


def blocks_of(name: str) -> list[int]:
    """Sizes of blocks to try: of 32 groups the largest alone, for its programs are fewest."""
    from resnext_det.models import triton_conv

    case = CASES[name]
    x, weight, _ = tensors(case)
    x = x.to(getattr(torch, case.dtype)).contiguous(memory_format=torch.channels_last)
    found = triton_conv.blocks(x, weight, (case.stride, case.stride), case.groups)
    return found[-1:] if case.groups == 32 else found


def measured_parts() -> dict[str, list[int]]:
    """The merges that a measurement has times of, where the CPU is let take our kernels."""
    from resnext_det.models import measured

    measured.tiles = lambda *_: [-32, -64]
    x, weight, _ = tensors(CASES["4 x 24, stride 2"])
    x = x.float().contiguous(memory_format=torch.channels_last)
    times = measured.measure(x, weight.float(), (2, 2), 4)
    return {part: list(found) for part, found in times.items()}


def main() -> None:
    from resnext_det.models import regroup

    torch.set_num_threads(1)
    found = {
        f"{name}, {block}": errors(case, block)
        for name, case in CASES.items()
        for block in blocks_of(name)
    }
    found["measured"] = measured_parts()
    found["dropped"] = sorted(map(list, regroup._dropped))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
