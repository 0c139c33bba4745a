#!/usr/bin/env python
"""The paper's tables beside what was run here: docs/reproduction.md, from run records.

python tools/reproduction.py --add output/imagenet_X50_32x4d      (keep a record, write the page)
python tools/reproduction.py                                      (write the page from docs/records)
python tools/reproduction.py output/mine --output mine.md         (a run that is not kept)
"""

import argparse
from pathlib import Path

from resnext_det import runs
from resnext_det.command_line import Parser
from resnext_det.errors import InputError, exit_cleanly
from resnext_det.reproduction.keeping import NAME, default_name, keep, record_in, write
from resnext_det.reproduction.page import PAGE, RECORDS, document


def parse() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("runs", nargs="*", help="run folders, shown without being kept")
    parser.add_argument("--add", nargs="+", default=[], help="run folders to keep a record of")
    parser.add_argument("--name", help="of the record that --add writes (default: from the run)")
    parser.add_argument("--data-set", help="a name to read for the data of the runs given")
    parser.add_argument("--records", type=Path, default=RECORDS, help="folder (docs/records)")
    parser.add_argument("--output", type=Path, default=PAGE, help="page (docs/reproduction.md)")
    args = parser.parse_args()
    check(args)
    return args


def check(args: argparse.Namespace) -> None:
    if args.name is not None and len(args.add) != 1:
        raise InputError(
            "command line", f"--name is given for {len(args.add)} records", "add one run by --add"
        )
    if args.name is not None and not NAME.fullmatch(args.name):
        raise InputError(
            "command line", f"--name is {args.name!r:.60}", "use letters, digits, _, . and -"
        )
    if args.records != RECORDS and not args.add and not args.records.is_dir():
        raise InputError(args.records, "is no folder", "give the folder of the records")


@exit_cleanly
def main() -> None:
    args = parse()
    shown = [record_in(folder, args.data_set) for folder in args.runs]
    for record in [record_in(folder, args.data_set) for folder in args.add]:
        keep(record, args.name or default_name(record), args.records)
    kept = runs.read_records(args.records.resolve())
    known = {(record.output, record.started) for record in kept}
    shown = [record for record in shown if (record.output, record.started) not in known]
    write(args.output, document(kept + shown, args.output.resolve()))
    print(f"{args.output}: {len(kept)} records" + f", {len(shown)} runs not kept" * bool(shown))


if __name__ == "__main__":
    main()
