"""AP in the same minutes: our two networks against torchvision's Faster R-CNN, one after the other.

    python benchmarks/same_minutes.py --train-json T.json --train-images I --val-json V.json \\
        --val-images I [--minutes 20] [--output output/bench_same_minutes]

Runs ``tools/train_net.py --config-file configs/custom/small.yaml`` on the data set (its weights
come from `make demo`), takes the wall-clock time of the whole command, evaluation and pictures
included, and gives torchvision's ``fasterrcnn_resnet50_fpn`` (no pretrained weights, all layers
trained, the same ``--size``) that long on the same machine; ``--minutes`` sets the peer's time by
hand. The minutes of our classification step are not counted. Both are scored by the same
evaluator. Without data flags the demo's data set is used. Prints one JSON object and writes it to
OUTPUT/record.json.
"""

import argparse
import json
import math
import random
import subprocess
import sys
import time
from pathlib import Path

import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation import inference_on_dataset
from detectron2.structures import Boxes, BoxMode, Instances
from torch import nn
from torchvision.io import ImageReadMode, decode_image
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from resnext_det.compat import describe_environment
from resnext_det.data import coco
from resnext_det.detection.evaluation import BoxEvaluator
from resnext_det.engine.run import write_json
from resnext_det.errors import InputError, exit_cleanly

ROOT = Path(__file__).parents[1]
DEMO = Path("output/demo/data")
PEER_LR, PEER_BATCH, WARMUP_SECONDS = 0.01, 2, 60


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train-json", default=str(DEMO / "annotations/train.json"))
    parser.add_argument("--train-images", default=str(DEMO / "train"))
    parser.add_argument("--val-json", default=str(DEMO / "annotations/val.json"))
    parser.add_argument("--val-images", default=str(DEMO / "val"))
    parser.add_argument("--minutes", type=float, default=None)
    parser.add_argument("--size", type=int, nargs=2, default=(320, 512), metavar=("MIN", "MAX"))
    parser.add_argument("--output", default="output/bench_same_minutes")
    parser.add_argument("opts", nargs="*", help="KEY VALUE for train_net.py")
    return parser.parse_intermixed_args()


def run_ours(args: argparse.Namespace) -> tuple[dict, float]:
    """Our results.json and the minutes of the whole command."""
    out = Path(args.output, "ours")
    low, high = args.size
    sizes = {"MIN_SIZE_TRAIN": f"({low},)", "MIN_SIZE_TEST": low}
    sizes |= {"MAX_SIZE_TRAIN": high, "MAX_SIZE_TEST": high}
    flags = [
        f"--{name.replace('_', '-')}={getattr(args, name)}"
        for name in ("train_json", "train_images", "val_json", "val_images")
    ]
    start = time.perf_counter()
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "tools/train_net.py"),
            "--config-file",
            str(ROOT / "configs/custom/small.yaml"),
            *flags,
            "OUTPUT_DIR",
            str(out),
            *(str(word) for key, value in sizes.items() for word in (f"INPUT.{key}", value)),
            *args.opts,
        ],
        check=False,
    )
    if done.returncode:  # it has said why
        sys.exit(done.returncode)
    minutes = (time.perf_counter() - start) / 60
    return json.loads((out / "results.json").read_text()), minutes


def to_torchvision(record: dict) -> tuple[torch.Tensor, dict]:
    """Image float32 (3, H, W) in 0..1, boxes XYXY pixels, labels from 1 (0 is background)."""
    image = decode_image(record["file_name"], ImageReadMode.RGB).float() / 255
    objects = [a for a in record["annotations"] if not a["iscrowd"]]
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in objects]
    labels = [a["category_id"] + 1 for a in objects]
    return image, {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
    }


def train_peer(args: argparse.Namespace, minutes: float, num_classes: int) -> tuple[nn.Module, int]:
    """SGD with a cosine over the given minutes; the trained model and its number of steps."""
    torch.manual_seed(0)
    order = random.Random(0)
    model = fasterrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=num_classes + 1,
        min_size=args.size[0],
        max_size=args.size[1],
    ).train()
    optimizer = torch.optim.SGD(model.parameters(), PEER_LR, momentum=0.9, weight_decay=1e-4)
    records, steps, start = DatasetCatalog.get("custom_train"), 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < 60 * minutes:
        warmup = min(1.0, spent / WARMUP_SECONDS)
        rate = warmup * PEER_LR * (1 + math.cos(math.pi * spent / (60 * minutes))) / 2
        optimizer.param_groups[0]["lr"] = rate
        images, targets = zip(*map(to_torchvision, order.sample(records, PEER_BATCH)), strict=True)
        loss = sum(model(list(images), list(targets)).values())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        steps += 1
        if steps % 20 == 0:
            print(
                f"peer: {spent / 60:.1f} of {minutes:.1f} min, step {steps}, loss {loss:.3f}",
                flush=True,
            )
    return model, steps


class AsDetectron2(nn.Module):
    """torchvision's detector with Detectron2's inputs and outputs, for the same evaluator."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    @torch.no_grad()
    def forward(self, batch: list[dict]) -> list[dict]:
        images = [to_torchvision(x)[0] for x in batch]
        return [
            {"instances": self._instances(found, image)}
            for found, image in zip(self.model(images), images, strict=True)
        ]

    @staticmethod
    def _instances(found: dict, image: torch.Tensor) -> Instances:
        return Instances(
            tuple(image.shape[1:]),
            pred_boxes=Boxes(found["boxes"]),
            scores=found["scores"],
            pred_classes=found["labels"] - 1,
        )


def score_peer(args: argparse.Namespace, model: nn.Module) -> dict:
    records = DatasetCatalog.get("custom_val")
    evaluator = BoxEvaluator("custom_val", str(Path(args.output, "peer")), 100)
    loader = torch.utils.data.DataLoader(records, batch_size=4, collate_fn=list)
    return inference_on_dataset(AsDetectron2(model.eval()), loader, evaluator)


@exit_cleanly
def main() -> None:
    args = parse()
    if Path(args.output, "ours", "run.json").exists():
        raise InputError(
            args.output, "holds a benchmark run already", "remove it, or give another --output"
        )
    coco.register_coco("custom_train", args.train_json, args.train_images)
    coco.register_coco("custom_val", args.val_json, args.val_images)
    DatasetCatalog.get("custom_train")
    num_classes = len(coco.class_names("custom_train")[0])
    ours, minutes = run_ours(args)
    peer_minutes = args.minutes or minutes
    model, steps = train_peer(args, peer_minutes, num_classes)
    peer = score_peer(args, model)
    record = {
        "ours": {"minutes": minutes, **{k: ours["bbox"][k] for k in ("AP", "AP50")}},
        "torchvision fasterrcnn_resnet50_fpn": {
            "minutes": peer_minutes,
            "steps": steps,
            **{k: peer["bbox"][k] for k in ("AP", "AP50")},
        },
        "train": args.train_json,
        "val": args.val_json,
        "image_size": list(args.size),
        "environment": describe_environment(),
    }
    write_json(Path(args.output, "record.json"), record)
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
