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
from .folders import (
    EVALUATION,
    TRAINING,
    check_place,
    folder_of,
    make_folder,
    refuse_other,
)
from .logs import log_to, log_to_console
from .seeding import seed_all

logger = logging.getLogger("resnext_det")

MOST_WORKERS = 8  # data workers of a process, unless the user names a number


def write_json(path: str | Path, values: Any) -> None:
    """Write JSON whole or not at all; NaN becomes null, which every reader understands."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.tmp")
    aside.write_text(json.dumps(_without_nan(values), indent=2) + "\n")
    os.replace(aside, path)


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


def share_cores(cfg: CfgNode) -> None:
    """On a CPU, let data workers and the training step have a core each, not the same one.

    torch takes every core for the step; a worker beside it makes both wait (classification
    steps on two cores: 1.6 times the time of one thread and one worker). OMP_NUM_THREADS, where
    set, is kept.
    """
    if cfg.MODEL.DEVICE == "cpu" and "OMP_NUM_THREADS" not in os.environ:
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
        InputError: the folder holds another run or cannot be written, or NUM_WORKERS is below -1.
    """
    folder = Path(cfg.OUTPUT_DIR)
    if evaluates:
        refuse_other(folder, EVALUATION)
    if new and (folder / "run.json").exists():
        raise InputError(
            folder,
            "holds a run already (run.json)",
            "add --resume to go on with it, or choose another OUTPUT_DIR",
        )
    check_place(folder)
    comm.synchronize()
    log_to_console()
    choose_device(cfg)
    choose_workers(cfg)
    share_cores(cfg)
    if cfg.SEED < 0:
        cfg.SEED = 0
    seed_all(cfg.SEED, comm.get_rank())


def record_run(cfg: CfgNode, **facts: Any) -> None:
    """Write config.yaml and run.json of a training; called once the input has been found good.

    Args:
        facts: further entries of run.json, such as ``precision="bf16"`` where the config says
            "auto".

    Raises:
        InputError: the folder holds an evaluation.
    """
    refuse_other(Path(cfg.OUTPUT_DIR), TRAINING)
    _record(cfg, TRAINING, facts)


def record_evaluation(cfg: CfgNode, **facts: Any) -> None:
    """Write config.yaml and run.json of an evaluation in place of an earlier one's.

    An earlier results.json is removed: it would stand beside settings that are not its own.

    Args:
        facts: as for `record_run`.

    Raises:
        InputError: the folder holds a training run, whose record and results stay.
    """
    refuse_other(Path(cfg.OUTPUT_DIR), EVALUATION)
    if comm.is_main_process():
        folder_of(cfg, "results.json").unlink(missing_ok=True)
    _record(cfg, EVALUATION, facts)


def _record(cfg: CfgNode, kind: str, facts: dict[str, Any]) -> None:
    folder = make_folder(cfg.OUTPUT_DIR)
    log_to(folder)
    if not comm.is_main_process():
        return
    (folder / "config.yaml").write_text(cfg.dump())
    started = time.strftime("%Y-%m-%d %H:%M:%S")
    about = {"kind": kind, "command": sys.argv, "started": started, **facts}
    write_json(folder / "run.json", {**about, "environment": describe_environment()})
