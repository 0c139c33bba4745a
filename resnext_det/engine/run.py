"""The frame of a run: device, output folder, log, seed, and the record of what was run."""

import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm

from ..compat import describe_environment
from ..errors import InputError
from ..native import kernels_of
from ..writing import write_text
from .folders import (
    EVALUATION,
    TRAINING,
    check_place,
    forget_evaluation,
    make_folder,
    record_in,
    refuse_other,
    refuse_other_task,
    refuse_used,
)
from .lock import check_free, lock_folder, unlock_folder
from .logs import log_to, log_to_console
from .memory import keep_freed_memory
from .seeding import repeat_on_gpus, seed_all

logger = logging.getLogger("resnext_det")

MOST_WORKERS = 8  # data workers of a process, unless the user names a number
# run.json of each folder when `start_run` looked at it, by full path; None where there was none.
_found: dict[str, bytes | None] = {}


def write_json(path: str | Path, values: Any) -> None:
    """Write JSON whole or not at all; NaN becomes null, which every reader understands.

    Raises:
        InputError: see `writing.written_whole`.
    """
    write_text(path, json.dumps(_without_nan(values), indent=2) + "\n")


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and value != value else value


def choose_device(cfg: CfgNode) -> None:
    """Fall back from CUDA to the CPU, and say so."""
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.info("no GPU was found: running on the CPU")
        cfg.MODEL.DEVICE = "cpu"


