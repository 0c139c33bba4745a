"""Guard docs/deviations.md, detection: its keys, by their values, in the four configs of Table 8.

Then what the two networks have in common: images, batches, optimiser. The rows of the RPN are in
test_recipe_rpn.py, those of Fast R-CNN in test_recipe_fast_rcnn.py.
"""

import itertools

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg as get_detectron2_cfg
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler, build_optimizer
from recipe import NARROW, cfg_of

from resnext_det.config import flatten
from resnext_det.detection import loaders

NETWORKS = {
    "R50_1x64d": (50, 1, 64),
    "X50_32x4d": (50, 32, 4),
    "R101_1x64d": (101, 1, 64),
    "X101_32x4d": (101, 32, 4),
}
SHARED = {
    "INPUT.MIN_SIZE_TRAIN": (600,),
    "INPUT.MAX_SIZE_TRAIN": 1000,
    "INPUT.MIN_SIZE_TEST": 600,
    "INPUT.MAX_SIZE_TEST": 1000,
    "INPUT.FORMAT": "RGB",
    "INPUT.RANDOM_FLIP": "horizontal",
    "INPUT.CROP.ENABLED": False,
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "MODEL.BACKBONE.NAME": "build_resnext_backbone",
    "MODEL.BACKBONE.FREEZE_AT": 2,
    "MODEL.RESNETS.NORM": "FrozenBN",
    "MODEL.RESNETS.OUT_FEATURES": ["res4"],
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.RESNETS.WIDTH_MULTIPLIER": 1.0,
    "MODEL.RESNETS.FORM": "c",
    "MODEL.RESNETS.SHORTCUT": True,
    "MODEL.PRECISION": "fp32",
    "MODEL.ANCHOR_GENERATOR.SIZES": [[64, 128, 256, 512]],
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
    "MODEL.ANCHOR_GENERATOR.OFFSET": 0.5,
    "MODEL.RPN.HEAD_NAME": "ResNeXtRPNHead",
    "MODEL.RPN.IN_FEATURES": ["res4"],
    "MODEL.RPN.CONV_DIMS": [-1],
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 256,
    "MODEL.RPN.POSITIVE_FRACTION": 0.5,
    "MODEL.RPN.IOU_THRESHOLDS": [0.3, 0.7],
    "MODEL.RPN.IOU_LABELS": [0, -1, 1],
    "MODEL.RPN.BOUNDARY_THRESH": 0,
    "MODEL.RPN.SMOOTH_L1_BETA": 0.1111,
    "MODEL.RPN.BBOX_REG_LOSS_TYPE": "smooth_l1",
    "MODEL.RPN.BBOX_REG_LOSS_WEIGHT": 1.0,
    "MODEL.RPN.LOSS_WEIGHT": 1.0,
    "MODEL.RPN.BBOX_REG_WEIGHTS": (1.0, 1.0, 1.0, 1.0),
    "MODEL.RPN.NMS_THRESH": 0.7,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 12000,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 2000,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 6000,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 300,
    "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": 0,
    "PROPOSALS.PRE_NMS_TOPK": 0,
    "PROPOSALS.POST_NMS_TOPK": 2000,
    "PROPOSALS.FILES": (),
    "PROPOSALS.ONLINE": False,
    "DATASETS.TRAIN": ("coco_2017_train",),
    "DATASETS.TEST": ("coco_2017_val",),
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN": 2000,
    "DATALOADER.ASPECT_RATIO_GROUPING": True,
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS": True,
    "MODEL.ROI_HEADS.NAME": "ResNeXtRes5ROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES": ["res4"],
    "MODEL.ROI_HEADS.NUM_CLASSES": 80,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 64,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": 0.25,
    "MODEL.ROI_HEADS.IOU_THRESHOLDS": [0.5],
    "MODEL.ROI_HEADS.IOU_LABELS": [0, 1],
    "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT": True,
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.3,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.05,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": (10.0, 10.0, 5.0, 5.0),
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": False,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": "smooth_l1",
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT": 1.0,
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 1.0,
    "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES": False,
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIPool",
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 14,
    "MODEL.ROI_BOX_HEAD.RES5_STRIDE": 2,
    "SOLVER.MOMENTUM": 0.9,
    "SOLVER.NESTEROV": False,
    "SOLVER.WEIGHT_DECAY": 0.0001,
    "SOLVER.BIAS_LR_FACTOR": 2.0,
    "SOLVER.WEIGHT_DECAY_BIAS": None,
    "SOLVER.GAMMA": 0.1,
    "SOLVER.LR_SCHEDULER_NAME": "WarmupMultiStepLR",
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.STEPS": (120000,),
    "SOLVER.MAX_ITER": 180000,
    "SOLVER.ACCUMULATE": 1,
    "SOLVER.EARLY_STOP": 0,
    "SOLVER.FINAL_WEIGHTS": "last",
    "SOLVER.CLIP_GRADIENTS.ENABLED": False,
    "TEST.DETECTIONS_PER_IMAGE": 100,
}
OWN = {
    "rpn": {
        "MODEL.META_ARCHITECTURE": "ProposalNetwork",
        "MODEL.PROPOSAL_GENERATOR.NAME": "NonSharedRPN",
        "MODEL.LOAD_PROPOSALS": False,
        "SOLVER.IMS_PER_BATCH": 16,
        "SOLVER.REFERENCE_BATCH": 16,
        "SOLVER.BASE_LR": 0.02,
    },
    "fast_rcnn": {
        "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
        "MODEL.PROPOSAL_GENERATOR.NAME": "PrecomputedProposals",
        "MODEL.LOAD_PROPOSALS": True,
        "SOLVER.IMS_PER_BATCH": 8,
        "SOLVER.REFERENCE_BATCH": 8,
        "SOLVER.BASE_LR": 0.005,
    },
}
# Detectron2's defaults that would change the result if left alone.
NOT_DETECTRON2S = (
    "INPUT.MIN_SIZE_TRAIN",
    "INPUT.MAX_SIZE_TRAIN",
    "INPUT.MIN_SIZE_TEST",
    "INPUT.MAX_SIZE_TEST",
    "MODEL.PIXEL_STD",
    "MODEL.RESNETS.STRIDE_IN_1X1",
    "MODEL.ANCHOR_GENERATOR.SIZES",
    "MODEL.ANCHOR_GENERATOR.OFFSET",
    "MODEL.RPN.BOUNDARY_THRESH",
    "MODEL.RPN.SMOOTH_L1_BETA",
    "MODEL.RPN.POST_NMS_TOPK_TEST",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE",
    "MODEL.ROI_HEADS.NMS_THRESH_TEST",
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA",
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE",
    "SOLVER.BIAS_LR_FACTOR",
    "SOLVER.WARMUP_ITERS",
)


