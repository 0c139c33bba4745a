"""Run readers of user files on many hostile inputs.

    python tests/soak/fuzz_run.py --inputs 1000 [--seed 0] [--readers coco images] [--save FOLDER]
    python tests/soak/fuzz_run.py --inputs 0 --corpus tests/soak/corpus

What is a hole is told in fuzz_children.py. The number of a hole makes its input again: ``--first
NUMBER --inputs 1 --save FOLDER`` writes it there, once its reader has failed. Exit status 1 where
there are holes.
"""

import argparse
import json
import shutil
import stat
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[2])]

from fuzz_children import Corpus, Report, fuzz, make_again
from fuzz_coco import COCO, RESULTS
from fuzz_config import CONFIG
from fuzz_images import IMAGES
from fuzz_proposals import PROPOSALS
from fuzz_sets import ARRAYS, LISTS, SHARDS
from fuzz_weights import WEIGHTS

READERS = {
    reader.name: reader
    for reader in (CONFIG, COCO, IMAGES, WEIGHTS, PROPOSALS, ARRAYS, SHARDS, LISTS, RESULTS)
}
SHOWN = 20  # holes of a reader that are printed


def corpus_files(folder: Path, reader: str) -> Corpus:
    """A reader's files, which are called <reader>-<what>.<ending>, in the order of their names."""
    return Corpus(sorted(folder.glob(f"{reader}-*")))


def replay(folder: Path, reader: str) -> Report:
    """Read every file of the corpus that is a reader's; holes are told by their place."""
    files = corpus_files(folder.resolve(), reader)
    return fuzz(replace(READERS[reader], prepare=lambda _: files), len(files))


def _save(report: Report, seed: int, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in report.holes:
        with tempfile.TemporaryDirectory() as scratch:
            path = make_again(READERS[report.reader], seed, number, Path(scratch))
            if stat.S_ISREG(path.lstat().st_mode):
                shutil.copy(path, folder / f"{report.reader}-{number}{path.suffix}")


HEAD = f"{'reader':10}{'inputs':>8}{'results':>9}{'InputErrors':>13}{'kinds':>7}{'holes':>7}"
HEAD += f"{'slowest':>10}{'memory':>9}{'seconds':>9}"


def row(r: Report) -> str:
    """For people: a report below `HEAD`, and a line for each of its first holes."""
    text = f"{r.reader:10}{r.inputs:8}{r.results:9}{r.input_errors:13}{len(r.mends):7}"
    text += f"{len(r.holes):7}{r.slowest:8.2f} s{r.largest >> 20:5} MiB{r.seconds:9.1f}"
    holes = [f"  {r.reader} {number}: {hole}" for number, hole in r.holes.items()]
    return "\n".join([text, *holes[:SHOWN]])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--readers", nargs="*", default=list(READERS), choices=list(READERS))
    parser.add_argument("--inputs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--json", type=Path, help="write the reports there")
    parser.add_argument("--save", type=Path, help="write inputs that are holes into this folder")
    parser.add_argument("--corpus", type=Path, help="read the files of this folder as well")
    args = parser.parse_args()
    reports: list[Report] = []
    print(HEAD)
    for name in args.readers:
        if args.corpus:
            reports.append(replay(args.corpus, name))
            print(row(reports[-1]), flush=True)
        if args.inputs:
            reports.append(fuzz(READERS[name], args.inputs, args.seed, args.first))
            print(row(reports[-1]), flush=True)
            if args.save:
                _save(reports[-1], args.seed, args.save)
    if args.json:
        args.json.write_text(json.dumps([vars(r) for r in reports], indent=1))
    return int(any(report.holes for report in reports))


if __name__ == "__main__":
    sys.exit(main())
