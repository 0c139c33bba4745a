"""Small data sets as users have them, and a detector that trains on them in a second."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.config import CfgNode
from PIL import Image

from resnext_det.config import load_cfg
from resnext_det.errors import InputError

CONFIG = Path(__file__).parents[2] / "configs" / "custom" / "small.yaml"
ITERATIONS = 9  # of the RPN; checkpoints are saved behind every second
TINY = {
    "MODEL.DEVICE": "cpu",
    "MODEL.PRECISION": "fp32",
    "MODEL.REGROUP": "off",
    "MODEL.WEIGHTS": "",
    "MODEL.RESNETS.NUM_GROUPS": 4,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.RESNETS.WIDTH_MULTIPLIER": 0.125,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 20,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.001,
    "INPUT.MIN_SIZE_TRAIN": "(64,)",
    "INPUT.MIN_SIZE_TEST": 64,
    "PROPOSALS.POST_NMS_TOPK": 30,
    "SOLVER.WARMUP_ITERS": 1,
    "SOLVER.CHECKPOINT_PERIOD": 2,
    "SOLVER.RPN.MAX_ITER": ITERATIONS,
    "SOLVER.RPN.IMS_PER_BATCH": 2,
    "SOLVER.RPN.REFERENCE_BATCH": 0,
    "SOLVER.FAST_RCNN.MAX_ITER": 3,
    "SOLVER.FAST_RCNN.IMS_PER_BATCH": 2,
    "SOLVER.FAST_RCNN.REFERENCE_BATCH": 0,
}


def make_cfg(folder: Path | str, sets: list[tuple], **others: Any) -> CfgNode:
    """The first of ``sets``, (name, json, images), is trained on, the last one scored."""
    values = {
        **TINY,
        "DATASETS.COCO_JSON": [[str(word) for word in entry] for entry in sets],
        "DATASETS.TRAIN": (sets[0][0],),
        "DATASETS.TEST": (sets[-1][0],),
        "OUTPUT_DIR": folder,
        **others,
    }
    return load_cfg(CONFIG, [str(word) for pair in values.items() for word in pair])


def picture(seed: int, mode: str = "RGB", size: tuple[int, int] = (96, 72)) -> Image.Image:
    """Noise of a picture mode; ``size`` is (width, height)."""
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    if mode == "I;16":
        return Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    return Image.fromarray(noise).convert(mode)


def write_set(folder: Path, content: dict, file: str = "set.json") -> Path:
    path = folder / file
    path.write_text(json.dumps(content))
    return path


def plain_set(folder: Path, images: int = 4, names: tuple[str, ...] = ("cup", "pan")) -> Path:
    """A set without any fault, two objects an image; its pictures are in ``folder``."""
    content = {"images": [], "annotations": [], "categories": []}
    for number, name in enumerate(names):
        content["categories"].append({"id": number + 1, "name": name})
    for number in range(1, images + 1):
        picture(number).save(folder / f"{number}.png")
        image = {"id": number, "file_name": f"{number}.png", "width": 96, "height": 72}
        content["images"].append(image)
        for box in ([8, 8, 40, 30], [50, 30, 40, 36]):
            own = {"id": len(content["annotations"]) + 1, "image_id": number, "bbox": box}
            own |= {"category_id": 1 + number % len(names), "iscrowd": 0, "area": box[2] * box[3]}
            content["annotations"].append(own)
    return write_set(folder, content)


def refusal(call: Callable[[], Any], *words: object) -> str:
    """The one line of an InputError, in which each of ``words`` is."""
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message, message
    return message