def cores_per_process() -> int:
    """Cores that this process may use, shared with the run's other processes on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    # torchrun's own number; `comm` knows it only once the processes have joined.
    processes = int(os.environ.get("LOCAL_WORLD_SIZE") or comm.get_local_size())
    return max(1, (cores or 1) // processes)


def choose_workers(cfg: CfgNode) -> None:
    """Replace a DATALOADER.NUM_WORKERS of -1: a process's cores but one, 8 at most; logged.

    The core left out is for the step itself, so a machine of one core has no worker. A worker
    augments about 200 ImageNet images a second (measured on one core of an AMD EPYC, Zen 5). The
    bound keeps one process on a machine of many cores from starting dozens of workers, which take
    memory and time to start; who needs more than 1,600 images a second names the number.

    Raises:
        InputError: the number is below -1.
    """
    workers = cfg.DATALOADER.NUM_WORKERS
    if workers < -1:
        raise InputError(
            "config",
            f"DATALOADER.NUM_WORKERS is {workers}",
            "set it to 0 or more, or to -1 (chosen by the machine's cores)",
        )
    if workers == -1:
        cfg.DATALOADER.NUM_WORKERS = min(MOST_WORKERS, cores_per_process() - 1)
        logger.info(
            "DATALOADER.NUM_WORKERS -1: %d data workers, by %d cores a process",
            cfg.DATALOADER.NUM_WORKERS,
            cores_per_process(),
        )


def prepare_cpu(cfg: CfgNode) -> None:
    """On a CPU: freed memory is kept, and data workers and the step have a core each.

    torch takes every core for the step; a worker beside it makes both wait (classification
    steps on two cores: 1.6 times the time of one thread and one worker). OMP_NUM_THREADS, where
    set, is kept.
    """
    if cfg.MODEL.DEVICE != "cpu":
        return
    keep_freed_memory()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, cores_per_process() - cfg.DATALOADER.NUM_WORKERS))


def start_run(cfg: CfgNode, *, new: bool, evaluates: bool = False) -> None:
    """Prepare this process (log, device, seed) for a run in ``cfg.OUTPUT_DIR``.

    Nothing is written yet: the folder is made by `record_run` or `record_evaluation`, once the
    input has been found good, and its log.txt then begins with the lines of before.

    Args:
        cfg: MODEL.DEVICE, SEED (0 where the user gave none) and DATALOADER.NUM_WORKERS (where it
            is -1) are set here.
        new: the folder must not hold a run yet (training without ``--resume``).
        evaluates: the folder must not hold a training run (``--eval-only``).

    Raises:
        InputError: the folder holds another run, is in use by one or cannot be written, or
            NUM_WORKERS is below -1.
    """
    folder = Path(cfg.OUTPUT_DIR)
    if evaluates:
        refuse_other(folder, EVALUATION)
    check_free(folder)
    if new:
        refuse_used(folder)
    check_place(folder)
    _found[os.path.realpath(folder)] = _run_json(folder)
    comm.synchronize()
    log_to_console()
    choose_device(cfg)
    choose_workers(cfg)
    prepare_cpu(cfg)
    if cfg.SEED < 0:
        cfg.SEED = 0
    seed_all(cfg.SEED, comm.get_rank())
    if cfg.DETERMINISTIC:
        repeat_on_gpus()


def record_run(cfg: CfgNode, **facts: Any) -> None:
    """Write config.yaml and run.json of a training; called once the input has been found good.

    Args:
        facts: further entries of run.json, such as ``precision="bf16"`` where the config says
            "auto".

    Raises:
        InputError: the folder holds an evaluation or the other task's training, another process
            has it or has used it since `start_run`, or the disk is full.
    """
    refuse_other(Path(cfg.OUTPUT_DIR), TRAINING)
    refuse_other_task(Path(cfg.OUTPUT_DIR), cfg)
    _record(cfg, TRAINING, facts)


def record_evaluation(cfg: CfgNode, **facts: Any) -> None:
    """Write config.yaml and run.json of an evaluation in place of an earlier one's.

    The results, pictures/ and inference/ of the earlier one are removed: they would stand beside
    settings that are not their own.

    Args:
        facts: as for `record_run`.

    Raises:
        InputError: as `record_run`; a training run's record and results stay.
    """
    refuse_other(Path(cfg.OUTPUT_DIR), EVALUATION)
    _record(cfg, EVALUATION, facts)


def _record(cfg: CfgNode, kind: str, facts: dict[str, Any]) -> None:
    folder = make_folder(cfg.OUTPUT_DIR)
    _lock(folder)
    log_to(folder)
    if not comm.is_main_process():
        return
    if kind == EVALUATION:
        forget_evaluation(folder)
    write_text(folder / "config.yaml", cfg.dump())
    started = time.strftime("%Y-%m-%d %H:%M:%S")
    kernels = kernels_of(cfg.MODEL.DEVICE)
    before = (record_in(folder) or {}).get("kernels") if kind == TRAINING else None
    _tell_arithmetic(before, kernels, facts.get("precision", cfg.MODEL.PRECISION))
    about = {"kind": kind, "command": sys.argv, "started": started, "kernels": kernels, **facts}
    write_json(folder / "run.json", {**about, "environment": describe_environment()})


def _tell_arithmetic(before: str | None, kernels: str, precision: str) -> None:
    logger.info("convolutions in %s, kernels in %s", precision, kernels)
    if before not in (None, kernels):
        logger.warning(
            "this folder's run had other kernels (docs/speed.md): what follows may differ from an "
            "undisturbed run in the last digits"
        )


def _lock(folder: Path) -> None:
    """Lock the folder for this run; all its processes are refused where its first one is."""
    refused = None
    if comm.is_main_process():
        try:
            lock_folder(folder)
            _refuse_used_meanwhile(folder)
        except InputError as error:
            unlock_folder(folder)
            refused = error
    if refused := comm.all_gather(refused)[0]:
        raise refused


def _refuse_used_meanwhile(folder: Path) -> None:
    """Raises InputError where another run began, and may have ended, while input was checked."""
    now = _run_json(folder)
    if _found.pop(os.path.realpath(folder), now) != now:
        raise InputError(
            folder,
            "another run was begun there while this one checked its input (run.json)",
            "choose another OUTPUT_DIR",
        )


def _run_json(folder: Path) -> bytes | None:
    try:
        return (folder / "run.json").read_bytes()
    except OSError:
        return None


def take_folder(folder: str | Path) -> Path:
    """Make and lock a folder below which several runs lie, no run's own, and log to it.

    Raises:
        InputError: it cannot be made, holds a run, or another process has it.
    """
    folder = make_folder(folder)
    if (folder / "run.json").exists():
        raise InputError(folder, "holds a run (run.json)", "choose another OUTPUT_DIR")
    lock_folder(folder)
    log_to(folder)
    return folder
