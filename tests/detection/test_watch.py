"""Guard what is measured while a network trains, and what is kept of it."""

import json

import pytest
import torch
from test_pipeline import refusal
from tiny import make_cfg, write_start_weights

from resnext_det.config import load_cfg
from resnext_det.detection import pipeline
from resnext_det.detection.detector import load_detector
from resnext_det.plots import read_metrics
from resnext_det.weights import read_weights

WATCHED = {"TEST.EVAL_PERIOD": 2, "TEST.VALIDATION_LOSS": True}


@pytest.fixture(scope="module")
def start_weights(tmp_path_factory):
    return write_start_weights(tmp_path_factory.mktemp("classification"))


@pytest.fixture(scope="module")
def runs(demo_set, start_weights, tmp_path_factory):
    """(undisturbed, watched)."""
    plain, watched = (tmp_path_factory.mktemp(name) for name in ("plain", "watched"))
    pipeline.run(make_cfg(demo_set, plain, start_weights), resume=False)
    pipeline.run(make_cfg(demo_set, watched, start_weights, **WATCHED), resume=False)
    return plain, watched


def test_watching_changes_nothing(runs):
    """Neither random numbers nor norm statistics are moved by it."""
    plain, watched = (read_weights(run / "model_final.safetensors")[0] for run in runs)
    assert plain.keys() == watched.keys()
    for name, value in plain.items():
        assert torch.equal(value, watched[name]), name
    plain, watched = ((run / "results.json").read_bytes() for run in runs)
    assert plain == watched


def test_figures_by_iteration(runs):
    _, watched = runs
    rpn = read_metrics(watched / "rpn" / "metrics.json")
    assert rpn["proposals/AR@1000"][0] == [1, 3, 5]
    assert {"validation/loss_rpn_cls", "validation/loss_rpn_loc"} < set(rpn)
    fast = read_metrics(watched / "fast_rcnn" / "metrics.json")
    assert fast["proposals/AR@1000"][0] == [1, 3, 6]
    losses = [fast[f"validation/loss_{name}"][1] for name in ("cls", "box_reg")]
    for total, *parts in zip(fast["validation/total_loss"][1], *losses, strict=True):
        assert total == pytest.approx(sum(parts)) and min(parts) > 0


def test_the_last_figure_is_the_final_ones(runs):
    """AP while training is of the whole detector, by the same code as at the end."""
    _, watched = runs
    results = json.loads((watched / "results.json").read_text())
    fast = read_metrics(watched / "fast_rcnn" / "metrics.json")
    for group, name in (("bbox", "AP50"), ("proposals", "AR@1000")):
        assert fast[f"{group}/{name}"][1][-1] == pytest.approx(results[group][name])


def test_the_best_detector_is_kept(runs):
    _, watched = runs
    best = torch.load(watched / "fast_rcnn" / "model_best.pth", weights_only=True)["model"]
    tensors, record = read_weights(watched / "model_best.safetensors")
    final, _ = read_weights(watched / "model_final.safetensors")
    assert record.kind == "detector" and tensors.keys() == final.keys()
    for name, value in best.items():
        assert torch.equal(tensors[f"fast_rcnn.{name}"], value)
    assert torch.equal(
        tensors["rpn.backbone.stem.conv1.weight"], final["rpn.backbone.stem.conv1.weight"]
    )
    load_detector(watched / "model_best.safetensors")


def test_best_weights_as_the_stages_own(demo_set, start_weights, tmp_path):
    others = {**WATCHED, "SOLVER.FINAL_WEIGHTS": "best", "TEST.VALIDATION_LOSS": False}
    pipeline.run(make_cfg(demo_set, tmp_path, start_weights, **others), resume=False)
    for stage in ("rpn", "fast_rcnn"):
        best = torch.load(tmp_path / stage / "model_best.pth", weights_only=True)["model"]
        tensors, _ = read_weights(tmp_path / stage / "model_final.safetensors")
        for name, value in best.items():
            assert torch.equal(tensors[name], value), name
    assert not (tmp_path / "model_best.safetensors").exists()  # it would be the same


def test_ap_needs_an_rpn(demo_set, start_weights, tmp_path):
    """--stage fast_rcnn on proposals of one's own, with no RPN in the folder."""
    cfg = make_cfg(demo_set, tmp_path, start_weights, **WATCHED)
    refusal(
        lambda: pipeline.run(cfg, resume=False, only="fast_rcnn"), "rpn/model_final.safetensors"
    )


@pytest.mark.parametrize(
    "opts",
    [
        ["SOLVER.EARLY_STOP", "2"],
        ["SOLVER.FINAL_WEIGHTS", "best"],
        ["SOLVER.FINAL_WEIGHTS", "final", "TEST.EVAL_PERIOD", "5"],
    ],
)
def test_keys_that_need_figures(opts):
    refusal(lambda: load_cfg("", opts), opts[0])
