"""How cost grows: with pixels, RoIs, the batch, annotations, images and boxes an image.

    python benchmarks/scaling.py [--config configs/custom/small.yaml] [--repeats 3] [--quick]
        [--output FILE]

Prints one JSON object and writes it to --output: for each curve the medians by size, the slope of
log(time) by log(size) (1: linear) over all sizes and over the last two, where fixed costs weigh
least, and why it is so. "above_linear" names the curves of ours whose last slope is over 1.25.
Everything is drawn from a seed, and the networks have random weights. Peers, in turn with ours:
"Detectron2's layers" are the same networks without what docs/speed.md lists, in fp32; Detectron2's
load_coco_json and its loader of proposals; pycocotools. ``--quick``: two small sizes each, to see
that it runs; its slopes say nothing.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

from _curves import Curve, measured
from _pairs import report
from _scaling_files import file_curves
from _scaling_networks import network_curves

from resnext_det.errors import exit_cleanly

CONFIG = Path(__file__).parents[1] / "configs/custom/small.yaml"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default=str(CONFIG), help="of a detector of two networks")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--output", default="output/benchmarks/scaling.json")
    return parser.parse_args()


def curves(args: argparse.Namespace, folder: Path) -> Iterator[Curve]:
    yield from network_curves(args)
    yield from file_curves(args, folder)


@exit_cleanly
def main() -> None:
    args, found = parse(), {}
    with tempfile.TemporaryDirectory() as folder:
        for curve in curves(args, Path(folder)):
            found[f"{curve.what}, by {curve.by}"] = measured(curve, args.repeats)
    report(
        "scaling",
        output=args.output,
        arguments=vars(args),
        above_linear=[name for name, of in found.items() if of["is above linear"]],
        curves=found,
    )


if __name__ == "__main__":
    main()
