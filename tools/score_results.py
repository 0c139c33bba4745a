#!/usr/bin/env python
"""COCO's figures of a results file, whatever program wrote it.

python tools/score_results.py coco_instances_results.json val.json
python tools/score_results.py results.json val.json --classes cat dog --max-detections 300
"""

import argparse

from resnext_det.command_line import Parser
from resnext_det.data.coco import read_coco
from resnext_det.detection import scorer_reasons
from resnext_det.detection.scorer import Scores, score
from resnext_det.detection.scorer_arrays import Truth, truth_of
from resnext_det.detection.scorer_backends import version_of
from resnext_det.detection.scorer_results import read_results
from resnext_det.engine.logs import log_to_console
from resnext_det.engine.run import write_json
from resnext_det.errors import exit_cleanly


def parse() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("results", metavar="RESULTS", help="COCO results: a list of detections")
    parser.add_argument("annotations", metavar="JSON", help="COCO-format annotations")
    parser.add_argument("--images", help="image folder, where JSON states no sizes")
    parser.add_argument("--classes", nargs="+", default=(), help="names; others are left out")
    parser.add_argument(
        "--max-detections", type=int, default=100, help="of an image and class (default 100)"
    )
    parser.add_argument("--scorer", default="auto", help="auto, pycocotools or hotcoco")
    parser.add_argument("--json", metavar="OUT", help="write the figures")
    return parser.parse_args()


def tell(scores: Scores, truth: Truth, detections: int, classes: tuple[str, ...]) -> dict:
    """Print the figures; {"AP": .., "AP-<class>": ..}, percent."""
    by_class = dict(zip(truth.class_names, scores.class_ap(), strict=True))
    by_class = {name: ap for name, ap in by_class.items() if not classes or name in classes}
    figures = scores.figures()
    print(
        f"{detections} detections in {len(truth.image_ids)} images, at most {scores.max_dets} of "
        f"an image and class, by {version_of(scores.backend)}"
    )
    print(scorer_reasons.figure_table(figures), scorer_reasons.class_table(by_class), sep="\n")
    return {**figures, **{f"AP-{name}": ap for name, ap in by_class.items()}}


@exit_cleanly
def main() -> None:
    args = parse()
    log_to_console()
    content = read_coco(args.annotations, image_root=args.images)
    truth = truth_of(content, args.annotations)
    found = read_results(args.results, truth)
    scores = score(
        truth,
        found,
        max_dets=args.max_detections,
        classes=args.classes,
        scorer=args.scorer,
    )
    figures = tell(scores, truth, len(found), args.classes)
    if args.json:
        write_json(args.json, {"bbox": figures})


if __name__ == "__main__":
    main()
