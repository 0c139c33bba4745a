"""What feeds a training step on this machine: files to batches, beside torchvision and Detectron2.

    python benchmarks/data.py [--count 96] [--batch 16] [--repeats 5] [--quality 92]
        [--root CLASS_FOLDERS] [--json COCO.json --images FOLDER] [--output FILE]

Prints one JSON object and writes it to --output. Classification (500 x 375 pixels, the recipe of
configs/imagenet) and detection (640 x 480 to 600 / 1000), each apart: decoding, resizing, what else
is done to an image, the batch, and the whole loader with 0 and 1 data worker. Milliseconds are an
image's, of one thread, as in a data worker; files lie in the system's cache. "pixels" compares with
ours: mean and largest difference, 0..255. OpenCV's resizing is not antialiased.

Peers: ImageFolder with transforms v2, of Pillow's images and of tensors (torchvision has no
lighting noise, so theirs does less), and Detectron2's DatasetMapper, which does the same.
Pictures are drawn (benchmarks/_drawn.py) unless a data set is named; of one, --count images.
"""

import argparse
import tempfile
from pathlib import Path

import cv2
import torch
from _data_classification import classification
from _data_detection import detection
from _drawn import write_class_folders, write_coco
from _pairs import report

from resnext_det.errors import InputError, exit_cleanly

PICTURE = {"classification": (375, 500), "detection": (480, 640)}  # height, width
OBJECTS = 7  # an image


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=96, help="images of each kind")
    parser.add_argument("--batch", type=int, default=16, help="of classification")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quality", type=int, default=92, help="of the JPEGs that are drawn")
    parser.add_argument("--root", help="holds train/<class>/* and val/<class>/*")
    parser.add_argument("--json", help="annotations in COCO's format")
    parser.add_argument("--images", help="the folder of their pictures")
    parser.add_argument("--output", default="output/benchmarks/data.json")
    args = parser.parse_args()
    if bool(args.json) != bool(args.images):
        raise InputError("command line", "--json or --images is given alone", "give both")
    if min(args.batch, args.repeats) < 1:
        found = f"--batch {args.batch} --repeats {args.repeats}"
        raise InputError("command line", found, "give 1 or more of both")
    if args.count < 2 * args.batch:
        least = f"give --count {2 * args.batch} or more"
        raise InputError("command line", f"--count {args.count} is less than two batches", least)
    return args


@exit_cleanly
def main() -> None:
    args = parse()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        root, files = Path(args.root or Path(folder, "classes")), (args.json, args.images)
        if not args.root:
            write_class_folders(root, args.count, PICTURE["classification"], args.quality)
        if not args.json:
            where, size = Path(folder, "coco"), PICTURE["detection"]
            files = write_coco(where, args.count, OBJECTS, size, args.quality)
        found = {
            "classification": classification(args, root),
            "detection": detection(args, *map(Path, files)),
        }
    report("data", output=args.output, arguments=vars(args), **found)


if __name__ == "__main__":
    main()
