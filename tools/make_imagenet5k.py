#!/usr/bin/env python
"""Write ImageNet-5K's image lists (paper, Sec. 5.2); no image is copied.

python tools/make_imagenet5k.py /data/imagenet22k /data/imagenet
"""

import argparse
from pathlib import Path

from resnext_det.command_line import Parser
from resnext_det.data import imagenet5k
from resnext_det.errors import InputError, exit_cleanly


def parse() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument(
        "imagenet22k", help="folder with <wnid>/<image> or train/<wnid>/<image>: all classes"
    )
    parser.add_argument(
        "imagenet1k",
        help="folder with val/<wnid>/<image>: ILSVRC's classes and their validation images; or a "
        "text file of its wnids, one a line (then no val.txt is written)",
    )
    parser.add_argument(
        "--output", default="datasets/imagenet5k", help="folder for the lists (default %(default)s)"
    )
    parser.add_argument("--classes", type=int, default=5000, help="in all (default %(default)s)")
    parser.add_argument(
        "--class-list", help="text file of all wnids, one a line, instead of counting images"
    )
    parser.add_argument("--threads", type=int, default=16, help="folders read at once (default 16)")
    args = parser.parse_args()
    for name, value in (("--classes", args.classes), ("--threads", args.threads)):
        if value < 1:
            raise InputError("command line", f"{name} is {value}", "give 1 or more")
    return args


def keys(args: argparse.Namespace, made: imagenet5k.Summary) -> list[str]:
    """The overrides that name the lists to tools/pretrain_imagenet.py."""
    output = Path(args.output)
    given = ["DATA.ROOT", args.imagenet22k, "DATA.TRAIN_LIST", str(output / "train.txt")]
    if made.val_images is not None:
        given += ["DATA.VAL_ROOT", args.imagenet1k, "DATA.VAL_LIST", str(output / "val.txt")]
        given += ["DATA.EVAL_CLASSES", str(made.ilsvrc)]
    return given


@exit_cleanly
def main() -> None:
    args = parse()
    made = imagenet5k.make(
        args.imagenet22k,
        args.imagenet1k,
        args.output,
        total=args.classes,
        class_list=args.class_list,
        threads=args.threads,
    )
    print("\n".join(f"{args.output}/{line}" for line in made.lines()))
    print("for training:", " ".join(keys(args, made)))


if __name__ == "__main__":
    main()
