#!/usr/bin/env python
"""Write the paper's COCO splits minival and valminusminival from the annotation files of 2017.

python tools/make_coco_splits.py datasets/coco/annotations

The folder holds instances_train2017.json and instances_val2017.json, and, since these do not say
which images were in val2014, instances_val2014.json or instances_train2014.json as well. Files
that are there are checked, never written over. See docs/splits.md.
"""

import argparse

from resnext_det.command_line import Parser
from resnext_det.data.splits import make_splits
from resnext_det.errors import exit_cleanly


def parse() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("annotations", metavar="ANNOTATIONS", help="COCO's annotations/ folder")
    parser.add_argument("--to", metavar="DIR", help="folder for the two files (default: the same)")
    return parser.parse_args()


@exit_cleanly
def main() -> None:
    args = parse()
    made = make_splits(args.annotations, args.to)
    for line in (*made.files, *made.checks, *(f"note: {notice}" for notice in made.notices)):
        print(line)


if __name__ == "__main__":
    main()
