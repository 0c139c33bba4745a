#!/usr/bin/env python
"""Parameters and multiply-adds: of one network, in the paper's tables, and by Eq. 4.

python tools/analyze_model.py X50_32x4d                            (every stage)
python tools/analyze_model.py --table 3                            (ours beside the paper's)
python tools/analyze_model.py --regrouping                         (MODEL.REGROUP on this machine)
python tools/analyze_model.py --cardinality 64 --budget 69632      (the width d by Table 2's rule)
"""

import argparse
import json

from resnext_det import capacity
from resnext_det.command_line import Parser
from resnext_det.errors import InputError, exit_cleanly


def parse() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("name", nargs="?", help='for instance "X50_32x4d", "R200_1x64d"')
    parser.add_argument("--image-size", help="pixels, height and width (default 224; CIFAR 32)")
    parser.add_argument("--num-classes", help="of the head (default 1000; CIFAR 10)")
    parser.add_argument("--table", type=int, choices=tuple(capacity.TABLES), help="of the paper")
    parser.add_argument("--cardinality", help="C, with --budget")
    parser.add_argument("--budget", help="parameters of one template (Eq. 4), with --cardinality")
    parser.add_argument("--regrouping", action="store_true", help="what this machine measured")
    parser.add_argument("--json", action="store_true", help="the same as JSON, not rounded")
    args = parser.parse_args()
    for flag in ("image_size", "num_classes", "cardinality", "budget"):
        setattr(args, flag, whole(flag, getattr(args, flag)))
    check(args)
    return args


def whole(flag: str, text: str | None) -> int | None:
    try:
        return None if text is None else int(text)
    except ValueError as error:
        name = f"--{flag.replace('_', '-')}"
        raise InputError(
            "command line", f"{name} is {text!r:.40}", "give a whole number, 1 or more"
        ) from error


def check(args: argparse.Namespace) -> None:
    if args.name is None and not (args.image_size is None and args.num_classes is None):
        raise InputError(
            "command line",
            "--image-size or --num-classes is given without a network",
            'name one, for instance "X50_32x4d"',
        )
    if (args.cardinality is None) != (args.budget is None):
        raise InputError(
            "command line", "of --cardinality and --budget one is missing", "give both"
        )
    if args.name is args.table is args.budget is None and not args.regrouping:
        raise InputError("command line", "nothing is asked for", "name a network, or --table")


@exit_cleanly
def main() -> None:
    args = parse()
    tables = [capacity.regrouping_table()] * args.regrouping
    if args.name is not None:
        tables.append(capacity.model_table(args.name, args.image_size, args.num_classes))
    if args.table is not None:
        tables += capacity.paper_table(args.table)
    if args.budget is not None:
        tables.append(capacity.width_table(args.cardinality, args.budget))
    if args.json:
        print(json.dumps([table.as_dict() for table in tables], indent=2))
    else:
        print("\n\n".join(table.text() for table in tables))


if __name__ == "__main__":
    main()
