"""Guard the four detectors of Table 8 as they stand: 20 iterations a stage, stopped and resumed.

Minutes on two cores: ``pytest -m long tests/detection/test_table8.py``. Only images, batch and the
number of iterations are smaller than the configs'; every layer has the paper's size.
"""

import json
from pathlib import Path

import pytest
import torch

from resnext_det.config import IMAGENET_MEAN, IMAGENET_STD, load_cfg
from resnext_det.detection import pipeline
from resnext_det.engine.trainer import Trainer
from resnext_det.models import Architecture, build_resnext
from resnext_det.plots import read_metrics
from resnext_det.weights import WeightsRecord, read_record, save_weights

pytestmark = pytest.mark.long
CONFIGS = Path(__file__).parents[2] / "configs"
TABLE_8 = ("R50_1x64d", "X50_32x4d", "R101_1x64d", "X101_32x4d")
ITERATIONS, STOPPED_AT = 20, 13
SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.PRECISION": "auto",
    "INPUT.MIN_SIZE_TRAIN": "(128,)",
    "INPUT.MIN_SIZE_TEST": 128,
    "DATASETS.TRAIN": "('table8_train',)",
    "DATASETS.TEST": "('table8_val',)",
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.CHECKPOINT_PERIOD": 10,
    "SOLVER.CLIP_GRADIENTS.ENABLED": True,  # untrained weights have gradients without measure
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 0.01,
    "SOLVER.CHECKPOINTS_TO_KEEP": 1,
    **{
        f"SOLVER.{stage}.{key}": value
        for stage in ("RPN", "FAST_RCNN")
        for key, value in {
            "IMS_PER_BATCH": 1,
            "REFERENCE_BATCH": 0,
            "MAX_ITER": ITERATIONS,
            "STEPS": "()",
            "BASE_LR": 0.0001,
        }.items()
    },
}


def write_weights(name, path):
    """Classification weights of the row's network: random ones, with statistics of their own.

    Frozen norms without statistics would let the features of 101 layers grow beyond all numbers.
    """
    torch.manual_seed(0)
    architecture = Architecture.from_name(name)
    trunk = build_resnext(**architecture.as_dict(), num_classes=10)
    for norm in trunk.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.momentum = None  # the plain mean of the batches
    with torch.no_grad():
        trunk.train()(torch.randn(8, 3, 96, 96))
    record = WeightsRecord(
        kind="classification",
        architecture=architecture.as_dict(),
        pixel_format="RGB",
        pixel_mean=list(IMAGENET_MEAN),
        pixel_std=list(IMAGENET_STD),
    )
    save_weights(path, trunk.state_dict(), record)


def config(name, data, folder, weights):
    values = {
        **SMALL,
        "MODEL.WEIGHTS": weights,
        "DATASETS.COCO_JSON": [
            [f"table8_{split}", f"{data}/annotations/{split}.json", f"{data}/{split}"]
            for split in ("train", "val")
        ],
        "OUTPUT_DIR": folder,
    }
    words = [str(word) for pair in values.items() for word in pair]
    return load_cfg(CONFIGS / f"faster_rcnn_{name}.yaml", words)


@pytest.mark.parametrize("name", TABLE_8)
def test_it_trains_resumes_and_evaluates(demo_set, tmp_path, monkeypatch, name):
    torch.set_num_threads(2)
    start = tmp_path / "start.safetensors"
    write_weights(name, start)
    step = Trainer.run_step

    def stopping(self):
        if self.iter == STOPPED_AT:
            raise KeyboardInterrupt
        step(self)

    for resume in (False, True):  # each stage is stopped once
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Trainer, "run_step", stopping)
            pipeline.run(config(name, demo_set, tmp_path, start), resume=resume)
        if not resume:
            pipeline.run(config(name, demo_set, tmp_path, start), resume=True, only="rpn")
    pipeline.run(config(name, demo_set, tmp_path, start), resume=True)
    for stage, losses in (
        ("rpn", {"loss_rpn_cls", "loss_rpn_loc"}),
        ("fast_rcnn", {"loss_cls", "loss_box_reg"}),
    ):
        metrics = read_metrics(tmp_path / stage / "metrics.json")
        assert losses < set(metrics)
        assert metrics["total_loss"][0][-1] == ITERATIONS - 1
    record = read_record(tmp_path / "model_final.safetensors")
    assert record.kind == "detector"
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["proposals"]["AR@1000"] >= 0 and "AP50" in results["bbox"]
    final = str(tmp_path / "model_final.safetensors")
    again = config(name, demo_set, tmp_path / "again", start)
    pipeline.evaluate_only(pipeline.evaluation_cfg(again, final), final)
    assert json.loads((tmp_path / "again" / "results.json").read_text()) == results
