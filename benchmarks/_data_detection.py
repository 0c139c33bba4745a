"""The detection part of benchmarks/data.py: a COCO file's pictures, beside Detectron2."""

import argparse
import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _stages import COMPARED, decoders, pair, rates, resizers, seeds, sizes, steps, with_pixels
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.data import detection_utils as d2
from detectron2.data import transforms as T
from detectron2.structures import ImageList
from PIL import Image
from torch.utils.data import DataLoader

from resnext_det.config import load_cfg, stage_cfg
from resnext_det.data import coco
from resnext_det.data.images import read_array
from resnext_det.detection import loaders
from resnext_det.engine.seeding import seed_all

CONFIG = Path(__file__).parents[1] / "configs/faster_rcnn_X50_32x4d.yaml"
SPLITS, PEER = ("train", "val"), "Detectron2"
PER_STEP = 2  # images


def detection(args: argparse.Namespace, json_file: Path, images: Path) -> dict:
    cfg, repeats = detection_cfg(json_file, images), args.repeats
    records = loaders.load_records(cfg)[: args.count]
    paths = [record["file_name"] for record in records]
    arrays = [read_array(path) for path in paths]
    ours = {split: loaders.NamingMapper(cfg, is_train=split == "train") for split in SPLITS}
    theirs = {split: DatasetMapper(cfg, is_train=split == "train") for split in SPLITS}
    batches = args.count // PER_STEP - 1
    inputs = [ours["train"](record) for record in records]
    decode = decoders(paths, read_array)
    decode["Detectron2"] = (lambda path: d2.read_image(path, "RGB"), paths)
    return {
        "files": sizes(paths, arrays),
        "decode": with_pixels(decode, repeats),
        "resize": with_pixels(
            resizers(list(map(Image.fromarray, arrays)), target(cfg), resized(cfg), cubic=False),
            repeats,
        ),
        "training steps, ms": {
            **steps({"seeds of a sample": seeds, "copy of the record": copy.deepcopy}, records, 1),
            **steps(mapper_steps(ours["train"]), list(zip(records, arrays, strict=True)), repeats),
        },
        "batch of the network, ms": steps({"pad": pad}, [inputs[:PER_STEP]], repeats),
        **{
            f"{split}, file to input": {
                **pair({"ours": (ours[split], records), PEER: (theirs[split], records)}, repeats),
                "equal": all(same(ours[split], theirs[split], x) for x in records[:COMPARED]),
            }
            for split in SPLITS
        },
        "training loader": rates(detection_loaders(cfg, "train"), batches, repeats),
        "evaluation loader": rates(detection_loaders(cfg, "val"), args.count - 1, repeats),
    }


def detection_cfg(json_file: Path, images: Path) -> CfgNode:
    """The RPN's, with two images a step, as a GPU of the paper has them."""
    cfg = load_cfg(CONFIG, ["MODEL.DEVICE", "cpu"])
    cfg.DATASETS.COCO_JSON = [["benchmark", str(json_file), str(images)]]
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("benchmark",)
    cfg.SOLVER.RPN.IMS_PER_BATCH, cfg.TEST.IMS_PER_BATCH = PER_STEP, 1
    coco.register_from_config(cfg)
    return stage_cfg(cfg, "rpn")


def target(cfg: CfgNode) -> Any:
    short, most = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    return lambda h, w: T.ResizeShortestEdge.get_output_shape(h, w, short, most)


def resized(cfg: CfgNode) -> Any:
    """Detectron2's resizing of an array, which is by Pillow."""
    by = T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    return lambda array: by.get_transform(array).apply_image(array)


def mapper_steps(mapper: DatasetMapper) -> dict[str, Any]:
    """What follows decoding, of (record, array)."""

    def augmented(item: tuple) -> tuple:
        seen = T.AugInput(item[1])
        return item[0], mapper.augmentations(seen), seen.image

    def to_tensor(item: tuple) -> tuple:
        array = np.ascontiguousarray(item[2].transpose(2, 0, 1))
        return *item[:2], torch.as_tensor(array)

    def to_instances(item: tuple) -> Any:
        record, transforms, image = item
        size = tuple(image.shape[1:])
        entries = [
            d2.transform_instance_annotations(dict(entry), transforms, size)
            for entry in record["annotations"]
        ]
        return d2.filter_empty_instances(d2.annotations_to_instances(entries, size))

    return {"resize and flip": augmented, "to tensor": to_tensor, "boxes": to_instances}


def pad(inputs: list[dict]) -> ImageList:
    return ImageList.from_tensors([x["image"].float() for x in inputs])


def same(ours: DatasetMapper, theirs: DatasetMapper, record: dict) -> bool:
    """Whether both give the same pixels from the same draws."""
    found = []
    for mapper in (ours, theirs):
        seed_all(0)
        found.append(mapper(record)["image"])
    return torch.equal(*found)


def detection_loaders(cfg: CfgNode, split: str) -> dict:
    """{program: a loader for a number of workers}."""

    def ours(workers: int) -> DataLoader:
        own = cfg.clone()
        own.defrost()
        own.DATALOADER.NUM_WORKERS = workers
        if split == "train":
            return loaders.build_train_loader(own, 0)
        return loaders.build_test_loader(own, "benchmark")

    def detectron2(workers: int) -> Any:
        mapper = DatasetMapper(cfg, is_train=split == "train")
        if split == "val":
            records = DatasetCatalog.get("benchmark")
            return build_detection_test_loader(records, mapper=mapper, num_workers=workers)
        return build_detection_train_loader(
            loaders.load_records(cfg),
            mapper=mapper,
            total_batch_size=PER_STEP,
            num_workers=workers,
        )

    return {"ours": ours, PEER: detectron2}
