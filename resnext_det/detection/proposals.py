"""The step between the two networks: the RPN's boxes for every training image, on disk."""

import logging
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn
from tqdm import tqdm

from ..data.proposals import ProposalWriter, join_parts
from .loaders import build_test_loader

logger = logging.getLogger(__name__)

NO_LIMIT = 2**31 - 1


def proposal_cfg(cfg: CfgNode) -> CfgNode:
    """The RPN's config for making training proposals: PROPOSALS.* put into MODEL.RPN."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = cfg.PROPOSALS.PRE_NMS_TOPK or NO_LIMIT
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = cfg.PROPOSALS.POST_NMS_TOPK
    cfg.freeze()
    return cfg


@torch.no_grad()
def dump_proposals(
    cfg: CfgNode,
    model: nn.Module,
    names: list[str],
    path: str | Path,
    made_with: dict[str, str] | None = None,
) -> None:
    """Write the RPN's boxes of every image of the data sets (Ren et al. 2017, Sec. 3).

    Args:
        cfg: as `proposal_cfg` gives it.
        model: a Detectron2 ``ProposalNetwork`` built from ``cfg``.
        path: see ``data.proposals`` for the format; boxes are in original-image pixels.
        made_with: stored in the file's metadata, see ``data.proposals.join_parts``.

    Raises:
        InputError: an image id appears twice; a half-written file is never left at ``path``.
    """
    model.eval()
    writer = ProposalWriter(path, comm.get_rank())
    for name in names:
        loader = build_test_loader(cfg, name)
        for batch in tqdm(loader, desc=f"proposals {name}", disable=not comm.is_main_process()):
            for x, output in zip(batch, model(batch), strict=True):
                found = output["proposals"]
                writer.add(
                    x["image_id"],
                    found.proposal_boxes.tensor.cpu().numpy(),
                    found.objectness_logits.cpu().numpy(),
                )
    writer.close()
    comm.synchronize()
    if comm.is_main_process():
        join_parts(path, comm.get_world_size(), ", ".join(names), made_with)
    comm.synchronize()
    logger.info("proposals: %s", path)
