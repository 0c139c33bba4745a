"""The detector's time beside Detectron2's stock model with the same keys, ResNeXt-50 (32x4d).

    python benchmarks/detector.py [--repeats 5] [--height 600] [--width 800] [--device cpu]
                                  [--pyramid]

Prints one JSON object: a step of the RPN, a step of Fast R-CNN (64 RoIs of 2,000 proposals), and
inference with 300 proposals of both networks, against one stock network that shares its features;
with --pyramid those of configs/beyond (512 RoIs of 1,000 proposals, 1,000 in inference).
The peer is in fp32, which is all that it has on a CPU: its pooling takes no bf16. "plain" is ours
with MODEL.FUSE False and MODEL.REGROUP off.
"""

import argparse
from collections.abc import Callable

import torch
from _pairs import alternate, ceilings, ratio, report
from detectron2.config import CfgNode
from detectron2.config import get_cfg as get_detectron2_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from resnext_det.config import load_cfg, stage_cfg

OURS = ("ours", "ours fp32", "plain")  # keep freed memory, as the tools do
C4 = "configs/faster_rcnn_X50_32x4d.yaml"
PYRAMID = "configs/beyond/faster_rcnn_X50_32x4d_FPN.yaml"
SAME = {  # of MODEL, what the peer takes from our config
    "RESNETS": (
        *("DEPTH", "NUM_GROUPS", "WIDTH_PER_GROUP", "STRIDE_IN_1X1", "OUT_FEATURES", "NORM"),
    ),
    "ANCHOR_GENERATOR": ("SIZES", "ASPECT_RATIOS"),
    "RPN": (
        *("IN_FEATURES", "BATCH_SIZE_PER_IMAGE", "BOUNDARY_THRESH", "NMS_THRESH"),
        *("PRE_NMS_TOPK_TRAIN", "POST_NMS_TOPK_TRAIN", "PRE_NMS_TOPK_TEST", "POST_NMS_TOPK_TEST"),
    ),
    "ROI_HEADS": ("BATCH_SIZE_PER_IMAGE", "NMS_THRESH_TEST", "SCORE_THRESH_TEST"),
    "ROI_BOX_HEAD": ("POOLER_TYPE", "POOLER_RESOLUTION"),
}
SAME_PYRAMID = {
    "FPN": ("IN_FEATURES", "OUT_CHANNELS", "NORM", "FUSE_TYPE"),
    "ROI_HEADS": (*SAME["ROI_HEADS"], "IN_FEATURES"),
    "ROI_BOX_HEAD": (*SAME["ROI_BOX_HEAD"], "POOLER_SAMPLING_RATIO", "NUM_FC", "FC_DIM"),
}
STAGES = {"RPN step": "rpn", "Fast R-CNN step": "fast_rcnn"}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--height", type=int, default=600)
    parser.add_argument("--width", type=int, default=800)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pyramid", action="store_true", help="feature pyramids in place of C4")
    return parser.parse_args()


def our_cfg(args: argparse.Namespace, *opts: str) -> CfgNode:
    base = ["MODEL.DEVICE", args.device, "MODEL.WEIGHTS", "", "MODEL.PRECISION", "auto"]
    cfg = load_cfg(PYRAMID if args.pyramid else C4, [*base, *opts])
    cfg.TEST.PROPOSALS_TOPK = cfg.MODEL.RPN.POST_NMS_TOPK_TEST
    return cfg


def stock_cfg(args: argparse.Namespace) -> CfgNode:
    """Detectron2's own defaults, with every key of ours that it has."""
    ours, cfg = our_cfg(args), get_detectron2_cfg()
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = args.device, ""
    for group, keys in (SAME | SAME_PYRAMID if args.pyramid else SAME).items():
        for key in keys:
            cfg.MODEL[group][key] = ours.MODEL[group][key]
    if args.pyramid:
        cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
        cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
        cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    return cfg


