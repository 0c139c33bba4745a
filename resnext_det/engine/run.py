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
from detectron2.utils.logger import setup_logger

from ..compat import describe_environment
from ..errors import InputError
from .seeding import seed_all

logger = logging.getLogger("resnext_det")


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


def share_cores(cfg: CfgNode) -> None:
    """On a CPU, let data workers and the training step have a core each, not the same one.

    torch takes every core for the step; a worker beside it makes both wait (classification
    steps on two cores: 1.6 times the time of one thread and one worker). OMP_NUM_THREADS, where
    set, is kept.
    """
    if cfg.MODEL.DEVICE == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        torch.set_num_threads(max(1, cores - cfg.DATALOADER.NUM_WORKERS))


def start_run(cfg: CfgNode, *, new: bool) -> None:
    """Prepare ``cfg.OUTPUT_DIR`` and this process: log, device and seed.

    Args:
        cfg: MODEL.DEVICE and SEED are set here (SEED 0 where the user gave none).
        new: the folder must not hold a run yet (training without ``--resume``).

    Raises:
        InputError: the folder holds another run, or cannot be made.
    """
    folder = Path(cfg.OUTPUT_DIR)
    if new and (folder / "run.json").exists():
        raise InputError(
            folder,
            "holds a run already (run.json)",
            "add --resume to go on with it, or choose another OUTPUT_DIR",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            folder, f"cannot be made ({error.strerror})", "choose an OUTPUT_DIR that can be written"
        ) from error
    comm.synchronize()
    _log_to(folder)
    choose_device(cfg)
    share_cores(cfg)
    if cfg.SEED < 0:
        cfg.SEED = 0
    seed_all(cfg.SEED, comm.get_rank())


def _log_to(folder: Path) -> None:
    """Console and ``folder/log.txt``; a process that runs twice does not print lines twice."""
    setup_logger.cache_clear()
    for name in ("resnext_det", "detectron2", "fvcore"):
        old = logging.getLogger(name).handlers
        while old:
            old.pop().close()
        setup_logger(str(folder), distributed_rank=comm.get_rank(), name=name)


def record_run(cfg: CfgNode) -> None:
    """Write config.yaml and run.json; called once the input has been found good."""
    if not comm.is_main_process():
        return
    folder = Path(cfg.OUTPUT_DIR)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(cfg.dump())
    started = time.strftime("%Y-%m-%d %H:%M:%S")
    write_json(
        folder / "run.json",
        {"command": sys.argv, "started": started, "environment": describe_environment()},
    )


def folder_of(cfg: CfgNode, *parts: str) -> Path:
    return Path(cfg.OUTPUT_DIR, *parts)
