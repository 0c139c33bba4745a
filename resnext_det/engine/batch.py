"""How the total batch of the config falls on the processes."""

from detectron2.config import CfgNode
from detectron2.utils import comm

from ..errors import InputError


def images_per_process(cfg: CfgNode) -> int:
    """SOLVER.IMS_PER_BATCH over all processes, divided by their number.

    Raises:
        InputError: the batch does not divide.
    """
    total, processes = cfg.SOLVER.IMS_PER_BATCH, comm.get_world_size()
    if total % processes:
        raise InputError(
            "SOLVER.IMS_PER_BATCH",
            f"{total} images do not divide among {processes} processes",
            f"set it to a multiple of {processes}",
        )
    return total // processes
