"""Guard the baseline with shared features, and the systems beyond the paper: FPN and masks."""

import pytest
import torch
from detectron2.modeling import build_model
from test_pipeline import refusal, results_of
from tiny import ITERATIONS, make_cfg, write_start_weights

from resnext_det.config import load_cfg, stage_cfg
from resnext_det.detection import pipeline, stage_files
from resnext_det.detection.detector import load_detector
from resnext_det.detection.proposals import read_rpn
from resnext_det.engine.trainer import Trainer
from resnext_det.plots import read_metrics
from resnext_det.weights import read_weights

SHARED = {"MODEL.META_ARCHITECTURE": "SharedRCNN"}


@pytest.fixture(scope="module")
def start_weights(tmp_path_factory):
    return write_start_weights(tmp_path_factory.mktemp("classification"))


@pytest.fixture(scope="module")
def shared(demo_set, start_weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    pipeline.run(make_cfg(demo_set, folder, start_weights, **SHARED), resume=False)
    return folder


def test_one_line_makes_it_shared(shared):
    assert {path.name for path in shared.iterdir() if path.is_dir()} == {
        "joint",
        "inference",
        "pictures",
    }
    metrics = read_metrics(shared / "joint" / "metrics.json")
    assert {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"} < set(metrics)
    assert metrics["total_loss"][0][-1] == ITERATIONS["joint"] - 1
    assert set(results_of(shared)) == {"bbox", "proposals"}
    assert (shared / "pictures" / "curves.png").exists()


def test_it_has_one_trunk(shared):
    tensors, record = read_weights(shared / "model_final.safetensors")
    assert record.kind == "detector"
    assert sum(name.endswith("stem.conv1.weight") for name in tensors) == 1
    model, _ = load_detector(shared / "model_final.safetensors")
    assert type(model).__name__ == "SharedRCNN"


def test_its_outputs_have_the_form_of_two_networks(shared):
    model, cfg = load_detector(shared / "model_final.safetensors")
    (output,) = model([{"image": torch.zeros(3, 96, 120, dtype=torch.uint8), "height": 48}])
    assert set(output) == {"instances", "proposals"}
    assert output["instances"].image_size == (48, 120)
    assert len(output["proposals"]) <= cfg.TEST.PROPOSALS_TOPK


def test_the_rpn_decodes_boxes_in_joint_training(demo_set, start_weights, tmp_path):
    """The non-shared one makes none, for nothing would use them."""
    cfg = make_cfg(demo_set, tmp_path, start_weights, **SHARED)
    names = [type(build_model(stage_cfg(cfg, s)).proposal_generator) for s in ("rpn", "joint")]
    assert [name.__name__ for name in names] == ["NonSharedRPN", "BoundedRPN"]


def test_resume_is_exact(demo_set, start_weights, shared, tmp_path, monkeypatch):
    """Stopped in the third step, after the checkpoint of the second."""
    step = Trainer.run_step

    def run_step(self):
        if self.iter == 2:
            raise KeyboardInterrupt
        step(self)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "run_step", run_step)
        pipeline.run(make_cfg(demo_set, tmp_path, start_weights, **SHARED), resume=False)
    pipeline.run(make_cfg(demo_set, tmp_path, start_weights, **SHARED), resume=True)
    ours, theirs = (read_weights(f / "model_final.safetensors")[0] for f in (tmp_path, shared))
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name
    assert results_of(tmp_path) == results_of(shared)


@pytest.mark.parametrize(
    ("values", "only", "words"),
    [
        (SHARED, "rpn", ("no stage rpn", "joint, eval")),
        ({}, "joint", ("no stage joint", "fast_rcnn")),
        ({"MODEL.META_ARCHITECTURE": "GeneralizedRCNN"}, None, ("META_ARCHITECTURE", "SharedRCNN")),
        (SHARED, "eval", ("joint/model_final.safetensors",)),
    ],
)
def test_stages_that_there_are_not(demo_set, start_weights, tmp_path, values, only, words):
    cfg = make_cfg(demo_set, tmp_path, start_weights, **values)
    refusal(lambda: pipeline.run(cfg, resume=False, only=only), *words)


def test_a_shared_detector_has_no_rpn_to_propose_with(shared):
    refusal(lambda: read_rpn(shared / "model_final.safetensors"), "shared features")


def test_stages_of_both():
    cfg = load_cfg("")
    cfg.MODEL.META_ARCHITECTURE = "NonSharedRCNN"
    assert stage_files.stages_of(cfg) == ("rpn", "proposals", "fast_rcnn", "eval")
    cfg.MODEL.META_ARCHITECTURE = "SharedRCNN"
    assert stage_files.stages_of(cfg) == ("joint", "eval")
