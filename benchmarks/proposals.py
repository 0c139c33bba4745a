"""The proposal file beside Detectron2's pickle: writing, opening, reading, memory, size.

    python benchmarks/proposals.py [--images 2000] [--boxes 2000] [--repeats 5]
        [--file mine.safetensors] [--folder TEMP] [--output FILE]

Prints one JSON object and writes it to --output. "ours" is ProposalWriter and ProposalFile;
"Detectron2" is pickle.dump of the dict that its loader reads, and that loader,
load_proposals_into_dataset, which has all images in memory when it returns. Boxes are random, or
those of --file. That both give equal boxes and scores is asserted first. Files lie in the system's
cache, nothing is synced to a disk. Megabytes are those of a process of its own that opened the file
and read every image once: "own" memory, "resident" with the pages of the file that the system keeps
in its cache anyway, and the highest resident ("peak"), each less what it was before.

At COCO's size, in data workers: benchmarks/proposal_memory.py.
"""

import argparse
import functools
import multiprocessing
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _drawn import draw_proposals
from _pairs import alternate, milliseconds, ratio, report
from _proposal_files import NAMES, WRITERS, Images, look_through, opener

from resnext_det.data.proposals import ProposalFile
from resnext_det.errors import InputError, exit_cleanly

STATUS = Path("/proc/self/status")
FIELDS = {"own": "RssAnon", "resident": "VmRSS", "peak": "VmHWM"}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=2000, help="number of images")
    parser.add_argument("--boxes", type=int, default=2000, help="an image")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--file", help="a proposal file of this toolkit's")
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="where files are made")
    parser.add_argument("--output", default="output/benchmarks/proposals.json")
    args = parser.parse_args()
    if not STATUS.exists():
        raise InputError(STATUS, "does not exist", "run this on Linux")
    if min(args.images, args.boxes, args.repeats) < 1:
        found = f"--images {args.images} --boxes {args.boxes} --repeats {args.repeats}"
        raise InputError("command line", found, "give 1 or more of each")
    if args.file:
        ProposalFile(args.file)  # what is wrong with it is told here, not in another process
    return args


def contents(args: argparse.Namespace) -> Images:
    """In memory, so that making them is not timed."""
    if not args.file:
        return [(number, *draw_proposals(number, args.boxes)) for number in range(args.images)]
    stored = ProposalFile(args.file)
    return [(image_id, *stored[image_id]) for image_id in stored.image_ids[: args.images]]


def seconds(folder: Path, images: Images, ids: list[int], repeats: int) -> dict:
    """Of writing and opening all, and of opening and reading the first image."""
    paths = {name: folder / file for name, file in NAMES.items()}
    opens = {name: opener(name, path, ids) for name, path in paths.items()}
    runs = {
        "write": {
            name: functools.partial(write, paths[name], images) for name, write in WRITERS.items()
        },
        "open": opens,
        "open and read one image": {
            name: lambda start=start: look_through(start(), ids[:1])
            for name, start in opens.items()
        },
    }
    return {what: beside(alternate(pair, repeats)) for what, pair in runs.items()}


def beside(times: dict) -> dict:
    return {"seconds": times, "Detectron2 / ours": ratio(times, "Detectron2", "ours")}


def random_access(folder: Path, ids: list[int], repeats: int) -> dict:
    """Milliseconds an image of an open file, in another order than the file's."""
    order = np.random.default_rng(4).permutation(ids).tolist()
    reads = {name: opener(name, folder / file, ids)() for name, file in NAMES.items()}
    times = alternate(
        {name: functools.partial(look_through, read, order) for name, read in reads.items()},
        repeats,
    )
    found = {"ms an image": milliseconds(times, len(ids))}
    return {**found, "Detectron2 / ours": ratio(times, "Detectron2", "ours")}


def check_equal(folder: Path, ids: list[int]) -> None:
    ours, theirs = (opener(name, folder / file, ids)() for name, file in NAMES.items())
    for image_id in ids:
        for a, b in zip(ours(image_id), theirs(image_id), strict=True):
            assert np.array_equal(a, b), f"image {image_id} differs between the two files"


def memory() -> dict[str, float]:
    """Megabytes of this process."""
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return {name: int(lines[field].split()[0]) / 1e3 for name, field in FIELDS.items()}


def growth(name: str, path: Path, ids: list[int]) -> dict[str, float]:
    """What opening the file and reading every image adds to this process's memory."""
    before = memory()
    read = opener(name, path, ids)()
    look_through(read, ids)
    after = memory()
    return {key: round(after[key] - before[key], 1) for key in FIELDS}


def write_both(folder: Path, args: argparse.Namespace) -> list[int]:
    """The image ids."""
    images = contents(args)
    for name, write in WRITERS.items():
        write(folder / NAMES[name], images)
    return [image_id for image_id, *_ in images]


def in_own_process(work: Callable, *args: object) -> Any:
    """``work``'s result, from a process that ends with it and gives its memory back."""
    context = multiprocessing.get_context("fork")  # without importing everything again
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(work(*args)))
    process.start()
    sender.close()
    try:
        return receiver.recv()  # EOFError where the process failed, which it has said
    finally:
        process.join()


def measure(args: argparse.Namespace, folder: Path) -> dict:
    ids = in_own_process(write_both, folder, args)
    megabytes = {
        name: in_own_process(growth, name, folder / file, ids) for name, file in NAMES.items()
    }
    check_equal(folder, ids)
    return {
        "images": len(ids),
        "file, MB": {n: round((folder / f).stat().st_size / 1e6, 2) for n, f in NAMES.items()},
        "memory after reading, MB": megabytes,
        "random access": random_access(folder, ids, args.repeats),
        **seconds(folder, contents(args), ids, args.repeats),
    }


@exit_cleanly
def main() -> None:
    args = parse()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        found = measure(args, Path(folder))
    report("proposals", output=args.output, arguments=vars(args), **found)


if __name__ == "__main__":
    main()
