"""The RPN's boxes for every image, written for Fast R-CNN's training (paper, Sec. 5.4).

`dump_proposals` does so in a run; `dump_from_weights` for any data set and any trained RPN.
"""

import logging
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils import comm
from torch import nn
from tqdm import tqdm

from ..config import cfg_from_text, stage_cfg
from ..data import coco
from ..data.proposal_pickle import write_pickle
from ..data.proposals import ProposalFile, ProposalWriter, join_parts, parts_of
from ..engine.folders import new_file
from ..engine.run import choose_device, choose_workers, prepare_cpu
from ..errors import InputError
from ..weights import WeightsRecord, fingerprint, load_all, read_record, read_weights
from .evaluation import RecallEvaluator
from .loaders import build_test_loader
from .proposal_exchange import FORMATS, alone
from .weights_setup import apply_record

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


def limits_of(cfg: CfgNode) -> dict[str, str]:
    """The limits that stored proposals depend on, as a file's metadata hold them."""
    keys = ("PRE_NMS_TOPK", "POST_NMS_TOPK")
    return {f"PROPOSALS.{key}": str(cfg.PROPOSALS[key]) for key in keys}


def read_rpn(path: str | Path) -> dict[str, torch.Tensor]:
    """The RPN's tensors, from a file of its own or out of a joined detector.

    Raises:
        InputError: no such file, or other weights.
    """
    tensors, record = read_weights(path)
    _require_rpn(record, path)
    if record.kind == "rpn":
        return tensors
    own = {name: value for name, value in tensors.items() if name.startswith("rpn.")}
    if not own:
        raise InputError(
            path,
            "holds a detector with shared features, which has no RPN of its own",
            "give the weights of a run with MODEL.META_ARCHITECTURE NonSharedRCNN",
        )
    return {name.removeprefix("rpn."): value for name, value in own.items()}


def _require_rpn(record: WeightsRecord, path: str | Path) -> None:
    if record.kind not in ("rpn", "detector"):
        raise InputError(
            path,
            f"holds {record.kind} weights, no RPN",
            "give rpn/model_final.safetensors or model_final.safetensors of a train_net.py run",
        )


def build_rpn(cfg: CfgNode, tensors: dict[str, torch.Tensor], path: str | Path) -> nn.Module:
    """A Detectron2 ``ProposalNetwork`` with ``tensors``, in evaluation mode.

    Args:
        cfg: as `proposal_cfg` gives it, of an RPN (``config.stage_cfg``).
        path: for messages.
    """
    model = build_model(cfg)
    load_all(model, tensors, path)
    return model.eval()


@torch.no_grad()
def dump_proposals(
    cfg: CfgNode,
    model: nn.Module,
    names: list[str],
    path: str | Path,
    made_with: dict[str, str] | None = None,
    measure: bool = False,
) -> dict[str, dict[str, float]]:
    """Write the RPN's boxes of every image of the data sets (Ren et al. 2017, Sec. 3).

    Args:
        cfg: as `proposal_cfg` gives it.
        model: a Detectron2 ``ProposalNetwork`` built from ``cfg``.
        path: see ``data.proposals`` for the format; boxes are in original-image pixels.
        made_with: stored in the file's metadata, see ``data.proposals.join_parts``.
        measure: average recall as well.

    Returns:
        On the main process, with ``measure``: for each data set what `RecallEvaluator` finds.

    Raises:
        InputError: an image id appears twice; a half-written file is never left at ``path``.
    """
    model.eval()
    writer = ProposalWriter(path, comm.get_rank())
    recalls = {}
    for name in names:
        recall = RecallEvaluator(name) if measure else None
        if recall:
            recall.reset()
        loader = build_test_loader(cfg, name)
        for batch in tqdm(loader, desc=f"proposals {name}", disable=not comm.is_main_process()):
            outputs = model(batch)
            for x, output in zip(batch, outputs, strict=True):
                writer.add(x["image_id"], *boxes_and_logits(output))
            if recall:
                recall.process(batch, outputs)
        if recall:
            recalls[name] = recall.evaluate().get("proposals", {})
    writer.close()
    comm.synchronize()
    if comm.is_main_process():
        join_parts(path, comm.get_world_size(), ", ".join(names), made_with)
    comm.synchronize()
    return recalls


def boxes_and_logits(output: dict) -> tuple[np.ndarray, np.ndarray]:
    found = output["proposals"]
    return found.proposal_boxes.tensor.cpu().numpy(), found.objectness_logits.cpu().numpy()


def rpn_config(weights: str | Path, cfg: CfgNode | None) -> CfgNode:
    """The config to run an RPN with: ``cfg`` with what the weights say, or the one they carry.

    Raises:
        InputError: no weights given, or a config that they do not fit.
    """
    if not weights:
        raise InputError(
            "MODEL.WEIGHTS",
            "is empty, and proposals need a trained RPN",
            "add MODEL.WEIGHTS path/to/rpn/model_final.safetensors",
        )
    record = read_record(weights)
    _require_rpn(record, weights)
    if cfg is None:
        return cfg_from_text(record.config, str(weights))
    apply_record(cfg, record, str(weights))
    return cfg


def choose_sets(
    cfg: CfgNode, names: list[str] | None, json_file: str | None, images: str | None
) -> None:
    """Put the data sets of a command line into DATASETS.TRAIN; none leaves it as it is.

    Raises:
        InputError: names and a file are given, or a file without its images.
    """
    if bool(json_file) != bool(images) or (json_file and names):
        raise InputError(
            "command line",
            "the data set is given twice" if names else "--json or --images is given alone",
            "give --dataset, or --json and --images",
        )
    if json_file:
        names = ["custom"]
        cfg.DATASETS.COCO_JSON = [*cfg.DATASETS.COCO_JSON, ["custom", json_file, images]]
    if names:
        cfg.DATASETS.TRAIN = tuple(names)
    cfg.DATASETS.TEST = ()


def dump_from_weights(
    cfg: CfgNode, weights: str | Path, output: str | Path, form: str = FORMATS[0]
) -> dict[str, dict[str, float]]:
    """Write the proposals of an RPN for all of DATASETS.TRAIN, and measure their recall.

    Args:
        cfg: from `rpn_config`; device and number of data workers are set in it.
        weights: of an RPN or of a detector.
        output: must not be there.
        form: "resnext_det" (docs/proposals.md), or "detectron2" for its pickle.

    Returns:
        As `dump_proposals`; NaN for data sets without objects.

    Raises:
        InputError: a wrong data set or wrong weights, or ``output`` is there or being made.
    """
    output = new_file(output)
    for prepare in (choose_device, choose_workers, prepare_cpu):
        prepare(cfg)
    coco.register_from_config(cfg)
    names = list(cfg.DATASETS.TRAIN)
    if not names:
        raise InputError("config", "DATASETS.TRAIN is empty", "add --dataset, or --json, --images")
    for name in names:
        logger.info("%s: %d images", name, len(coco.load(name)))
    tensors = read_rpn(weights)
    own = proposal_cfg(stage_cfg(cfg, "rpn"))
    model = build_rpn(own, tensors, weights)
    made_with = {**limits_of(cfg), "rpn_sha256": fingerprint(tensors)}
    aside = output if form == FORMATS[0] else parts_of(output) / "all.safetensors"
    with alone(output, comm.is_main_process()):
        comm.synchronize()  # before any of them opens a file
        recalls = dump_proposals(own, model, names, aside, made_with, measure=True)
        if form != FORMATS[0] and comm.is_main_process():
            write_pickle(output, ProposalFile(aside))
    return recalls
