#!/usr/bin/env python
"""Train and score Faster R-CNN as two networks that share nothing.

python tools/train_net.py --config-file configs/faster_rcnn_X50_32x4d.yaml --num-gpus 8
python tools/train_net.py --eval-only MODEL.WEIGHTS model_final.safetensors   (its own config;
writes to eval/ beside the weights, or eval_2/ .. for other settings, unless OUTPUT_DIR is named)
"""

import argparse

from resnext_det.command_line import Parser
from resnext_det.config import load_cfg
from resnext_det.detection import pipeline, stage_files
from resnext_det.detection.data_flags import add_data_flags, use_own_data
from resnext_det.engine.launch import add_launch_arguments, launch
from resnext_det.engine.logs import log_to_console
from resnext_det.engine.run import start_run
from resnext_det.errors import InputError, exit_cleanly


def parse() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--config-file", default="", help="YAML, see configs/")
    parser.add_argument("--resume", action="store_true", help="go on with the run in OUTPUT_DIR")
    parser.add_argument("--stage", choices=stage_files.STAGES, help="run this stage only")
    parser.add_argument("--eval-only", action="store_true", help="score MODEL.WEIGHTS")
    add_data_flags(parser)
    add_launch_arguments(parser)
    parser.add_overrides()
    return parser.parse_with_overrides()


def training_cfg(args: argparse.Namespace):
    if not args.config_file:
        raise InputError(
            "command line",
            "--config-file is missing",
            "add --config-file configs/custom/small.yaml, for own data on a CPU, or another of "
            "configs/",
        )
    return load_cfg(args.config_file, args.opts)


def evaluation_cfg(args: argparse.Namespace):
    given = load_cfg(args.config_file, args.opts)
    own = given if args.config_file else None
    return pipeline.evaluation_cfg(own, given.MODEL.WEIGHTS, args.opts)


def run(args: argparse.Namespace) -> None:
    log_to_console()
    cfg = evaluation_cfg(args) if args.eval_only else training_cfg(args)
    use_own_data(cfg, args, args.opts, args.eval_only)
    if args.eval_only and "OUTPUT_DIR" not in args.opts[::2]:
        pipeline.use_own_folder(cfg, cfg.MODEL.WEIGHTS)
    old = args.resume or args.eval_only or args.stage
    start_run(cfg, new=not old, evaluates=args.eval_only)
    if args.eval_only:
        pipeline.evaluate_only(cfg, cfg.MODEL.WEIGHTS)
    else:
        pipeline.run(cfg, args.resume, args.stage)


@exit_cleanly
def main() -> None:
    args = parse()
    launch(run, args)


if __name__ == "__main__":
    main()