@pytest.mark.parametrize("stage", OWN)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_key(name, stage):
    found, expected = flatten(cfg_of(stage, name)), SHARED | OWN[stage]
    assert {key: found[key] for key in expected} == expected
    keys = ("DEPTH", "NUM_GROUPS", "WIDTH_PER_GROUP")
    assert tuple(found[f"MODEL.RESNETS.{key}"] for key in keys) == NETWORKS[name]
    assert found["MODEL.WEIGHTS"] == f"output/imagenet_{name}/model_final.safetensors"


@pytest.mark.parametrize("key", NOT_DETECTRON2S)
def test_detectron2s_default_is_another(key):
    assert flatten(get_detectron2_cfg())[key] != SHARED[key]


# ---- images ----


@pytest.mark.parametrize(
    "height, width, expected",
    [(480, 640, (600, 800)), (640, 480, (800, 600)), (300, 900, (333, 1000))],
)
def test_images_have_a_short_side_of_600_or_a_long_one_of_1000(height, width, expected):
    for is_train in (True, False):
        mapper = loaders.NamingMapper(cfg_of("rpn"), is_train=is_train)
        resize, *others = mapper.augmentations.augs
        image = np.zeros((height, width, 3), np.uint8)
        assert resize.get_transform(image).apply_image(image).shape == (*expected, 3)
        assert [type(a).__name__ for a in others] == ["RandomFlip"] * is_train
        assert all(a.horizontal and not a.vertical and a.prob == 0.5 for a in others)


@pytest.mark.parametrize("grouping", [True, False])
def test_a_batch_holds_images_of_one_aspect(monkeypatch, grouping):
    opts = ("DATALOADER.ASPECT_RATIO_GROUPING", str(grouping))
    cfg = cfg_of("rpn", "X50_32x4d", *opts, "SOLVER.RPN.IMS_PER_BATCH", "2")
    sizes = [(640, 480), (480, 640), (500, 333), (333, 500), (900, 300)]
    records = [{"image_id": i, "width": w, "height": h} for i, (w, h) in enumerate(sizes)]
    monkeypatch.setattr(loaders, "load_records", lambda cfg: records)
    monkeypatch.setattr(loaders, "training_loader", lambda read, batches, **others: batches)
    batches = itertools.islice(iter(loaders.build_train_loader(cfg, 0)), 40)
    aspects = [{sizes[draw.index][0] > sizes[draw.index][1] for draw in batch} for batch in batches]
    assert all(len(found) == 1 for found in aspects) == grouping


# ---- optimiser ----


@pytest.mark.parametrize("stage, rate", [("rpn", 0.02), ("fast_rcnn", 0.005)])
def test_biases_learn_twice_as_fast_and_decay_alike(stage, rate):
    cfg = cfg_of(stage, "X50_32x4d", *NARROW)
    model = build_model(cfg)
    names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    optimizer = build_optimizer(cfg, model)
    assert type(optimizer) is torch.optim.SGD
    seen = {}
    for group in optimizer.param_groups:
        assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.9, False, 1e-4)
        seen |= {names[id(p)]: group["lr"] for p in group["params"]}
    assert seen == {n: rate * (2 if n.endswith(".bias") else 1) for n in names.values()}
    assert sum(name.endswith(".bias") for name in seen) == {"rpn": 3, "fast_rcnn": 2}[stage]
    assert not [name for name in seen if ".stem." in name or ".res2." in name or ".norm." in name]


@pytest.mark.parametrize("stage, rate", [("rpn", 0.02), ("fast_rcnn", 0.005)])
def test_the_rate_drops_once_and_starts_in_full(stage, rate):
    cfg = cfg_of(stage)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=cfg.SOLVER.BASE_LR)
    scheduler = build_lr_scheduler(cfg, optimizer)
    for iteration, factor in ((0, 1), (1, 1), (119_999, 1), (120_000, 0.1), (179_999, 0.1)):
        scheduler.last_epoch = iteration
        assert scheduler.get_lr() == [pytest.approx(rate * factor)]


def test_difference_the_rate_scales_the_momentum_too():
    """PyTorch keeps the rate out of v; Caffe's v would go on with the old rate's size."""
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(layer.weight)
    optimizer = build_optimizer(cfg_of("rpn"), layer)
    optimizer.param_groups[0]["weight_decay"] = 0
    for rate, gradient in ((0.02, 1.0), (0.002, 0.0)):
        optimizer.param_groups[0]["lr"] = rate
        layer.weight.grad = torch.full_like(layer.weight, gradient)
        optimizer.step()
    assert layer.weight.item() == pytest.approx(-0.02 - 0.002 * 0.9)  # Caffe: -0.02 - 0.02 * 0.9
