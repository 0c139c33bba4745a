"""Memory of reading stored proposals at COCO's size, in data workers as in training.

    python benchmarks/proposal_memory.py [--images 118287] [--boxes 2000] [--workers 4]

Writes a proposal file of random boxes into a temporary folder (4.7 GB as it stands, twice that
while it is put together; the folder is removed at the end), reads images at random in worker
processes, and prints one JSON object: for the main process and every worker the megabytes of
memory before and after. "anonymous" is a process's own memory, its share of what it shares with
others by a fork included (Linux's Pss_Anon); "resident" also counts the file's pages that the
system happens to keep, which it takes back when memory is wanted.
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from resnext_det.compat import describe_environment
from resnext_det.data.proposals import ProposalFile, ProposalWriter, join_parts
from resnext_det.errors import InputError, exit_cleanly

ROW = 20  # bytes of a box and its score
LEFT_FREE = 5e9  # bytes of disk
FIELDS = {"resident": "Rss", "proportional": "Pss", "anonymous": "Pss_Anon"}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=118_287, help="default: train2017's")
    parser.add_argument("--boxes", type=int, default=2000, help="an image")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--reads", type=int, default=20_000, help="images read in all")
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="where the file is made")
    return parser.parse_args()


def memory() -> dict[str, float]:
    """Megabytes of this process."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    sizes = {line.split(":")[0]: int(line.split()[1]) / 1e3 for line in lines}
    return {name: round(sizes[field], 1) for name, field in FIELDS.items()}


def check_machine(args: argparse.Namespace) -> None:
    if not Path("/proc/self/smaps_rollup").exists():
        raise InputError("/proc/self/smaps_rollup", "does not exist", "run this on Linux")
    free, needed = shutil.disk_usage(args.folder).free, 2 * args.images * args.boxes * ROW
    if needed + LEFT_FREE > free:
        raise InputError(
            args.folder,
            f"has {free / 1e9:.0f} GB free, {(needed + LEFT_FREE) / 1e9:.0f} are needed",
            "give another --folder, or fewer --images",
        )


def write(path: Path, args: argparse.Namespace) -> None:
    """As a training run would, image by image."""
    rng, writer = np.random.default_rng(0), ProposalWriter(path)
    for image_id in range(args.images):
        boxes = rng.random((args.boxes, 4), np.float32)
        writer.add(image_id, boxes, rng.random(args.boxes, np.float32))
    writer.close()
    join_parts(path, 1, "random boxes")


class Reads(torch.utils.data.Dataset):
    """Item i: random image i's proposals looked through, and the worker's memory after that."""

    def __init__(self, stored: ProposalFile, args: argparse.Namespace):
        self.stored = stored
        self.chosen = np.random.default_rng(1).integers(0, args.images, args.reads)

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, i: int) -> tuple[int, float, dict | None]:
        boxes, logits = self.stored[self.chosen[i]]
        seen = float(boxes.sum() + logits.sum())
        worker = torch.utils.data.get_worker_info().id
        # Asking for the memory takes longer than reading, so not every time.
        asked = i % 500 < 8 or i >= len(self.chosen) - 8
        return worker, seen, memory() if asked else None


def read(stored: ProposalFile, args: argparse.Namespace) -> tuple[dict, float]:
    """Each worker's first and last memory, and the seconds."""
    loader = torch.utils.data.DataLoader(
        Reads(stored, args),
        batch_size=None,
        num_workers=args.workers,
    )
    found: dict[int, dict] = {}
    start = time.perf_counter()
    for worker, _, now in loader:
        if now is not None:
            found.setdefault(worker, {"first": now})["last"] = now
    return found, time.perf_counter() - start


def measure(args: argparse.Namespace, folder: Path) -> dict:
    path = folder / "train.safetensors"
    record = {name: value for name, value in vars(args).items() if name != "folder"}
    main = {"at start": memory()}
    start = time.perf_counter()
    write(path, args)
    record |= {"write_seconds": round(time.perf_counter() - start, 1)}
    main |= {"file written": memory()}
    stored = ProposalFile(path)
    main |= {"file opened": memory()}
    workers, seconds = read(stored, args)
    main |= {"after reading": memory()}
    grown = [w["last"]["anonymous"] - w["first"]["anonymous"] for w in workers.values()]
    return {
        **record,
        "file_gb": round(path.stat().st_size / 1e9, 2),
        "reads_a_second": round(args.reads / seconds),
        "main": main,
        "worker": {number: workers[number] for number in sorted(workers)},
        "largest_growth_of_a_worker": round(max(grown), 1),
        "environment": describe_environment(),
    }


@exit_cleanly
def main() -> None:
    args = parse()
    check_machine(args)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        print(json.dumps(measure(args, Path(folder)), indent=2))


if __name__ == "__main__":
    main()
