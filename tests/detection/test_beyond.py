"""Guard the systems beyond the paper's: feature pyramids and masks, in both of two networks."""

import json
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from tiny import TINY

from resnext_det.config import load_cfg, stage_cfg
from resnext_det.detection import pipeline, stage_files
from resnext_det.detection.detector import load_detector
from resnext_det.plots import read_metrics

CONFIGS = Path(__file__).parents[2] / "configs" / "beyond"
SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "MODEL.RESNETS.DEPTH": 14,
    "MODEL.RESNETS.NORM": "BN",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 16,
    "MODEL.ANCHOR_GENERATOR.SIZES": "[[8], [16], [32], [64], [128]]",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
    "PROPOSALS.PRE_NMS_TOPK": 200,
    "SOLVER.BASE_LR": 0.001,
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS": False,
}


def config(name, data, folder, **others):
    values = {
        **TINY,
        **SMALL,
        "DATASETS.COCO_JSON": [
            [f"beyond_{split}", f"{data}/annotations/{split}.json", f"{data}/{split}"]
            for split in ("train", "val")
        ],
        "DATASETS.TRAIN": "('beyond_train',)",
        "DATASETS.TEST": "('beyond_val',)",
        "OUTPUT_DIR": folder,
        **others,
    }
    return load_cfg(CONFIGS / name, [str(word) for pair in values.items() for word in pair])


@pytest.mark.parametrize("meta", ["NonSharedRCNN", "SharedRCNN"])
def test_a_pyramid_in_each_network(demo_set, tmp_path, meta):
    cfg = config(
        "faster_rcnn_X50_32x4d_FPN.yaml", demo_set, tmp_path, **{"MODEL.META_ARCHITECTURE": meta}
    )
    pipeline.run(cfg, resume=False)
    model, _ = load_detector(tmp_path / "model_final.safetensors")
    networks = [model.rpn, model.fast_rcnn] if meta == "NonSharedRCNN" else [model]
    for network in networks:
        assert list(network.backbone.output_shape()) == ["p2", "p3", "p4", "p5", "p6"]
    pooler = networks[-1].roi_heads.box_pooler
    assert {type(level).__name__ for level in pooler.level_poolers} == {"NativeROIAlign"}


def test_masks(demo_set, tmp_path):
    cfg = config("mask_rcnn_X101_32x4d_FPN.yaml", demo_set, tmp_path)
    pipeline.run(cfg, resume=False)
    assert "loss_mask" in read_metrics(tmp_path / "fast_rcnn" / "metrics.json")
    assert "loss_mask" not in read_metrics(tmp_path / "rpn" / "metrics.json")
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["segm"].keys() == results["bbox"].keys()
    model, _ = load_detector(tmp_path / "model_final.safetensors")
    (output,) = model([{"image": torch.zeros(3, 96, 120, dtype=torch.uint8)}])
    assert output["instances"].pred_masks.shape[1:] == (96, 120)


def test_mask_rcnn_is_x101_with_res5():
    """The paper's last sentence: its features under Mask R-CNN."""
    cfg = load_cfg(CONFIGS / "mask_rcnn_X101_32x4d_FPN.yaml", ["MODEL.DEVICE", "meta"])
    own = stage_cfg(cfg, "fast_rcnn")
    model = build_model(own)
    trunk = model.backbone.bottom_up
    assert trunk.architecture.name == "X101_32x4d"
    assert hasattr(model.roi_heads, "mask_head") and hasattr(trunk, "res5")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("[a-z]*.yaml")), ids=lambda path: path.stem)
def test_each_config_says_how_it_is_run(path):
    text = path.read_text()
    header = text[: text.index("_BASE_")]
    assert f"--config-file configs/beyond/{path.name}" in header
    assert "Not run" in header and "Needs: " in header
    cfg = load_cfg(path)
    assert stage_files.stages_of(cfg)[-1] == "eval"
    assert cfg.OUTPUT_DIR == f"output/{path.stem}"
