"""The classification part of benchmarks/data.py: class folders, beside torchvision."""

import argparse
import functools
from pathlib import Path
from typing import Any

import torch
from _stages import (
    by_torchvision,
    decoders,
    pair,
    rates,
    resizers,
    seeds,
    sizes,
    steps,
    with_pixels,
)
from detectron2.config import CfgNode
from PIL import Image
from torch.utils.data import DataLoader, default_collate
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from resnext_det.classification import evaluation, trainer
from resnext_det.config import load_cfg
from resnext_det.data import augment
from resnext_det.data.images import read_rgb
from resnext_det.data.sets import open_split

CONFIG = Path(__file__).parents[1] / "configs/imagenet/X50_32x4d.yaml"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def classification(args: argparse.Namespace, root: Path) -> dict:
    cfg = classification_cfg(args, root, workers=0)
    train, repeats = open_split(cfg, "train"), args.repeats
    paths = [path for path, _ in train.samples[: args.count]]
    images = [read_rgb(path) for path in paths]
    transform, test = augment.training_transform(cfg), augment.test_transform(cfg)
    side, batches = cfg.DATA.RESIZE_SIZE, args.count // args.batch - 1
    samples = [(transform(image), 0) for image in images[: args.batch]]
    to = functools.partial(short_side, side=side)
    return {
        "files": sizes(paths, images),
        "decode": with_pixels(decoders(paths, read_rgb), repeats),
        "resize": with_pixels(resizers(images, to, test.transforms[0], cubic=True), repeats),
        "training steps, ms": {
            **steps({"seeds of a sample": seeds}, images, repeats),
            **steps(named(transform), images, repeats),
        },
        "evaluation steps, ms": steps(named(test), images, repeats),
        "training, decoded to input": pair(beside(transform, peer(cfg, "train"), images), repeats),
        "evaluation, decoded to input": pair(beside(test, peer(cfg, "val"), images), repeats),
        "collate, a batch": pair(
            {"ours": (augment.collate, [samples]), "torch": (default_collate, [samples])}, repeats
        ),
        "training loader": rates(class_loaders(args, root, "train"), batches, repeats),
        "evaluation loader": rates(class_loaders(args, root, "val"), batches, repeats),
    }


def classification_cfg(args: argparse.Namespace, root: Path, workers: int) -> CfgNode:
    cfg = load_cfg(CONFIG, ["DATA.ROOT", str(root)])
    cfg.SOLVER.IMS_PER_BATCH = cfg.DATA.TEST_BATCH_SIZE = args.batch
    cfg.DATALOADER.NUM_WORKERS = workers
    return cfg


def short_side(height: int, width: int, side: int) -> tuple[int, int]:
    least = min(height, width)
    return int(side * height / least), int(side * width / least)


def named(transform: v2.Compose) -> dict[str, Any]:
    return {type(step).__name__: step for step in transform.transforms}


def peer(cfg: CfgNode, split: str) -> v2.Compose:
    """torchvision's own steps, with the recipe's numbers: of Pillow's images, or of tensors."""
    by, jitter = v2.InterpolationMode(cfg.DATA.INTERPOLATION), 3 * (cfg.DATA.COLOR_JITTER,)
    end = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    crop = cfg.DATA.CROP_SIZE
    if split == "val":
        begin = [v2.Resize(cfg.DATA.RESIZE_SIZE, by), v2.CenterCrop(crop)]
        return v2.Compose([*begin, v2.ToImage(), *end])
    begin = [v2.RandomResizedCrop(crop, interpolation=by), v2.RandomHorizontalFlip()]
    return v2.Compose([*begin, v2.ToImage(), v2.ColorJitter(*jitter), *end])


def beside(ours: v2.Compose, theirs: v2.Compose, images: list[Image.Image]) -> dict:
    tensors = [v2.functional.pil_to_tensor(image) for image in images]
    return {
        "ours": (ours, images),
        "torchvision": (theirs, images),
        "torchvision tensors": (theirs, tensors),
    }


def class_loaders(args: argparse.Namespace, root: Path, split: str) -> dict:
    """{program: a loader for a number of workers}."""
    cfg = classification_cfg(args, root, workers=0)

    def ours(workers: int) -> DataLoader:
        own = classification_cfg(args, root, workers)
        data = open_split(own, split)
        if split == "train":
            return trainer.build_train_loader(own, data, 0)
        return evaluation.build_test_loader(own, data)

    def folder(workers: int, **others: Any) -> DataLoader:
        data = ImageFolder(str(root / split), peer(cfg, split), **others)
        return DataLoader(data, args.batch, shuffle=split == "train", num_workers=workers)

    return {
        "ours": ours,
        "torchvision": folder,
        "torchvision tensors": functools.partial(folder, loader=by_torchvision),
    }
