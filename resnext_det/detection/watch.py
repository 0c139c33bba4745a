"""What is measured on DATASETS.TEST while a network trains: AP, recall, losses."""

import logging
from collections import Counter

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetFromList, MapDataset
from detectron2.data.samplers import InferenceSampler
from detectron2.evaluation import inference_on_dataset
from detectron2.utils import comm
from torch import nn

from ..engine.seeding import seed_all
from ..engine.trainer import share_statistics
from ..engine.workers import WatchedLoader
from .evaluation import RecallEvaluator, evaluate
from .loaders import NamingMapper, build_test_loader
from .meta_arch import NonSharedRCNN

logger = logging.getLogger(__name__)

# By which figure a stage's best weights are told.
BEST = {"rpn": "proposals/AR@1000", "fast_rcnn": "bbox/AP", "joint": "bbox/AP"}


class Watch:
    """Scores a network in training on DATASETS.TEST; called by the trainer's evaluation hook.

    An RPN alone has average recall. Fast R-CNN has AP, on the boxes of the RPN of its run.

    Args:
        cfg: the network's own config (``stage_files.network_cfg``).
        model: the network, not wrapped for several processes.
        stage: "rpn", "fast_rcnn" or "joint".
        rpn: for "fast_rcnn": the trained RPN, in evaluation mode, built to give
            max(TEST.PROPOSALS_TOPK, MODEL.RPN.POST_NMS_TOPK_TEST) boxes.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module, stage: str, rpn: nn.Module | None = None):
        self.cfg, self.model, self.stage = cfg, model, stage
        self.detector = model
        if stage == "fast_rcnn":
            self.detector = NonSharedRCNN(
                rpn=rpn,
                fast_rcnn=model,
                proposals_topk=cfg.TEST.PROPOSALS_TOPK,
                detection_topk=cfg.MODEL.RPN.POST_NMS_TOPK_TEST,
            ).eval()
            model.train()  # the RPN stays in evaluation mode

    def __call__(self) -> dict[str, dict[str, float]]:
        """Figures of the first data set; of the others under "<name>/"; {} off the main process."""
        share_statistics(self.model)
        results = {}
        for number, name in enumerate(self.cfg.DATASETS.TEST):
            found = self._score(name)
            if self.cfg.TEST.VALIDATION_LOSS:
                found["validation"] = self.validation_loss(name)
            if comm.is_main_process():
                results |= found if number == 0 else {f"{name}/{k}": v for k, v in found.items()}
        self.model.train()
        return results

    def _score(self, name: str) -> dict:
        if self.stage != "rpn":
            return evaluate(self.cfg, self.detector, name)
        loader = build_test_loader(self.cfg, name)
        return dict(inference_on_dataset(self.model, loader, RecallEvaluator(name)))

    @torch.no_grad()
    def validation_loss(self, name: str) -> dict[str, float]:
        """Mean losses over the images of a data set, in the training's own terms.

        Images at test scale, one at a time, not flipped; the anchors and RoIs that are drawn
        depend on the seed and the image only. Running statistics are used, and not moved.
        """
        self.model.train()
        norms = [m for m in self.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        for norm in norms:
            norm.eval()
        sums = Counter()
        for number, x in self._validation_images(name):
            seed_all(self.cfg.SEED, 3, number)
            sums.update({k: float(v) for k, v in self.model([x]).items()}, images=1)
        total = Counter()
        for share in comm.all_gather(sums):
            total.update(share)
        images = total.pop("images", 0)
        losses = {loss: value / max(images, 1) for loss, value in sorted(total.items())}
        logger.info("%s: validation loss %.4f on %d images", name, sum(losses.values()), images)
        return {"total_loss": sum(losses.values()), **losses}

    def _validation_images(self, name: str):
        records = DatasetCatalog.get(name)
        mapper = NamingMapper(self.cfg, is_train=True)
        mapper.augmentations = NamingMapper(self.cfg, is_train=False).augmentations
        sampler = InferenceSampler(len(records))
        loader = WatchedLoader(
            MapDataset(DatasetFromList(records, copy=False), mapper),
            batch_size=None,
            sampler=sampler,
            num_workers=self.cfg.DATALOADER.NUM_WORKERS,
        )
        for number, x in zip(sampler, loader, strict=True):
            if self.stage == "fast_rcnn":
                x["proposals"] = self._proposals(x)
            yield number, x

    def _proposals(self, x: dict):
        images = self.model.preprocess_image([x])
        (found,) = self.detector.propose(images)
        return found[: self.cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN]
