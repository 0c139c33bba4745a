#!/usr/bin/env python
"""The whole path on the embedded data set, on the CPU, in minutes: ``make demo``.

Draws the data set, trains the classifier, trains the detector's two networks from its
weights, scores the detector, and leaves pictures. Run again, it goes on where it stopped.
"""

import logging
from pathlib import Path

from resnext_det import plots
from resnext_det.classification import trainer
from resnext_det.command_line import Parser
from resnext_det.config import load_cfg
from resnext_det.data.demo import write_demo
from resnext_det.detection import pipeline
from resnext_det.engine.folders import make_folder
from resnext_det.engine.lock import lock_folder
from resnext_det.engine.run import start_run
from resnext_det.errors import Interrupted, exit_cleanly

CONFIGS = Path(__file__).parents[1] / "configs" / "demo"
DATA = Path("output/demo/data")
logger = logging.getLogger("resnext_det.demo")


def classify() -> None:
    cfg = load_cfg(CONFIGS / "classification.yaml")
    start_run(cfg, new=False)
    if Path(cfg.OUTPUT_DIR, "results.json").exists():
        logger.info("the classification step is finished: %s", cfg.OUTPUT_DIR)
        return
    trainer.train(cfg, resume=True)


def detect(random_weights: bool) -> Path:
    opts = ["MODEL.WEIGHTS", "", "OUTPUT_DIR", "output/demo_random"] if random_weights else []
    cfg = load_cfg(CONFIGS / "detection.yaml", opts)
    start_run(cfg, new=False)
    pipeline.run(cfg, resume=True)
    return Path(cfg.OUTPUT_DIR)


@exit_cleanly
def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument(
        "--random-weights",
        action="store_true",
        help="train the detector without the classification weights, to compare",
    )
    args = parser.parse_args()
    lock_folder(make_folder(DATA.parent), "start it elsewhere")  # what it draws is both demos'
    write_demo(DATA)
    try:
        if not args.random_weights:
            classify()
        folder = detect(args.random_weights)
    except Interrupted as stop:
        raise Interrupted(f"{str(stop).split(';')[0]}; the same command goes on") from stop
    if not args.random_weights:
        curves = {
            "classification": folder / "classification" / "metrics.json",
            "RPN": folder / "rpn" / "metrics.json",
            "Fast R-CNN": folder / "fast_rcnn" / "metrics.json",
        }
        plots.training_curves(curves, folder / "pictures" / "curves.png")
    logger.info("AP, AP50 and the rest: %s", folder / "results.json")
    logger.info("pictures: %s", ", ".join(map(str, sorted((folder / "pictures").glob("*.png")))))


if __name__ == "__main__":
    main()
