"""The networks' part of benchmarks/scaling.py: by pixels, RoIs and images of a batch."""

import argparse
from collections.abc import Callable, Iterator

import torch
from _curves import Curve
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from torch import nn

from resnext_det.config import load_cfg, stage_cfg

PLAIN = {
    "MODEL.FUSE": "False",
    "MODEL.REGROUP": "off",
    "MODEL.CHANNELS_LAST": "False",
    "MODEL.PRECISION": "fp32",
}
PROGRAMS = {"ours": {}, "Detectron2's layers": PLAIN}
SIZES = ((192, 256), (288, 384), (384, 512), (576, 768))  # height, width
ROIS, BATCHES = (100, 300, 1000), (1, 2, 4)
QUICK_SIZES, QUICK_ROIS, QUICK_BATCHES = ((64, 64), (96, 128)), (10, 40), (1, 2)


def cfg_of(args: argparse.Namespace, opts: dict[str, str]) -> CfgNode:
    base = {"MODEL.DEVICE": "cpu", "MODEL.WEIGHTS": "", **opts}
    return load_cfg(args.config, [word for pair in base.items() for word in pair])


def image(size: tuple[int, int]) -> dict:
    random = torch.Generator().manual_seed(0)
    return {"image": torch.randint(0, 256, (3, *size), generator=random, dtype=torch.uint8)}


def inference(call: Callable, *inputs: object) -> Callable[[], object]:
    def run() -> object:
        with torch.no_grad():
            return call(*inputs)

    return run


def network_curves(args: argparse.Namespace) -> Iterator[Curve]:
    torch.manual_seed(0)
    yield from by_pixels(args)
    yield by_rois(args)
    yield by_batch(args)


def by_pixels(args: argparse.Namespace) -> Iterator[Curve]:
    sizes = QUICK_SIZES if args.quick else SIZES
    trunk, whole = {}, {}
    for name, opts in PROGRAMS.items():
        rpn = build_model(stage_cfg(cfg_of(args, opts), "rpn")).eval()
        trunk[name] = {h * w: inference(rpn.backbone, torch.randn(1, 3, h, w)) for h, w in sizes}
        whole[name] = {h * w: inference(rpn, [image((h, w))]) for h, w in sizes}
    yield Curve(
        "trunk, one image",
        by="pixels",
        runs=trunk,
        why="every layer is a convolution with a fixed kernel: work is linear in its positions, "
        "less what a layer costs whatever its size",
    )
    yield Curve(
        "RPN with its trunk, one image",
        by="pixels",
        runs=whole,
        why="anchors are a fixed number a position, so heads and decoding are linear; NMS is "
        "quadratic in its boxes until there are PRE_NMS_TOPK_TEST of them, and constant after that",
    )


def by_rois(args: argparse.Namespace) -> Curve:
    size = QUICK_SIZES[-1] if args.quick else SIZES[2]
    runs = {}
    for name, opts in PROGRAMS.items():
        model = build_model(stage_cfg(cfg_of(args, opts), "fast_rcnn")).eval()
        runs[name] = {
            count: rois_run(model, size, count) for count in (QUICK_ROIS if args.quick else ROIS)
        }
    return Curve(
        "RoI head, one image",
        by="RoIs",
        runs=runs,
        why="each RoI is pooled and passes res5 and the two layers alone: linear, above a fixed "
        "cost; glibc gives tensors over 32 MB back to the system, so that each is made of new "
        "pages, which adds some tenths; of random weights no detection reaches the last NMS",
    )


def rois_run(model: nn.Module, size: tuple[int, int], count: int) -> Callable[[], object]:
    """The head alone on ``count`` random boxes; the trunk has run before."""
    random = torch.Generator().manual_seed(count)
    high = torch.tensor([size[1], size[0]], dtype=torch.float32)
    corner = torch.rand(count, 2, generator=random) * 0.7 * high
    side = torch.rand(count, 2, generator=random) * 0.3 * high + 2
    boxes = Boxes(torch.cat([corner, torch.minimum(corner + side, high)], dim=1))
    proposals = [
        Instances(size, proposal_boxes=boxes, objectness_logits=torch.linspace(5, -5, count))
    ]
    images = model.preprocess_image([image(size)])
    with torch.no_grad():
        features = model.backbone(images.tensor)
    return inference(model.roi_heads, images, features, proposals, None)


def by_batch(args: argparse.Namespace) -> Curve:
    size = QUICK_SIZES[0] if args.quick else SIZES[1]
    runs = {}
    for name, opts in PROGRAMS.items():
        model = build_model(cfg_of(args, opts)).eval()
        runs[name] = {
            count: inference(model, count * [image(size)])
            for count in (QUICK_BATCHES if args.quick else BATCHES)
        }
    return Curve(
        "both networks, inference",
        by="images of a batch",
        runs=runs,
        why="images share no work but the layers' fixed costs: linear, and below it as long as one "
        "image does not fill the cores",
    )
