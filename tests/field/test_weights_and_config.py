"""Guard what is said of weights, checkpoints and keys: which file, which iteration, what follows.

docs/field_reports.md lists what the other folders test of it.
"""

import logging
import math
import shutil

import pytest
import torch
from tiny_sets import ITERATIONS, make_cfg, plain_set, refusal

from resnext_det.config import get_cfg
from resnext_det.detection import pipeline
from resnext_det.detection.predict import Predictor
from resnext_det.engine.run import choose_device
from resnext_det.engine.trainer import Trainer
from resnext_det.errors import InputError
from resnext_det.models import build_resnext
from resnext_det.weights import WeightsRecord, save_weights

SET = "field_weights"


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    return [(SET, plain_set(folder), folder)]


@pytest.fixture(scope="module")
def trained(sets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    pipeline.run(make_cfg(folder, sets), resume=False)
    return folder


@pytest.fixture
def killed(sets, tmp_path, monkeypatch):
    """The folder of a run whose RPN was killed in iteration 5: checkpoints of 1 and 3 are there."""
    step = Trainer.run_step

    def killed_step(self):
        if self.iter == 5:
            raise MemoryError
        step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run_step", killed_step)
        with pytest.raises(MemoryError):
            pipeline.run(make_cfg(tmp_path, sets), resume=False, only="rpn")
    return tmp_path


@pytest.fixture
def rates(monkeypatch):
    """{iteration: learning rate} of the steps of a test."""
    seen, step = {}, Trainer.run_step

    def seen_step(self):
        seen[self.iter] = self.optimizer.param_groups[0]["lr"]
        step(self)

    monkeypatch.setattr(Trainer, "run_step", seen_step)
    return seen


def go_on(folder, sets, **others):
    pipeline.run(make_cfg(folder, sets, **others), resume=True, only="rpn")


# ---- no detector to score ----


def other_weights(kind, trained, folder):
    if kind == "classification":
        trunk = build_resnext("X50_32x4d", num_classes=2)
        about = {"pixel_format": "RGB", "pixel_mean": [0.0] * 3, "pixel_std": [1.0] * 3}
        about |= {"kind": kind, "class_names": ["a", "b"]}
        record = WeightsRecord(architecture=trunk.architecture.as_dict(), **about)
        save_weights(folder / "own.safetensors", trunk.state_dict(), record)
        return folder / "own.safetensors"
    if kind == "checkpoint":
        return trained / "rpn" / "model_final.pth"
    return trained / kind / "model_final.safetensors"


@pytest.mark.parametrize("kind", ["classification", "rpn", "fast_rcnn", "checkpoint"])
def test_what_is_no_detector_is_not_scored(trained, tmp_path, kind):
    """No fresh head is ever evaluated, nor half a detector asked for boxes."""
    path = other_weights(kind, trained, tmp_path)
    for call in (lambda: pipeline.evaluation_cfg(None, str(path)), lambda: Predictor(path)):
        refusal(call, f"{path}: ", "detector" if kind != "checkpoint" else "rpn")


# ---- going on ----


def test_what_is_resumed_is_said(killed, sets, caplog):
    with caplog.at_level(logging.INFO, logger="resnext_det"):
        go_on(killed, sets)
    path = killed / "rpn" / "model_0000003.pth"
    line = f"resumed from {path}: going on at iteration 4 of {ITERATIONS}"
    assert [record.message for record in caplog.records].count(line) == 1


def test_nothing_to_resume_is_said(sets, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="resnext_det"):
        go_on(tmp_path, sets)
    assert [record for record in caplog.records if str(tmp_path / "rpn") in record.message]


def test_another_rate_on_resume(killed, sets, caplog):
    """Refused, or the log says which of the two is used."""
    with caplog.at_level(logging.INFO, logger="resnext_det"):
        try:
            go_on(killed, sets, **{"SOLVER.RPN.BASE_LR": 0.03})
            lines = [record.message for record in caplog.records]
        except InputError as error:
            lines = [str(error)]
    of_both = [line for line in lines if "0.03" in line and "0.05" in line]
    assert of_both and "SOLVER.RPN.BASE_LR" in of_both[0]


def test_a_run_is_made_longer(killed, sets, rates, caplog):
    """But for the first step, which still has the stored rate, the schedule is the longer one's."""
    longer = 2 * ITERATIONS
    with caplog.at_level(logging.INFO, logger="resnext_det"):
        go_on(killed, sets, **{"SOLVER.RPN.MAX_ITER": longer})
    assert f"going on at iteration 4 of {longer}" in caplog.text
    assert sorted(rates) == list(range(4, longer))
    for iteration in range(5, longer):
        cosine = 0.025 * (1 + math.cos(math.pi * iteration / longer))
        assert rates[iteration] == pytest.approx(cosine), iteration


def test_a_finished_network_is_made_longer(trained, sets, tmp_path, rates):
    """Its file says that it is finished: without it, the run goes on from the last checkpoint."""
    folder, longer = shutil.copytree(trained, tmp_path / "copied"), ITERATIONS + 3
    key = {"SOLVER.RPN.MAX_ITER": longer}
    own = folder / "rpn" / "model_final.safetensors"
    refusal(lambda: go_on(folder, sets, **key), f"{own}: ", "MAX_ITER 9", "12")
    own.unlink()
    go_on(folder, sets, **key)
    assert sorted(rates) == [9, 10, 11] and own.exists()


# ---- what stays on disk ----


def checkpoints(folder):
    return sorted(path.name for path in (folder / "rpn").glob("model_0*.pth"))


@pytest.mark.parametrize("kept", [1, 3])
def test_few_checkpoints_stay(sets, tmp_path, kept):
    cfg = make_cfg(tmp_path, sets, **{"SOLVER.CHECKPOINTS_TO_KEEP": kept})
    pipeline.run(cfg, resume=False, only="rpn")
    newest = [f"model_{iteration:07d}.pth" for iteration in (1, 3, 5, 7)]
    assert checkpoints(tmp_path) == newest[-kept:]


def test_few_checkpoints_stay_of_a_resumed_run(killed, sets):
    go_on(killed, sets)
    assert checkpoints(killed) == ["model_0000005.pth", "model_0000007.pth"]


def test_checkpoints_are_plain_values(trained):
    """torch reads them without running code."""
    files = sorted(trained.rglob("*.pth"))
    assert len(files) >= 4
    for path in files:
        assert {"model", "trainer", "iteration"} <= set(torch.load(path, weights_only=True))


# ---- config ----


def test_no_gpu_is_said(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cfg = get_cfg()
    assert cfg.MODEL.DEVICE == "cuda"
    with caplog.at_level(logging.INFO, logger="resnext_det"):
        choose_device(cfg)
    assert cfg.MODEL.DEVICE == "cpu" and "running on the CPU" in caplog.text


def test_a_misspelt_key_set_from_python(sets, tmp_path):
    cfg = make_cfg(tmp_path, sets)
    cfg.SOLVER.BASE_LRR = 0.1
    refusal(lambda: pipeline.prepare(cfg), "SOLVER.BASE_LRR", "SOLVER.BASE_LR?")
