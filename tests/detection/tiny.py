"""A tiny detector on the demo set, for tests of whole runs: seconds, not minutes."""

from pathlib import Path

import torch

from resnext_det.config import load_cfg, trunk_arguments
from resnext_det.models import build_resnext
from resnext_det.weights import WeightsRecord, save_weights

CONFIG = Path(__file__).parents[2] / "configs" / "demo" / "detection.yaml"
ITERATIONS = {"rpn": 5, "fast_rcnn": 6, "joint": 4}
TINY = {
    "MODEL.PRECISION": "fp32",
    "MODEL.RESNETS.NUM_GROUPS": 4,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.RESNETS.WIDTH_MULTIPLIER": 0.125,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.001,
    "MODEL.ROI_HEADS.NUM_CLASSES": 80,
    "INPUT.MIN_SIZE_TRAIN": "(96,)",
    "INPUT.MIN_SIZE_TEST": 96,
    "PROPOSALS.POST_NMS_TOPK": 60,
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.WARMUP_ITERS": 1,
    "SOLVER.CHECKPOINT_PERIOD": 2,
    "SOLVER.RPN.MAX_ITER": ITERATIONS["rpn"],
    "SOLVER.RPN.IMS_PER_BATCH": 2,
    "SOLVER.RPN.REFERENCE_BATCH": 0,
    "SOLVER.FAST_RCNN.MAX_ITER": ITERATIONS["fast_rcnn"],
    "SOLVER.FAST_RCNN.IMS_PER_BATCH": 2,
    "SOLVER.FAST_RCNN.REFERENCE_BATCH": 0,
    "SOLVER.JOINT.MAX_ITER": ITERATIONS["joint"],
    "SOLVER.JOINT.IMS_PER_BATCH": 2,
    "SOLVER.JOINT.REFERENCE_BATCH": 0,
}


def make_cfg(data, folder, weights, **others):
    values = {
        "DATASETS.COCO_JSON": [
            [f"demo_{split}", f"{data}/annotations/{split}.json", f"{data}/{split}"]
            for split in ("train", "val")
        ],
        "MODEL.WEIGHTS": weights or "",
        "OUTPUT_DIR": folder or "",
        **TINY,
        **others,
    }
    return load_cfg(CONFIG, [str(word) for pair in values.items() for word in pair])


def write_start_weights(folder: Path) -> Path:
    """What the classification step would have left."""
    arguments = trunk_arguments(make_cfg(None, None, None))
    del arguments["norm"]
    torch.manual_seed(0)
    trunk = build_resnext(**arguments, num_classes=4)
    path = folder / "model_final.safetensors"
    record = WeightsRecord(
        kind="classification",
        architecture=trunk.architecture.as_dict(),
        pixel_format="RGB",
        pixel_mean=[120.0, 110.0, 100.0],  # others than the config's, to be taken from here
        pixel_std=[58.0, 57.0, 56.0],
        class_names=list("abcd"),
    )
    save_weights(path, trunk.state_dict(), record)
    return path
