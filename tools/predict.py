#!/usr/bin/env python
"""Detections of a trained detector on images, folders or a video: pictures and COCO-format JSON.

python tools/predict.py MODEL.WEIGHTS output/demo/model_final.safetensors \\
    --input pictures/ one.jpg --output found
python tools/predict.py MODEL.WEIGHTS W.safetensors --json val.json --images images/ --output found

Only the weights file is needed: config and class names are in it. docs/prediction.md says what is
written. Further KEY VALUE pairs change the stored config, for instance MODEL.DEVICE cpu.
"""

import argparse
from pathlib import Path

from detectron2.utils.logger import setup_logger

from resnext_det.command_line import Parser
from resnext_det.config import load_cfg
from resnext_det.detection import predict_files as files
from resnext_det.detection import predict_inputs
from resnext_det.detection.predict import Predictor
from resnext_det.errors import InputError, exit_cleanly


def parse() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--input", nargs="+", default=[], help="images, folders, or one video")
    parser.add_argument("--json", help="or COCO-format annotations, with --images: their own ids")
    parser.add_argument("--images", help="image folder, with --json")
    parser.add_argument("--output", required=True, help="folder to write, empty or not there yet")
    parser.add_argument("--score", type=float, default=0.5, help="drawn from this score on")
    parser.add_argument("--batch-size", type=int, default=4, help="images at once, at most")
    parser.add_argument("--json-only", action="store_true", help="write no pictures")
    parser.add_argument("--skip-unreadable", action="store_true", help="leave bad images out")
    parser.add_overrides()
    return parser.parse_with_overrides()


def inputs_of(args: argparse.Namespace) -> list[predict_inputs.Entry] | Path:
    """The images, or the video."""
    if bool(args.json) != bool(args.images) or bool(args.json) == bool(args.input):
        mend = "give --input, or --json and --images"
        raise InputError("command line", "no images are named, or two kinds", mend)
    if args.json:
        skip = {"skip_unreadable": args.skip_unreadable}
        return predict_inputs.entries_of_coco(args.json, args.images, **skip)
    return predict_inputs.video_of(args.input) or predict_inputs.entries_of(args.input)


def predict(args: argparse.Namespace, weights: str, folder: Path) -> tuple:
    """The results, and what is the matter with each image that is left out."""
    inputs = inputs_of(args)
    predictor = Predictor(weights, batch_size=args.batch_size, opts=args.opts)
    shown = {"least": args.score, "pictures": not args.json_only}
    if isinstance(inputs, Path):
        return files.predict_video(predictor, inputs, folder, **shown), []
    skip = {"skip_unreadable": args.skip_unreadable}
    return files.predict_images(predictor, inputs, folder, **skip, **shown)


@exit_cleanly
def main() -> None:
    args = parse()
    weights = load_cfg("", args.opts).MODEL.WEIGHTS
    if not weights:
        raise InputError("MODEL.WEIGHTS", "is empty", "add MODEL.WEIGHTS model_final.safetensors")
    if not 0 <= args.score <= 1:
        raise InputError("command line", f"--score is {args.score:g}", "give one of 0..1")
    setup_logger(name="resnext_det")
    with files.output_folder(args.output) as folder:
        results, skipped = predict(args, weights, folder)
    if skipped:
        print(f"left out: {len(skipped)} images, each is named above with the reason")
    print(f"wrote: {folder} ({len(results.images)} images, {len(results.results)} detections)")


if __name__ == "__main__":
    main()
