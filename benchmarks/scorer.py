"""The scorer beside pycocotools: load and evaluate 100,000 detections of 80 classes.

    python benchmarks/scorer.py [--repeats 3] [--images 1000] [--objects 7000] [--detections 100000]

Prints one JSON object. "pycocotools": COCO and loadRes from files, evaluate, accumulate, summarize.
"packed": the annotation file read, and the detections as columns, which is how an evaluation holds
them. "from files": the results read from JSON too, and checked; most of it is Python's parser. The
set is drawn, with crowds and equal scores. That all twelve figures and every precision and recall
are equal to 1e-9 is asserted before anything is timed.
"""

import argparse
import contextlib
import io
import json
import tempfile
from pathlib import Path

import numpy as np
from _pairs import alternate, ratio, report
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from resnext_det.detection.scorer import Scores, score
from resnext_det.detection.scorer_arrays import Detections, truth_of
from resnext_det.detection.scorer_backends import DEFINITION, FAST, fault_of_fast, version_of
from resnext_det.detection.scorer_results import read_results, write_results

CLASSES = 80


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--objects", type=int, default=7000)
    parser.add_argument("--detections", type=int, default=100_000)
    return parser.parse_args()


def draw(args: argparse.Namespace) -> tuple[dict, Detections]:
    """COCO content, and detections: half near an object of their class, half anywhere."""
    random = np.random.default_rng(0)
    m, n = args.objects, args.detections
    image, class_ = random.integers(0, args.images, m), random.integers(0, CLASSES, m)
    side = np.exp(random.uniform(np.log(8), np.log(300), m))
    boxes = np.stack([*random.uniform(0, 340, (2, m)), side, side * random.uniform(0.5, 2, m)], 1)
    content = {
        "images": [{"id": i, "height": 640, "width": 640} for i in range(1, args.images + 1)],
        "categories": [{"id": k, "name": str(k)} for k in range(1, CLASSES + 1)],
        "annotations": [
            {
                "id": number + 1,
                "image_id": int(image[number]) + 1,
                "category_id": int(class_[number]) + 1,
                "bbox": boxes[number].tolist(),
                "area": float(boxes[number, 2] * boxes[number, 3]),
                "iscrowd": int(random.random() < 0.01),
            }
            for number in range(m)
        ],
    }
    near = random.integers(0, m, n)
    moved = boxes[near] + random.normal(size=(n, 4)) * 0.15 * side[near, None]
    is_near = random.random(n) < 0.5
    found = Detections(
        images=image[near].astype(np.int32),
        classes=np.where(is_near, class_[near], random.integers(0, CLASSES, n)).astype(np.int32),
        boxes=np.maximum(moved, 0),
        scores=np.round(random.random(n), 3),
    )
    return content, found


def by_pycocotools(annotations: Path, results: Path) -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        run = COCOeval(truth, truth.loadRes(str(results)), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run


def packed(annotations: Path, found: Detections, scorer: str) -> Scores:
    truth = truth_of(json.loads(annotations.read_text()), annotations)
    scores = score(truth, found, scorer=scorer)
    scores.figures(), scores.class_ap()
    return scores


def from_files(annotations: Path, results: Path, scorer: str) -> Scores:
    truth = truth_of(json.loads(annotations.read_text()), annotations)
    scores = score(truth, read_results(results, truth), scorer=scorer)
    scores.figures(), scores.class_ap()
    return scores


def largest_difference(scores: Scores, run: COCOeval) -> float:
    """Over the twelve figures (0..1), precisions and recalls."""
    figures = np.array(list(scores.figures().values())) / 100
    pairs = (
        (np.where(np.isnan(figures), -1, figures), run.stats),
        (scores.precision, run.eval["precision"]),
        (scores.recall, run.eval["recall"]),
    )
    off = max(float(np.abs(a - b).max()) for a, b in pairs)
    assert off <= 1e-9, f"{scores.backend} is {off} off pycocotools"
    return off


def main() -> None:
    args = parse()
    fault = fault_of_fast()
    fast = DEFINITION if fault else FAST
    content, found = draw(args)
    with tempfile.TemporaryDirectory() as folder:
        annotations, results = Path(folder, "annotations.json"), Path(folder, "results.json")
        annotations.write_text(json.dumps(content))
        write_results(results, found, truth_of(content, annotations))
        definition = by_pycocotools(annotations, results)
        off = largest_difference(from_files(annotations, results, fast), definition)
        times = alternate(
            {
                "pycocotools": lambda: by_pycocotools(annotations, results),
                "packed": lambda: packed(annotations, found, fast),
                "from files": lambda: from_files(annotations, results, fast),
            },
            args.repeats,
        )
    report(
        "scorer",
        scorer=version_of(fast) + (f" (the fast one {fault})" if fault else ""),
        definition=version_of(DEFINITION),
        size={"images": args.images, "objects": args.objects, "detections": args.detections},
        AP=round(float(definition.stats[0]), 6),
        largest_difference=off,
        seconds=times,
        times_as_fast={
            name: ratio(times, "pycocotools", name) for name in ("packed", "from files")
        },
    )


if __name__ == "__main__":
    main()
