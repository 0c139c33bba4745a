"""How the total batch falls on processes and parts, and how the schedule follows it."""

import logging

from detectron2.config import CfgNode
from detectron2.utils import comm

from ..errors import InputError

logger = logging.getLogger(__name__)


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
    MAX_ITER, STEPS and WARMUP_ITERS divided by k, so that the same number of images is seen. The
    result's REFERENCE_BATCH is its own batch: written down and read again, it follows no further.

    Raises:
        InputError: REFERENCE_BATCH is negative.
    """
    reference = cfg.SOLVER.REFERENCE_BATCH
    if reference < 0:
        raise InputError("SOLVER.REFERENCE_BATCH", f"is {reference}", "set it to 0 (none) or more")
    if reference in (0, cfg.SOLVER.IMS_PER_BATCH):
        return cfg
    cfg = cfg.clone()
    cfg.defrost()
    solver, k = cfg.SOLVER, cfg.SOLVER.IMS_PER_BATCH / reference
    before = solver.BASE_LR, solver.MAX_ITER, list(solver.STEPS), solver.WARMUP_ITERS
    solver.BASE_LR *= k
    solver.MAX_ITER = max(1, round(solver.MAX_ITER / k))
    solver.STEPS = tuple(round(step / k) for step in solver.STEPS)
    solver.WARMUP_ITERS = round(solver.WARMUP_ITERS / k)
    solver.REFERENCE_BATCH = solver.IMS_PER_BATCH
    cfg.freeze()
    logger.info(
        "batch %d instead of SOLVER.REFERENCE_BATCH %d: BASE_LR %g -> %g, MAX_ITER %d -> %d, "
        "STEPS %s -> %s, WARMUP_ITERS %d -> %d",
        solver.IMS_PER_BATCH,
        reference,
        *(value for pair in zip(before, _schedule(solver), strict=True) for value in pair),
    )
    return cfg


def _schedule(solver: CfgNode) -> tuple:
    return solver.BASE_LR, solver.MAX_ITER, list(solver.STEPS), solver.WARMUP_ITERS
