"""An evaluation of many images, detections and classes: its figures, memory and time.

python tests/soak/evaluation_stress.py [--images 5000] [--processes 2] [--scorer ..] [--json]
The three evaluators of a detector are fed by Detectron2's own loop; the detector is made up: of an
image's boxes some lie near objects, others anywhere. Nothing is random but by the image's id.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from detectron2.data.samplers import InferenceSampler
from detectron2.evaluation import inference_on_dataset
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from resnext_det.data.coco import load, register_coco  # noqa: E402
from resnext_det.detection.confusion import ConfusionEvaluator  # noqa: E402
from resnext_det.detection.evaluation import RecallEvaluator  # noqa: E402
from resnext_det.detection.scorer_evaluator import BoxEvaluator  # noqa: E402
from resnext_det.engine.launch import add_launch_arguments, launch  # noqa: E402

NAME, SIDE, OBJECTS = "stress", 640, 7  # COCO has 7 objects an image
BATCH = 4


def objects_of(image: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes float64 (7, 4), XYWH in pixels, and classes int64 (7,) of an image's objects."""
    random = np.random.default_rng((0, image))
    sides = np.exp(random.uniform(np.log(12), np.log(300), (OBJECTS, 2)))
    corners = random.uniform(0, 1, (OBJECTS, 2)) * (SIDE - sides)
    return np.hstack([corners, sides]).round(2), random.integers(0, classes, OBJECTS)


def write_set(folder: Path, images: int, classes: int) -> Path:
    """A COCO file; its pictures, which no one opens, are empty."""
    content = {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "width": SIDE, "height": SIDE}
            for i in range(1, images + 1)
        ],
        "categories": [{"id": k + 1, "name": f"class {k}"} for k in range(classes)],
        "annotations": [],
    }
    for image in content["images"]:
        (folder / image["file_name"]).touch()
        for box, k in zip(*objects_of(image["id"], classes), strict=True):
            own = {"id": len(content["annotations"]) + 1, "image_id": image["id"], "iscrowd": 0}
            own |= {"category_id": int(k) + 1, "bbox": box.tolist(), "area": float(box[2] * box[3])}
            content["annotations"].append(own)
    path = folder / "set.json"
    path.write_text(json.dumps(content))
    return path


class MadeUp:
    """A detector's outputs for Detectron2's inputs, by their image ids."""

    def __init__(self, detections: int, classes: int):
        self.detections, self.classes = detections, classes

    def __call__(self, inputs: list[dict]) -> list[dict]:
        return [self._of(x["image_id"]) for x in inputs]

    def _of(self, image: int) -> dict:
        random = np.random.default_rng((1, image))
        boxes, classes = objects_of(image, self.classes)
        near = random.integers(0, len(boxes), self.detections)
        moved = (
            boxes[near] + random.normal(0, 0.1, (self.detections, 4)) * boxes[near][:, [2, 3] * 2]
        )
        far = random.random(self.detections) < 0.5
        moved[far, :2] = random.uniform(0, SIDE / 2, (far.sum(), 2))
        numbers = np.where(random.random(self.detections) < 0.3, self.classes - 1, classes[near])
        corners = np.hstack([moved[:, :2], moved[:, :2] + np.maximum(moved[:, 2:], 1)])
        found = Boxes(torch.from_numpy(corners.clip(0, SIDE)).float())
        scores = torch.from_numpy(random.random(self.detections)).float()
        instances = Instances((SIDE, SIDE), pred_boxes=found, scores=scores)
        instances.pred_classes = torch.from_numpy(numbers)
        proposals = Instances((SIDE, SIDE), proposal_boxes=found, objectness_logits=scores)
        return {"instances": instances, "proposals": proposals}


class Batches:
    """This process's images, a few at a time, as an evaluation's loader gives them."""

    def __init__(self, records: list[dict]):
        mine = list(InferenceSampler(len(records)))
        self.batches = [
            [{"image_id": records[i]["image_id"]} for i in mine[first : first + BATCH]]
            for first in range(0, len(mine), BATCH)
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


def resident(field: str) -> float:
    """MiB of this process: "VmRSS" now, "VmHWM" at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


def evaluate_here(args: argparse.Namespace) -> None:
    """Evaluate in this process, one of several or alone; the main one writes found.json."""
    register_coco(NAME, args.folder / "set.json", args.folder)
    records = load(NAME)
    boxes = BoxEvaluator(NAME, str(args.folder / "out"), 100, scorer=args.scorer)
    others = [RecallEvaluator(NAME), ConfusionEvaluator(NAME, args.folder / "out")]
    before, begun = resident("VmRSS"), time.perf_counter()
    Path("/proc/self/clear_refs").write_text("5")  # or the peak would be that of reading
    model = MadeUp(args.detections, args.classes)
    results = inference_on_dataset(model, Batches(records), [boxes, *others])
    seconds, growth = time.perf_counter() - begun, resident("VmHWM") - before
    grown = comm.gather(round(growth, 1))
    if comm.is_main_process():
        found = {
            "figures": results,
            "detections": len(boxes.found),
            "held_mib": round(boxes.found.nbytes / 2**20, 1),
            "before_mib": round(before, 1),
            "growth_mib": grown,
            "seconds": round(seconds, 1),
        }
        (args.folder / "found.json").write_text(json.dumps(found))


def measure(
    images: int, detections: int, classes: int, *, processes: int = 1, scorer: str = "auto"
) -> dict:
    """Evaluate in processes of their own.

    Returns:
        "figures" as the evaluators give them; "growth_mib": how far each process's resident memory
        rose over that with the data set and the evaluators in it; "held_mib": of all detections.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_set(folder, images, classes)
        several = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes)
        words = ("--detections", detections, "--classes", classes, "--scorer", scorer)
        command = [*several, __file__] if processes > 1 else [__file__]
        done = subprocess.run(
            [sys.executable, "-W", "ignore", *map(str, (*command, *words, "--folder", folder))],
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"exit {done.returncode}: {done.stderr[-2000:]}")
        found = json.loads((folder / "found.json").read_text())
        content = json.loads((folder / "out" / "confusion.json").read_text())
    size = {"images": images, "classes": classes, "processes": processes, "scorer": scorer}
    return {**size, **found, "confusion": content}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=100, help="an image")
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--scorer", default="auto")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--folder", type=Path, help="evaluate the set in it, and leave found.json")
    add_launch_arguments(parser)
    args = parser.parse_args()
    if args.folder:
        launch(evaluate_here, args)
        return
    size = (args.images, args.detections, args.classes)
    found = measure(*size, processes=args.processes, scorer=args.scorer)
    figures = found.pop("figures")
    del found["confusion"]
    found |= {"AP": figures["bbox"]["AP"], "AR@100": figures["proposals"]["AR@100"]}
    print(json.dumps(found) if args.json else "\n".join(f"{k}: {v}" for k, v in found.items()))


if __name__ == "__main__":
    main()