def stock(args: argparse.Namespace, stage: str) -> nn.Module:
    cfg = stock_cfg(args)
    if stage == "rpn":
        cfg.MODEL.META_ARCHITECTURE = "ProposalNetwork"
    elif stage == "fast_rcnn":
        cfg.MODEL.LOAD_PROPOSALS = True
        cfg.MODEL.PROPOSAL_GENERATOR.NAME = "PrecomputedProposals"
    return build_model(cfg)


def inputs(args: argparse.Namespace) -> list[dict]:
    random = torch.Generator().manual_seed(0)
    size = torch.tensor([args.width, args.height], dtype=torch.float32)

    def boxes(count: int) -> Boxes:
        corner = torch.rand(count, 2, generator=random) * 0.7 * size
        side = torch.rand(count, 2, generator=random) * 0.3 * size + 2
        return Boxes(torch.cat([corner, torch.minimum(corner + side, size)], dim=1))

    shape = (args.height, args.width)
    truth, proposals = Instances(shape), Instances(shape)
    truth.gt_boxes, truth.gt_classes = boxes(7), torch.arange(7)
    proposals.proposal_boxes = boxes(2000)
    proposals.objectness_logits = torch.linspace(5, -5, 2000)
    image = torch.randint(0, 256, (3, *shape), generator=random, dtype=torch.uint8)
    return [
        {
            "image": image,
            "height": args.height,
            "width": args.width,
            "instances": truth,
            "proposals": proposals,
        }
    ]


def step(model: nn.Module, batch: list[dict]) -> Callable[[], None]:
    model.train()

    def run() -> None:
        for parameter in model.parameters():
            parameter.grad = None
        with EventStorage(0):
            sum(model(batch).values()).backward()

    return run


def inference(model: nn.Module, batch: list[dict]) -> Callable[[], object]:
    model.eval()

    def run() -> object:
        with torch.no_grad():
            return model(batch)

    return run


def training(args: argparse.Namespace, batch: list[dict]) -> dict:
    found, sums = {}, {"stock": 0.0, "ours": 0.0}
    for name, stage in STAGES.items():
        off = ("MODEL.FUSE", "False", "MODEL.REGROUP", "off")
        runs = {
            "stock": step(stock(args, stage), batch),
            "ours": step(build_model(stage_cfg(our_cfg(args), stage)), batch),
            "plain": step(build_model(stage_cfg(our_cfg(args, *off), stage)), batch),
        }
        times = alternate(runs, args.repeats, args.device, OURS)
        found[name] = {
            "seconds": times,
            "ratios": {f"{who} / ours": ratio(times, who, "ours") for who in ("stock", "plain")},
        }
        for who in sums:
            sums[who] += times[who]["median"]
    found["both steps, stock / ours"] = round(sums["stock"] / sums["ours"], 3)
    return found


def both_networks(args: argparse.Namespace, batch: list[dict]) -> dict:
    off = ("MODEL.FUSE", "False", "MODEL.REGROUP", "off")
    fp32 = ("MODEL.PRECISION", "fp32")
    runs = {
        "stock, shared": inference(stock(args, "joint"), batch),
        "ours": inference(build_model(our_cfg(args)), batch),
        "ours fp32": inference(build_model(our_cfg(args, *fp32)), batch),
        "plain": inference(build_model(our_cfg(args, *off)), batch),
    }
    times = alternate(runs, args.repeats, args.device, OURS)
    others = [name for name in runs if name != "ours"]
    return {
        "seconds": times,
        "ratios": {f"{who} / ours": ratio(times, who, "ours") for who in others},
    }


def main() -> None:
    args = parse()
    torch.manual_seed(0)
    batch = inputs(args)
    report(
        "detector",
        arguments=vars(args),
        tflops_of_a_product=ceilings(args.device),
        training=training(args, batch),
        inference=both_networks(args, batch),
    )


if __name__ == "__main__":
    main()
