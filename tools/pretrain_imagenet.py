#!/usr/bin/env python
"""Train (or evaluate) a ResNeXt classifier on an ImageNet-style folder.

python tools/pretrain_imagenet.py --config-file configs/imagenet/X50_32x4d.yaml \\
    DATA.ROOT /data/imagenet
"""

import argparse
from pathlib import Path

from resnext_det.classification import trainer
from resnext_det.config import load_cfg
from resnext_det.engine.launch import add_launch_arguments, launch
from resnext_det.engine.run import start_run
from resnext_det.errors import exit_cleanly

PAPER_RECIPE = Path(__file__).parents[1] / "configs" / "imagenet" / "X50_32x4d.yaml"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config-file", default=str(PAPER_RECIPE), help="YAML (default: the paper's X-50 recipe)"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in OUTPUT_DIR")
    parser.add_argument("--eval-only", action="store_true", help="score MODEL.WEIGHTS")
    add_launch_arguments(parser)
    parser.add_argument("opts", nargs="*", help="KEY VALUE overrides")
    return parser.parse_intermixed_args()  # flags and overrides in any order


def run(args: argparse.Namespace) -> None:
    cfg = load_cfg(args.config_file, args.opts)
    if args.eval_only and "OUTPUT_DIR" not in args.opts:  # not into the run that trained it
        cfg.OUTPUT_DIR = str(Path(cfg.MODEL.WEIGHTS).parent / "eval")
    start_run(cfg, new=not (args.resume or args.eval_only))
    if args.eval_only:
        trainer.evaluate_only(cfg)
    else:
        trainer.train(cfg, args.resume)


@exit_cleanly
def main() -> None:
    args = parse()
    launch(run, args)


if __name__ == "__main__":
    main()
