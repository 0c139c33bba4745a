#!/usr/bin/env python
"""Look through a COCO-format data set before training: every fault, balance, sizes, anchors.

python tools/check_data.py train.json images/
python tools/check_data.py train.json images/ --val-json val.json --val-images images/ --decode
Exit status: 0 with notices only, 2 where something would stop training (docs/data.md).
"""

import argparse
import sys
from pathlib import Path

from resnext_det.command_line import Parser
from resnext_det.config import load_cfg
from resnext_det.detection import data_report, data_text
from resnext_det.detection.data_flags import given_pair
from resnext_det.engine.run import write_json
from resnext_det.errors import exit_cleanly

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "custom" / "small.yaml"


def parse() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("annotations", metavar="JSON", help="COCO-format annotations")
    parser.add_argument("images", metavar="IMAGES", help="image folder")
    parser.add_argument("--val-json", help="a second set, compared with the first")
    parser.add_argument("--val-images", help="its image folder")
    parser.add_argument("--config-file", default=str(CONFIG), help="default: %(default)s")
    parser.add_argument("--decode", action="store_true", help="read all pixels, not only headers")
    parser.add_argument("--workers", type=int, default=0, help="0: by the number of cores")
    parser.add_argument("--json", dest="report", metavar="OUT", help="write the report as JSON")
    parser.add_argument(
        "--pictures",
        metavar="FOLDER",
        default="output/check_data",
        help='for the sheets, default %(default)s; "" draws none',
    )
    parser.add_overrides()
    return parser.parse_with_overrides()


def sets_of(args: argparse.Namespace) -> list[tuple[str, str]]:
    """(JSON, image folder) of each set."""
    second = given_pair(args, "val")
    return [(args.annotations, args.images), *([second] if second else [])]


@exit_cleanly
def main() -> None:
    args = parse()
    cfg = load_cfg(args.config_file, args.opts)
    reports = data_report.report_on(
        sets_of(args), cfg, decode=args.decode, workers=args.workers, pictures=args.pictures
    )
    print("\n\n".join(map(data_text.as_text, reports)))
    if args.report:
        write_json(args.report, reports)
    sys.exit(2 if any(map(data_report.stops, reports)) else 0)


if __name__ == "__main__":
    main()
