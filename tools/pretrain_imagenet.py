#!/usr/bin/env python
"""Train (or evaluate) a ResNeXt classifier on an ImageNet-style folder.

python tools/pretrain_imagenet.py --config-file configs/imagenet/X50_32x4d.yaml \\
    DATA.ROOT /data/imagenet
python tools/pretrain_imagenet.py --eval-only MODEL.WEIGHTS W.safetensors DATA.ROOT /data/imagenet

MODEL.WEIGHTS are what a training begins with (the head starts fresh where the classes differ).
An evaluation without --config-file takes the settings that its weights were trained with (those of
other programs: the default's). It is in fp32 unless MODEL.PRECISION is given here, and goes to a
folder beside the weights unless OUTPUT_DIR is: eval_single224, eval_ten_crop224 (DATA.TEST_PROTOCOL
and CROP_SIZE) or eval_dense; with other settings than the evaluation there, eval_single224_2 and so
on. An OUTPUT_DIR that is given loses an earlier evaluation; a training run's is refused.
"""

import argparse
from pathlib import Path

from resnext_det.classification import evaluation, trainer
from resnext_det.command_line import Parser
from resnext_det.config import load_cfg
from resnext_det.engine.launch import add_launch_arguments, launch
from resnext_det.engine.logs import log_to_console
from resnext_det.engine.run import start_run
from resnext_det.errors import exit_cleanly

PAPER_RECIPE = Path(__file__).parents[1] / "configs" / "imagenet" / "X50_32x4d.yaml"


def parse() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--config-file", help="YAML (default: the paper's X-50 recipe)")
    resume = "go on with the run in OUTPUT_DIR; MODEL.WEIGHTS are not read then"
    parser.add_argument("--resume", action="store_true", help=resume)
    parser.add_argument("--eval-only", action="store_true", help="score MODEL.WEIGHTS")
    add_launch_arguments(parser)
    parser.add_overrides()
    return parser.parse_with_overrides()


def run(args: argparse.Namespace) -> None:
    log_to_console()
    if args.eval_only:
        cfg = evaluation.evaluation_cfg(args.config_file, args.opts, PAPER_RECIPE)
        start_run(cfg, new=False, evaluates=True)
        evaluation.evaluate_only(cfg)
        return
    cfg = load_cfg(args.config_file or PAPER_RECIPE, args.opts)
    trainer.check_start(cfg, args.resume)
    start_run(cfg, new=not args.resume)
    trainer.train(cfg, args.resume)


@exit_cleanly
def main() -> None:
    args = parse()
    launch(run, args)


if __name__ == "__main__":
    main()
