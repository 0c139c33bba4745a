#!/usr/bin/env python
"""Several runs of a recipe by one command, resumable, with their table and figure.

python tools/reproduce.py cifar-cardinality DATA.ROOT cifar10_subset.npz
python tools/reproduce.py seeds --config-file configs/cifar/X29_8x64d_cifar10.yaml --seeds 10
"""

import argparse
from pathlib import Path

from resnext_det.classification import cardinality, studies
from resnext_det.command_line import Parser
from resnext_det.config import load_cfg
from resnext_det.data import sets
from resnext_det.engine.run import start_run, take_folder
from resnext_det.errors import InputError, exit_cleanly

ROOT = Path(__file__).parents[1]
TOOL = ROOT / "tools" / "pretrain_imagenet.py"
STUDY = ROOT / "configs" / "cifar" / "cardinality.yaml"


def parse() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("what", choices=("cifar-cardinality", "seeds"))
    parser.add_argument("--config-file", help="the recipe (seeds: required)")
    parser.add_argument("--seeds", type=int, default=3, help="runs a setting (default 3)")
    parser.add_argument(
        "--jobs",
        type=int,
        default=None,
        help="runs beside each other (default: a core each on a CPU, 1 on a GPU)",
    )
    parser.add_overrides("KEY VALUE overrides for every run")
    args = parser.parse_with_overrides()
    for name, value in (("--seeds", args.seeds), ("--jobs", args.jobs)):
        if value is not None and value < 1:
            raise InputError("command line", f"{name} is {value}", "give 1 or more")
    if args.what == "seeds" and not args.config_file:
        raise InputError("command line", "seeds has no recipe", "add --config-file configs/...")
    if "SEED" in args.opts[::2]:
        raise InputError("command line", "SEED is given", "give --seeds: runs have SEED 0, 1, ...")
    return args


@exit_cleanly
def main() -> None:
    args = parse()
    config_file = Path(args.config_file or STUDY)
    cfg = load_cfg(config_file, args.opts)  # a fault shows here, not in twelve logs
    start_run(cfg, new=False)
    jobs = args.jobs or (studies.cores() if cfg.MODEL.DEVICE == "cpu" else 1)
    if args.what == "seeds":
        sets.open_both(cfg)  # nor a fault of the data
    take_folder(cfg.OUTPUT_DIR)
    if args.what == "cifar-cardinality":
        cardinality.study(TOOL, config_file, cfg, args.seeds, args.opts, jobs)
        return
    setting = studies.Setting(config_file.stem, config_file)
    rows = studies.run_all(TOOL, [setting], args.seeds, Path(cfg.OUTPUT_DIR), args.opts, jobs)
    studies.write_rows(rows, Path(cfg.OUTPUT_DIR) / "study.json")
    print(studies.line(rows[0]))


if __name__ == "__main__":
    main()
