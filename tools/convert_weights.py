#!/usr/bin/env python
"""Turn ResNet and ResNeXt weights into this package's file, with a record, or back.

python tools/convert_weights.py resnext50_32x4d.pth x50.safetensors
python tools/convert_weights.py x50.safetensors x50.pth --to torchvision

Reads torchvision, timm, Detectron2, Detectron (Caffe2) and Torch7 files, told from their contents.
The last four options state facts that such a file does not carry, and overrule what is known of
its family.
"""

import argparse

from resnext_det.command_line import Parser
from resnext_det.errors import exit_cleanly
from resnext_det.models import Architecture
from resnext_det.weights.export import TARGETS, check_target, export_weights
from resnext_det.weights.facts import Facts
from resnext_det.weights.families import FAMILIES
from resnext_det.weights.files import read_source
from resnext_det.weights.reading import Source


def parse() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("source", metavar="IN", help="the file to read")
    parser.add_argument("target", metavar="OUT", help="the file to write, which must not exist")
    parser.add_argument("--to", choices=TARGETS, default="resnext_det", help="OUT's layout")
    parser.add_argument("--pixel-format", metavar="RGB|BGR", help="order of the colours")
    for name in ("mean", "std"):
        parser.add_argument(
            f"--pixel-{name}", metavar=("A", "B", "C"), nargs=3, type=float, help="0..255 scale"
        )
    parser.add_argument("--stride-in-1x1", choices=("true", "false"), help="else in the 3x3")
    return parser.parse_args()


def facts_of(args: argparse.Namespace) -> Facts:
    return Facts(
        pixel_format=args.pixel_format,
        pixel_mean=args.pixel_mean and tuple(args.pixel_mean),
        pixel_std=args.pixel_std and tuple(args.pixel_std),
        stride_in_1x1=args.stride_in_1x1 and args.stride_in_1x1 == "true",
    )


def describe(source: Source) -> None:
    record, used = source.record, source.total - len(source.dropped)
    print(f"family: {FAMILIES.get(record.family, record.family)}")
    print(f"architecture: {Architecture(**record.architecture).name}")
    print(f"pixels: {record.pixel_format}, mean {record.pixel_mean}, std {record.pixel_std}")
    print(f"norms: {'fused to scale and shift' if record.fused_norm else 'with statistics'}")
    print(f"entries used: {used} of {source.total}")
    for line in source.left_out():
        print(f"not used: {line}")


@exit_cleanly
def main() -> None:
    args = parse()
    given = facts_of(args)
    check_target(args.target, args.source, args.to)
    source = read_source(args.source, given)
    describe(source)
    notices = export_weights(args.target, source, args.to)
    for notice in notices:
        print(f"note: {notice}")
    print(f"wrote: {args.target} ({args.to})")


if __name__ == "__main__":
    main()
