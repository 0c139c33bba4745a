#!/usr/bin/env python
"""Write an RPN's proposals for any data set and print their average recall; or convert a file.

python tools/dump_proposals.py MODEL.WEIGHTS output/demo/rpn/model_final.safetensors \\
    --json val.json --images images/ --output val.safetensors
python tools/dump_proposals.py --from proposals.pkl --output proposals.safetensors

MODEL.WEIGHTS is an RPN's file or a joined detector; without --config-file its own config is used.
How many boxes are kept: PROPOSALS.PRE_NMS_TOPK and POST_NMS_TOPK. The files: docs/proposals.md.
"""

import argparse

from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from resnext_det.command_line import Parser
from resnext_det.config import load_cfg, override
from resnext_det.detection import proposal_exchange as exchange
from resnext_det.detection import proposals
from resnext_det.detection.evaluation import recall_lines
from resnext_det.engine.launch import add_launch_arguments, launch
from resnext_det.errors import exit_cleanly


def parse() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--output", required=True, help="the file to write, which must not exist")
    parser.add_argument("--format", choices=exchange.FORMATS, default=exchange.FORMATS[0])
    parser.add_argument("--config-file", default="", help="YAML, see configs/")
    parser.add_argument("--dataset", nargs="+", help="registered names (default: DATASETS.TRAIN)")
    parser.add_argument("--json", help="or COCO-format annotations, with --images")
    parser.add_argument("--images", help="image folder, with --json")
    parser.add_argument("--from", dest="source", help="convert this proposal file; no RPN is used")
    add_launch_arguments(parser)
    parser.add_overrides()
    return parser.parse_with_overrides()


def dump(args: argparse.Namespace) -> None:
    setup_logger(distributed_rank=comm.get_rank(), name="resnext_det")
    cfg = load_cfg(args.config_file, args.opts)
    weights = cfg.MODEL.WEIGHTS
    cfg = proposals.rpn_config(weights, cfg if args.config_file else None)
    override(cfg, args.opts)
    proposals.choose_sets(cfg, args.dataset, args.json, args.images)
    recalls = proposals.dump_from_weights(cfg, weights, args.output, args.format)
    if comm.is_main_process():
        print(f"wrote: {args.output} ({args.format})")
        for name, recall in recalls.items():
            print("\n".join(f"{name}: {line}" for line in recall_lines(recall)))


@exit_cleanly
def main() -> None:
    args = parse()
    if args.source:
        images = exchange.convert(args.source, args.output, args.format)
        print(f"wrote: {args.output} ({args.format}), {images} images")
    else:
        launch(dump, args)


if __name__ == "__main__":
    main()
