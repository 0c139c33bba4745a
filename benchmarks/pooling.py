"""RoIPool and RoIAlign, forward and gradient, beside torchvision's operators on a CPU.

    python benchmarks/pooling.py [--repeats 5] [--rois 300]

Prints one JSON object. RoIPool as C4 has it, 1024 channels at stride 16, 14 bins a side, RoIs of
16 to 400 pixels; RoIAlign as a pyramid's p2 has it, 256 channels at stride 4, 7 bins, 16 to 112
pixels; one image of 600 x 800. torchvision's are in fp32, all that they have on a CPU, and the cast
to bf16 that follows is theirs too; ours are in bf16.
"""

import argparse
from collections.abc import Callable

import torch
import torchvision
from _pairs import alternate, ratio, report
from detectron2.layers import ROIAlign

from resnext_det.detection.roi_align import NativeROIAlign
from resnext_det.detection.roi_pool import is_native, roi_pool

HEIGHT, WIDTH = 600, 800
CASES = {  # channels, stride, bins a side, sides of RoIs in pixels
    "RoIPool": (1024, 16, 14, (16, 400)),
    "RoIAlign": (256, 4, 7, (16, 112)),
}
Pool = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rois", type=int, default=300)
    return parser.parse_args()


def boxes(count: int, least: int, most: int) -> torch.Tensor:
    """(count, 5): image 0, corners in pixels."""
    random = torch.Generator().manual_seed(0)
    sides = least + (most - least) * torch.rand(count, 2, generator=random)
    corner = torch.rand(count, 2, generator=random) * (torch.tensor([WIDTH, HEIGHT]) - sides)
    return torch.cat([torch.zeros(count, 1), corner, corner + sides], dim=1)


def pools(name: str) -> dict[str, Pool]:
    """{"torchvision", "ours"}: from features and RoIs to what is pooled."""
    _, stride, bins, _ = CASES[name]
    if name == "RoIPool":
        pool = torchvision.ops.roi_pool
        return {
            "torchvision": lambda x, rois: pool(x, rois, bins, 1 / stride).bfloat16(),
            "ours": lambda x, rois: roi_pool(x, rois, bins, 1 / stride),
        }
    how = (bins, 1 / stride, 0, True)
    stock, own = ROIAlign(*how), NativeROIAlign(*how)
    return {"torchvision": lambda x, rois: stock(x, rois).bfloat16(), "ours": own}


def measure(name: str, args: argparse.Namespace) -> dict:
    channels, stride, _, sides = CASES[name]
    rois = boxes(args.rois, *sides)
    wide = torch.randn(1, channels, HEIGHT // stride, WIDTH // stride)
    wide = wide.contiguous(memory_format=torch.channels_last)
    features = {"torchvision": wide, "ours": wide.bfloat16()}
    found = {}
    for part in ("forward", "forward and gradient"):
        runs = {
            who: _run(pool, features[who], rois, part != "forward")
            for who, pool in pools(name).items()
            if part == "forward" or who != "ours" or is_native(features[who])
        }
        times = alternate(runs, args.repeats, kept=["ours"])
        found[part] = {"seconds": times}
        if "ours" in times:
            found[part]["torchvision / ours"] = ratio(times, "torchvision", "ours")
    return found


def _run(pool: Pool, x: torch.Tensor, rois: torch.Tensor, learns: bool) -> Callable[[], None]:
    leaf = x.clone(memory_format=torch.preserve_format).requires_grad_(learns)

    def run() -> None:
        pooled = pool(leaf, rois)
        if learns:
            leaf.grad = None
            pooled.backward(pooled.detach())

    return run


def main() -> None:
    args = parse()
    torch.manual_seed(0)
    found = {name: measure(name, args) for name in CASES}
    report("pooling", arguments=vars(args), in_c=is_native(torch.zeros(1, 1, 1, 1)), **found)


if __name__ == "__main__":
    main()
