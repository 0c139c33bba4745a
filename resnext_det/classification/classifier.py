"""The trunk with its head, as the trainer calls it: batches in, losses or logits out."""

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from torch import nn

from ..config import trunk_arguments
from ..models import ResNeXt, build_resnext
from ..models.precision import resolve_precision


class Classifier(nn.Module):
    """Cross entropy on the trunk's ``linear`` output (paper, Table 1: softmax).

    Takes {"image": (N, 3, H, W) normalised, "label": (N,)}; gives {"loss_cls": scalar} in
    training and {"logits": (N, num_classes)} otherwise.
    """

    def __init__(self, trunk: ResNeXt):
        super().__init__()
        self.trunk = trunk

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        images = batch["image"].to(self.device, non_blocking=True)
        logits = self.trunk(images)["linear"]
        if not self.training:
            return {"logits": logits}
        labels = batch["label"].to(self.device, non_blocking=True)
        return {"loss_cls": F.cross_entropy(logits, labels)}


def build_classifier(cfg: CfgNode, num_classes: int) -> Classifier:
    """The classifier of ``cfg.MODEL.RESNETS`` on ``cfg.MODEL.DEVICE``, all layers trained."""
    trunk = build_resnext(
        **trunk_arguments(cfg),
        num_classes=num_classes,
        precision=resolve_precision(cfg.MODEL.PRECISION, torch.device(cfg.MODEL.DEVICE).type),
    )
    return Classifier(trunk).to(cfg.MODEL.DEVICE)
