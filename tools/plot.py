#!/usr/bin/env python
"""The paper's figures from runs of your own: training curves, and error against model size.

python tools/plot.py curves output/imagenet_R50_1x64d output/imagenet_X50_32x4d --output fig5.png
python tools/plot.py params output/cifar_*/study.json --output fig7.png
"""

import argparse
from pathlib import Path

from resnext_det import plots
from resnext_det.command_line import Parser
from resnext_det.errors import InputError, exit_cleanly
from resnext_det.reproduction.curves import draw_curves
from resnext_det.reproduction.sizes import draw_params


def parse() -> argparse.Namespace:
    parser = Parser(__doc__)
    commands = parser.add_subparsers(dest="what", required=True)
    curves = commands.add_parser("curves", help="errors of several runs while they trained")
    curves.add_argument("runs", nargs="+", help="OUTPUT_DIRs of tools/pretrain_imagenet.py")
    curves.add_argument("--x", choices=("epochs", "iterations"), default="epochs")
    curves.add_argument(
        "--error", default="top1_error", help="top5_error; top1_error_1000way (ImageNet-5K, Fig. 6)"
    )
    curves.add_argument("--ylim", nargs=2, type=float, help="lowest and highest error shown, %%")
    params = commands.add_parser("params", help="error against parameters, with standard errors")
    params.add_argument("studies", nargs="+", help="study.json files of tools/reproduce.py")
    params.add_argument(
        "--num-classes", type=int, help="of their data (default: as the first run logged, or 10)"
    )
    params.add_argument("--without-paper", action="store_true", help="no points of Table 7")
    for command in (curves, params):
        command.add_argument(
            "--output", required=True, type=Path, help="picture, for instance .png"
        )
    return parser.parse_args()


def prepare_output(path: Path) -> None:
    """Raises InputError for a kind of file that is not drawn, or a folder that cannot be made."""
    kinds = plots.Figure().canvas.get_supported_filetypes()
    if path.suffix[1:].lower() not in kinds:
        raise InputError(path, "is no kind of picture", f"name it .{', .'.join(sorted(kinds))}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            path.parent, f"cannot be made ({error.strerror})", "give another --output"
        ) from error


def draw(args: argparse.Namespace) -> None:
    if args.what == "curves":
        draw_curves(args.runs, args.output, x_axis=args.x, error=args.error, ylim=args.ylim)
    else:
        classes, bare = args.num_classes, args.without_paper
        draw_params(args.studies, args.output, num_classes=classes, without_paper=bare)


@exit_cleanly
def main() -> None:
    args = parse()
    prepare_output(args.output)
    try:
        draw(args)
    except OSError as error:
        raise InputError(
            args.output, f"cannot be written ({error.strerror})", "give another --output"
        ) from error
    print(args.output)


if __name__ == "__main__":
    main()
