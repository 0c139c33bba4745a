"""How the total batch falls on processes and parts, and how the schedule follows it."""

import logging

from detectron2.config import CfgNode
from detectron2.utils import comm

from ..errors import InputError

logger = logging.getLogger(__name__)

FOLLOWING = ("BASE_LR", "MAX_ITER", "STEPS", "WARMUP_ITERS")


def images_per_process(cfg: CfgNode) -> int:
    """Images a process takes at once: SOLVER.IMS_PER_BATCH / (processes x SOLVER.ACCUMULATE).

    Raises:
        InputError: the batch does not divide.
    """
    total, processes = cfg.SOLVER.IMS_PER_BATCH, comm.get_world_size()
    parts = processes * cfg.SOLVER.ACCUMULATE
    if total % parts:
        raise InputError(
            "SOLVER.IMS_PER_BATCH",
            f"{total} images do not divide among {processes} processes"
            + (f" x {cfg.SOLVER.ACCUMULATE} (ACCUMULATE)" if parts > processes else ""),
            f"set it to a multiple of {parts}",
        )
    return total // parts


def follow_batch(cfg: CfgNode) -> CfgNode:
    """Rate and schedule for the batch at hand, where SOLVER.REFERENCE_BATCH states theirs.

    The linear rule (Goyal et al. 2017): with k times the reference batch, k times BASE_LR, and
    MAX_ITER, STEPS and WARMUP_ITERS divided by k, so that the same number of images is seen; keys
    of SOLVER.REFERENCE_KEEPS stay, and so does what epochs say (MAX_EPOCHS, EPOCH_STEPS). The
    result's REFERENCE_BATCH is its own batch: written down and read again, it follows no further.

    Raises:
        InputError: REFERENCE_BATCH is negative, or REFERENCE_KEEPS names another key.
    """
    reference = cfg.SOLVER.REFERENCE_BATCH
    if reference < 0:
        raise InputError("SOLVER.REFERENCE_BATCH", f"is {reference}", "set it to 0 (none) or more")
    if unknown := sorted(set(cfg.SOLVER.REFERENCE_KEEPS) - set(FOLLOWING)):
        raise InputError(
            "SOLVER.REFERENCE_KEEPS", f"names {unknown[0]}", f"name some of {', '.join(FOLLOWING)}"
        )
    if reference in (0, cfg.SOLVER.IMS_PER_BATCH):
        return cfg
    cfg = cfg.clone()
    cfg.defrost()
    solver, k = cfg.SOLVER, cfg.SOLVER.IMS_PER_BATCH / reference
    changed = []
    for key, now in _scaled(solver, k).items():
        if key in solver.REFERENCE_KEEPS:
            changed.append(f"{key} {_shown(now[0])} as it is")
        else:
            solver[key] = now[1]
            changed.append(f"{key} {_shown(now[0])} -> {_shown(now[1])}")
    solver.REFERENCE_BATCH, solver.REFERENCE_KEEPS = solver.IMS_PER_BATCH, ()
    cfg.freeze()
    logger.info(
        "batch %d instead of SOLVER.REFERENCE_BATCH %d: %s",
        solver.IMS_PER_BATCH,
        reference,
        ", ".join(changed),
    )
    return cfg


def _scaled(solver: CfgNode, k: float) -> dict[str, tuple]:
    """{key: (for the reference batch, for k times that batch)}."""
    scaled = {
        "BASE_LR": (solver.BASE_LR, solver.BASE_LR * k),
        "MAX_ITER": (solver.MAX_ITER, max(1, round(solver.MAX_ITER / k))),
        "STEPS": (solver.STEPS, tuple(round(step / k) for step in solver.STEPS)),
        "WARMUP_ITERS": (solver.WARMUP_ITERS, round(solver.WARMUP_ITERS / k)),
    }
    in_epochs = solver.get("MAX_EPOCHS", 0) > 0
    if in_epochs:
        del scaled["MAX_ITER"]
    if in_epochs or solver.get("EPOCH_STEPS"):
        del scaled["STEPS"]
    return scaled


def _shown(value: float | tuple[int, ...]) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return str(list(value) if isinstance(value, tuple | list) else value)
