"""The trunk's time beside its peers': torchvision, timm (where installed) and Detectron2.

    python benchmarks/trunk.py [--repeats 7] [--batch 8] [--size 224] [--device cpu] [--forms]

Prints one JSON object. Inference and training step of ResNet-50 and ResNeXt-50 (32x4d), in fp32 and
bf16; ratios are of medians of runs in turn, in one process. "plain" is our trunk with MODEL.FUSE
False and MODEL.REGROUP off. "ceiling" is the share of the time that a product of large matrices
would take for the same multiply-adds. bf16 figures of the peers are those of autocast in
channels_last memory, the setting that is fastest for them. On a CPU ours and "plain" keep freed
memory, as this package's tools do; "released" are ours without.
"""

import argparse
import importlib.util
from collections.abc import Callable

import torch
import torch.nn.functional as F
import torchvision
from _pairs import alternate, ceilings, ratio, report
from detectron2.config import get_cfg as get_detectron2_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import build_resnet_backbone
from torch import nn

from resnext_det.models import build_resnext
from resnext_det.models.complexity import totals

NETWORKS = {"R-50": (1, 64, "resnet50"), "X-50": (32, 4, "resnext50_32x4d")}
CLASSES = 1000


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=sides, default=(224, 224), help="as 224 or 600x800")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--forms", action="store_true", help="forms (a), (b), (c) too; minutes")
    return parser.parse_args()


def sides(text: str) -> tuple[int, int]:
    """Height and width of "600x800", or of "224"."""
    height, _, width = text.partition("x")
    return int(height), int(width or height)


def ours(cardinality: int, width: int, args: argparse.Namespace, precision: str, **others):
    return build_resnext(
        50,
        cardinality,
        width,
        num_classes=CLASSES,
        precision=precision,
        channels_last=True,
        **{"fuse": True, "regroup": "auto", **others},
    ).to(args.device)


class Peer(nn.Module):
    """Another program's classifier, in bf16 by autocast and channels_last or as it comes."""

    def __init__(self, model: nn.Module, precision: str):
        super().__init__()
        self.model, self.half = model, precision == "bf16"
        if self.half:
            self.model.to(memory_format=torch.channels_last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.half:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self.half):
            out = self.model(x)
        return (out["linear"] if isinstance(out, dict) else out).float()


def detectron2_trunk(cardinality: int, width: int) -> nn.Module:
    cfg = get_detectron2_cfg()
    keys = cfg.MODEL.RESNETS
    keys.NUM_GROUPS, keys.WIDTH_PER_GROUP, keys.NORM = cardinality, width, "BN"
    keys.OUT_FEATURES, keys.STRIDE_IN_1X1, cfg.MODEL.BACKBONE.FREEZE_AT = ["res5"], False, 0
    trunk = build_resnet_backbone(cfg, ShapeSpec(channels=3))
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return _Headed(trunk, pool, nn.Linear(trunk.output_shape()["res5"].channels, CLASSES))


class _Headed(nn.Module):
    def __init__(self, trunk: nn.Module, pool: nn.Module, linear: nn.Module):
        super().__init__()
        self.trunk, self.pool, self.linear = trunk, pool, linear

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.pool(self.trunk(x)["res5"]))


def models(args: argparse.Namespace, precision: str) -> dict[str, nn.Module]:
    """{"<who> <network>": a classifier of 1000 classes}."""
    found = {}
    for network, (cardinality, width, name) in NETWORKS.items():
        found[f"ours {network}"] = ours(cardinality, width, args, precision)
        found[f"plain {network}"] = ours(
            cardinality, width, args, precision, fuse=False, regroup="off"
        )
        peers = {"torchvision": getattr(torchvision.models, name)()}
        peers["Detectron2"] = detectron2_trunk(cardinality, width)
        if importlib.util.find_spec("timm"):
            peers["timm"] = importlib.import_module("timm").create_model(name)
        for peer, model in peers.items():
            found[f"{peer} {network}"] = Peer(model, precision).to(args.device)
    return found


def inference(model: nn.Module, x: torch.Tensor) -> Callable[[], object]:
    model.eval()

    def run() -> object:
        with torch.no_grad():
            return model(x)

    return run


def training(model: nn.Module, x: torch.Tensor) -> Callable[[], object]:
    model.train()
    labels = torch.arange(len(x), device=x.device) % CLASSES
    parameters = list(model.parameters())

    def run() -> None:
        for parameter in parameters:
            parameter.grad = None
        out = model(x)
        F.cross_entropy(out["linear"] if isinstance(out, dict) else out, labels).backward()

    return run


def measure(args: argparse.Namespace, mode: str, precision: str, ceiling: float) -> dict:
    x = torch.randn(args.batch, 3, *args.size, device=args.device)
    make = {"inference": inference, "training": training}[mode]
    runs = {name: make(model, x) for name, model in models(args, precision).items()}
    kept = [name for name in runs if name.startswith(("ours", "plain"))]
    runs |= {f"released {network}": runs[f"ours {network}"] for network in NETWORKS}
    times = alternate(runs, args.repeats, args.device, kept)
    ratios = {
        f"{who} / ours {network}": ratio(times, f"{who} {network}", f"ours {network}")
        for network in NETWORKS
        for who in dict.fromkeys(name.split()[0] for name in runs)
        if who != "ours"
    }
    for who in ("ours", "plain", "torchvision"):
        ratios[f"X-50 / R-50 {who}"] = ratio(times, f"{who} X-50", f"{who} R-50")
    return {"seconds": times, "ratios": ratios, "ceiling": shares(args, mode, times, ceiling)}


def shares(args: argparse.Namespace, mode: str, times: dict, ceiling: float) -> dict[str, float]:
    """By network, what the bare multiply-adds would take of our time at the ceiling."""
    passes = {"inference": 1, "training": 3}[mode]
    found = {}
    for network, (cardinality, width, _) in NETWORKS.items():
        model = build_resnext(50, cardinality, width, num_classes=CLASSES)
        macs = totals(model, args.size).multiply_adds * args.batch * passes
        found[network] = round(2 * macs / 1e12 / ceiling / times[f"ours {network}"]["median"], 3)
    return found


def forms(args: argparse.Namespace) -> dict:
    """The three forms of Fig. 3, one image, fp32."""
    x = torch.randn(1, 3, *args.size, device=args.device)
    runs = {
        form: training(ours(32, 4, args, "fp32", form=form, fuse=False, regroup="off"), x)
        for form in "abc"
    }
    times = alternate(runs, max(1, args.repeats // 3), args.device)
    return {"seconds": times, "ratios": {f"{f} / c": ratio(times, f, "c") for f in "ab"}}


def main() -> None:
    args = parse()
    torch.manual_seed(0)
    found, highest = {}, ceilings(args.device)
    for mode in ("inference", "training"):
        for precision in ("fp32", "bf16"):
            found[f"{mode} {precision}"] = measure(args, mode, precision, highest[precision])
    fp32, bf16 = found["inference fp32"]["seconds"], found["inference bf16"]["seconds"]
    best = {
        f"torchvision fp32 / ours bf16 {network}": round(
            fp32[f"torchvision {network}"]["median"] / bf16[f"ours {network}"]["median"], 3
        )
        for network in NETWORKS
    }
    if args.forms:
        found["forms of Fig. 3, training step"] = forms(args)
    report(
        "trunk",
        arguments={"batch": args.batch, "size": args.size, "repeats": args.repeats},
        tflops_of_a_product=highest,
        inference_from_fp32_peer=best,
        **found,
    )


if __name__ == "__main__":
    main()
