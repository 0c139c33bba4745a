"""The trunk with its head, as the trainer calls it: batches in, losses or logits out."""

import logging
import math

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import nn

from ..config import architecture_arguments, check_sizes, trunk_arguments
from ..data import augment
from ..engine.trainer import LOG_PERIOD
from ..models import Architecture, ResNeXt, build_resnext
from ..models.checks import check_layers
from ..models.compiled import check_compile, compile_in_place
from ..models.precision import resolve_precision
from .protocols import logits_of

logger = logging.getLogger(__name__)


class Classifier(nn.Module):
    """Cross entropy on the trunk's ``linear`` output (paper, Table 1: softmax).

    Takes {"image": (N, 3, H, W) normalised, "label": (N,)}; gives {"loss_cls": scalar} in
    training and {"logits": (N, num_classes)} otherwise, where "image" may also hold the views of
    another test protocol.

    Args:
        window: see `protocols.logits_of`.
    """

    def __init__(self, trunk: ResNeXt, window: int = 7):
        super().__init__()
        self.trunk, self.window = trunk, window

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        images = self._moved(batch["image"])
        if not self.training:
            return {"logits": logits_of(self.trunk, images, self.window)}
        logits = self.trunk(images)["linear"]
        labels = batch["label"].to(self.device, non_blocking=True)
        _record_error(logits, labels)
        return {"loss_cls": F.cross_entropy(logits, labels)}

    def _moved(self, images: torch.Tensor | list[torch.Tensor]) -> torch.Tensor | list:
        if isinstance(images, list):
            return [self._moved(scale) for scale in images]
        return images.to(self.device, non_blocking=True)


def _record_error(logits: torch.Tensor, labels: torch.Tensor) -> None:
    """The batch's own top-1 error, percent, where the log is about to be written (Fig. 5)."""
    if has_event_storage() and (get_event_storage().iter + 1) % LOG_PERIOD == 0:
        wrong = (logits.argmax(1) != labels).float().mean()
        get_event_storage().put_scalar("train_top1_error", 100 * wrong.item())


def build_classifier(cfg: CfgNode, num_classes: int) -> Classifier:
    """The classifier of ``cfg.MODEL.RESNETS`` on ``cfg.MODEL.DEVICE``, all layers trained."""
    precision = resolve_precision(cfg.MODEL.PRECISION, torch.device(cfg.MODEL.DEVICE).type)
    if precision != cfg.MODEL.PRECISION:
        logger.info("MODEL.PRECISION %s: %s", cfg.MODEL.PRECISION, precision)
    trunk = build_resnext(
        **trunk_arguments(cfg),
        num_classes=num_classes,
        out_features=_features(cfg),
        precision=precision,
    )
    if cfg.MODEL.COMPILE:
        compile_in_place(trunk, cfg.MODEL.DEVICE)
    # The side of a training crop's map.
    window = math.ceil(cfg.DATA.CROP_SIZE / trunk.architecture.stride)
    return Classifier(trunk, window).to(cfg.MODEL.DEVICE)


def in_words(model: Classifier) -> str:
    """Name, classes, size and arithmetic, as the log says them.

    >>> in_words(model)
    'X50_32x4d with 1000 classes, 25.03 M parameters, bf16'
    """
    size = sum(p.numel() for p in model.parameters()) / 1e6
    trunk, classes = model.trunk, model.trunk.linear.out_features
    name = trunk.architecture.name
    return f"{name} with {classes} classes, {size:.2f} M parameters, {trunk.precision}"


def check_network(cfg: CfgNode) -> None:
    """Raises InputError where the network cannot be, or the images are too small for it."""
    augment.check_keys(cfg)
    architecture = Architecture(**architecture_arguments(cfg))
    check_layers(architecture, cfg.MODEL.RESNETS.NORM, cfg.MODEL.RESNETS.FORM)
    keys = ["DATA.CROP_SIZE"]
    if cfg.DATA.TEST_PROTOCOL == "dense":
        keys.append("DATA.TEST_SCALES")
    check_sizes(cfg, keys, architecture.stride)


def check_compiler(cfg: CfgNode) -> None:
    """Raises InputError where a training cannot have the MODEL.COMPILE that it asks for."""
    if cfg.MODEL.COMPILE:
        check_compile(cfg.MODEL.DEVICE, cfg.MODEL.REGROUP, cfg.MODEL.RECOMPUTE)


def _features(cfg: CfgNode) -> list[str] | None:
    """The dense protocol also wants the map that the head stands on."""
    if cfg.DATA.TEST_PROTOCOL != "dense":
        return None
    stages = Architecture(**architecture_arguments(cfg)).stages
    return [f"res{stages[-1]}", "linear"]
