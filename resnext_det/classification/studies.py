"""Several settings, several seeds each, one command: runs that resume, and their table.

A run is an ordinary call of tools/pretrain_imagenet.py in a folder of its own below OUTPUT_DIR;
one that has its results.json is not run again.
"""

import json
import logging
import math
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ..engine.run import write_json
from ..errors import InputError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Setting:
    """One row of a study.

    Args:
        name: of the row and of its folder.
        config_file: for tools/pretrain_imagenet.py.
        overrides: KEY VALUE pairs.
    """

    name: str
    config_file: Path
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """What the seeds of one setting gave; errors in percent."""

    name: str
    errors: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.errors)

    @property
    def standard_error(self) -> float:
        """Of the mean; NaN for a single run."""
        if len(self.errors) < 2:
            return math.nan
        return statistics.stdev(self.errors) / math.sqrt(len(self.errors))


def folder_for(output: Path, setting: Setting, seed: int) -> Path:
    return output / setting.name / f"seed{seed}"


def run_all(
    tool: Path, settings: list[Setting], seeds: int, output: Path, opts: list[str], jobs: int
) -> list[Row]:
    """Run what is missing and return the rows, in the order of the settings.

    Args:
        tool: tools/pretrain_imagenet.py.
        seeds: runs a setting, with SEED 0, 1, ...
        opts: KEY VALUE pairs for every run.
        jobs: runs beside each other, each with an equal share of the cores.

    Raises:
        InputError: a run failed (its folder's log says why; the others are finished first), or
            the folder holds runs that were begun with other options, or of another study.
    """
    _refuse_other_study(settings, output)
    for setting in settings:
        _keep_options(setting, output, opts)
    missing = [
        (setting, seed)
        for seed in range(seeds)  # all settings of a seed first, so that a part is comparable
        for setting in settings
        if not (folder_for(output, setting, seed) / "results.json").exists()
    ]
    total = len(settings) * seeds
    logger.info("%d runs, %d of them to do, %d beside each other", total, len(missing), jobs)
    failed = _run_missing(tool, missing, output, opts, jobs, total)
    if failed:
        raise InputError(
            failed[0] / "output.txt",
            f"{len(failed)} of {len(missing)} runs failed; the end of this file says why",
            "mend it and give the same command again: finished runs are kept",
        )
    return [Row(s.name, tuple(_error(output, s, seed) for seed in range(seeds))) for s in settings]


def _refuse_other_study(settings: list[Setting], output: Path) -> None:
    """Table and figure are of all rows in the folder, or some would be of the study before."""
    names = {setting.name for setting in settings}
    for path in sorted(output.glob("*/options.json")):
        if path.parent.name not in names and _kept(path.parent):
            raise InputError(
                output,
                f"holds runs of another study ({path.parent.name}/)",
                "choose another OUTPUT_DIR",
            )


def _keep_options(setting: Setting, output: Path, opts: list[str]) -> None:
    """Write down what the setting's runs are begun with; seeds of two recipes have no mean."""
    path = output / setting.name / "options.json"
    pairs = [p for p in zip(opts[::2], opts[1::2], strict=True) if p[0] != "OUTPUT_DIR"]
    now = [setting.config_file.name, *setting.overrides, *(word for pair in pairs for word in pair)]
    then = json.loads(path.read_text()) if path.exists() else now
    if _kept(path.parent) and then != now:
        raise InputError(
            path,
            f'these runs were begun with "{" ".join(then)}", the command now says '
            f'"{" ".join(now)}"',
            "give the same options, or choose another OUTPUT_DIR",
        )
    write_json(path, now)


def _kept(folder: Path) -> bool:
    """Whether a run of the setting has got somewhere."""
    return any([*folder.glob("seed*/results.json"), *folder.glob("seed*/model_*.pth")])


def cores() -> int:
    """How many of the machine's cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _run_missing(tool, missing, output, opts, jobs, total) -> list[Path]:
    failed = []
    with ThreadPoolExecutor(jobs) as pool:
        waiting = {
            pool.submit(_run_one, tool, s, seed, output, opts, jobs): (s, seed)
            for s, seed in missing
        }
        progress = tqdm(total=total, initial=total - len(missing), desc="runs")
        try:
            for done in as_completed(waiting):
                if done.result():
                    failed.append(folder_for(output, *waiting[done]))
                progress.update()
        except KeyboardInterrupt:  # the runs got the signal too, and save their state
            pool.shutdown(cancel_futures=True)
            raise
    return failed


def _run_one(tool, setting: Setting, seed: int, output: Path, opts: list[str], jobs: int) -> int:
    folder = folder_for(output, setting, seed)
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(tool), "--config-file", str(setting.config_file), "--resume"]
    command += [*setting.overrides, *opts, "SEED", str(seed), "OUTPUT_DIR", str(folder)]
    threads = str(max(1, cores() // jobs))
    with open(folder / "output.txt", "a") as log:
        done = subprocess.run(
            command,
            env={**os.environ, "OMP_NUM_THREADS": threads},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    return done.returncode


def _error(output: Path, setting: Setting, seed: int) -> float:
    path = folder_for(output, setting, seed) / "results.json"
    return json.loads(path.read_text())["classification"]["top1_error"]


def write_rows(rows: list[Row], path: Path) -> None:
    """{setting: {"top1_errors", "mean", "standard_error"}} as JSON, percent."""
    write_json(
        path,
        {
            row.name: {
                "top1_errors": list(row.errors),
                "mean": row.mean,
                "standard_error": row.standard_error,
            }
            for row in rows
        },
    )


def line(row: Row) -> str:
    """ "X29_8x64d: top-1 error 3.65 +- 0.05 % (mean and standard error of 10 runs)"."""
    return f"{row.name}: top-1 error {with_bar(row)} % ({_counted(row)})"


def with_bar(row: Row) -> str:
    """ "3.65 +- 0.05", or "3.65" for a single run."""
    bar = "" if math.isnan(row.standard_error) else f" +- {row.standard_error:.2f}"
    return f"{row.mean:.2f}{bar}"


def _counted(row: Row) -> str:
    runs = len(row.errors)
    return "one run" if runs == 1 else f"mean and standard error of {runs} runs"
