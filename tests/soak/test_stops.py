"""Guard what a stop leaves behind, at the moments that are too short to be hit from outside.

The last step, the last evaluation, an evaluation that ends a run early, a step whose figures have
just been written; half-written files; checkpoints of many interruptions.
"""

import logging
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from resnext_det.config import get_cfg
from resnext_det.detection import pipeline, stage_files
from resnext_det.engine import checkpoint
from resnext_det.engine.checkpoint import remove_leftovers
from resnext_det.engine.trainer import Trainer
from resnext_det.errors import InputError, Interrupted

sys.path.insert(0, str(Path(__file__).parents[1] / "field"))
from tiny_sets import make_cfg, plain_set  # noqa: E402

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Network(nn.Module):
    """Its one parameter falls by one a step; something may happen in a step."""

    def __init__(self, happens):
        super().__init__()
        self.weight, self.happens, self.steps = nn.Parameter(torch.zeros(1)), happens, []

    def forward(self, iteration):
        self.steps.append(iteration)
        loss = self.weight.sum()
        if (happens := self.happens.get(iteration)) is not None:
            loss = loss * (happens() or 1.0)
        return {"loss": loss}


def ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def train(folder, *, resume=False, iterations=10, in_step=(), in_evaluation=(), **keys):
    """Evaluated every second iteration: AP is what ``figures`` says, or the number of steps done.

    Args:
        in_step, in_evaluation: {iteration: what happens there}.

    Returns:
        The steps done and the steps behind which it was evaluated.
    """
    cfg, network, seen = get_cfg(), Network(dict(in_step)), []
    cfg.OUTPUT_DIR, cfg.SEED, cfg.MODEL.DEVICE = str(folder), 0, "cpu"
    cfg.SOLVER.BASE_LR, cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.STEPS = 1.0, 0, ()
    cfg.SOLVER.MOMENTUM, cfg.SOLVER.WEIGHT_DECAY = 0.0, 0.0
    cfg.SOLVER.MAX_ITER = iterations
    cfg.SOLVER.CHECKPOINT_PERIOD = keys.get("period", 3)
    cfg.SOLVER.EARLY_STOP = keys.get("patience", 0)
    figures = keys.get("figures", {})

    def evaluate():
        step = round(-float(network.weight.detach()))
        seen.append(step)
        dict(in_evaluation).get(step, lambda: None)()
        return {"bbox": {"AP": figures.get(step, step)}}

    train.last = network.steps, seen
    trainer = Trainer(
        cfg,
        network,
        lambda start: iter(range(start, 10**6)),
        evaluate=evaluate,
        eval_period=2,
        best="bbox/AP",
    )
    trainer.fit(resume)
    return train.last


def numbered(folder):
    return sorted(int(path.stem[6:]) for path in folder.glob("model_0??????.pth"))


@pytest.fixture(autouse=True)
def handlers():
    """The tests' own handlers, which each run must give back.

    Python's for SIGINT: a shell's background jobs ignore it.
    """
    own = signal.signal(signal.SIGINT, signal.default_int_handler)
    before = [signal.getsignal(number) for number in SIGNALS]
    yield before
    assert [signal.getsignal(number) for number in SIGNALS] == before
    signal.signal(signal.SIGINT, own)


# ---- the end of a run ----


@pytest.mark.parametrize("stopped", [False, True], ids=["in one go", "resumed at its end"])
def test_the_last_evaluation_is_stopped_at_once(tmp_path, stopped, handlers):
    """All is saved by then: a signal is not kept until the evaluation is over, and not lost."""

    def look():
        assert [signal.getsignal(number) for number in SIGNALS] == handlers
        ctrl_c()

    for _ in range(1 + stopped):
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, resume=True, in_evaluation={10: look})
        assert train.last[1][-1] == 10
    assert train(tmp_path, resume=True) == ([], [10])


def test_a_run_stopped_in_its_last_step_is_not_evaluated_first(tmp_path):
    with pytest.raises(Interrupted, match="saved iteration 9"):
        train(tmp_path, in_step={9: ctrl_c})
    assert train.last[1] == [2, 4, 6, 8]
    assert train(tmp_path, resume=True) == ([], [10])


def test_weights_that_the_last_step_spoiled_are_not_evaluated(tmp_path):
    with pytest.raises(InputError, match="at iteration 9"):
        train(tmp_path, in_step={9: lambda: float("nan")})
    assert train.last[1] == [2, 4, 6, 8]


def test_a_signal_in_the_evaluation_that_ends_a_run_early(tmp_path):
    """The next stage does not begin: the signal was meant for the run."""
    keys = {"figures": {2: 5, 4: 4, 6: 3}, "patience": 2}
    with pytest.raises(Interrupted, match="--resume goes on"):
        train(tmp_path, in_evaluation={6: ctrl_c}, **keys)
    assert train(tmp_path, resume=True, **keys) == ([3, 4, 5], [4, 6])


def test_a_run_made_longer_goes_on_from_its_best_weights(tmp_path):
    """Saved behind the last step, they are of that step: none is left out."""
    train(tmp_path)
    assert train(tmp_path, resume=True, iterations=13)[0] == [10, 11, 12]
    assert numbered(tmp_path)[-1] == 11


# ---- the middle ----


def test_a_stop_behind_a_step_that_has_just_been_written(tmp_path):
    """Detectron2's estimate of the time left divides by the steps since it last wrote."""
    with pytest.raises(Interrupted, match="saved iteration 1;"):
        train(tmp_path, in_step={1: ctrl_c})
    steps, seen = train(tmp_path, resume=True)
    assert (steps[0], seen) == (2, [4, 6, 8, 10])


def test_what_a_stop_waits_for_is_said_once(tmp_path, caplog):
    with caplog.at_level(logging.WARNING), pytest.raises(Interrupted, match="saved iteration 3;"):
        train(tmp_path, in_evaluation={4: ctrl_c})
    (said,) = [line for line in caplog.messages if "SIGINT" in line]
    assert "the run stops after iteration 3 and what is measured behind it" in said
    assert train(tmp_path, resume=True)[1] == [6, 8, 10]  # that of step 4 was not cut off


def test_the_second_signal_ends_it_now(tmp_path):
    with pytest.raises(KeyboardInterrupt) as caught:
        train(tmp_path, in_step={4: lambda: (ctrl_c(), ctrl_c(), 1.0)[2]})
    assert not isinstance(caught.value, Interrupted)
    assert train(tmp_path, resume=True)[0][0] == 4  # from model_best.pth of the step before


def test_checkpoints_of_many_stops_do_not_pile_up(tmp_path):
    for stop in (4, 5, 7):
        with pytest.raises(Interrupted):
            train(tmp_path, resume=True, in_step={stop: ctrl_c}, iterations=20, period=9)
    assert numbered(tmp_path) == [4, 5, 7]  # the last stop's, and the two that are kept
    train(tmp_path, resume=True, iterations=20, period=9)
    assert numbered(tmp_path) == [8, 17]


def test_checkpoints_that_cannot_be_read_do_not_cost_a_good_one(tmp_path):
    train(tmp_path, iterations=9)
    for name in ("model_best.pth", "model_final.pth"):
        (tmp_path / name).unlink()
    good = numbered(tmp_path)
    for number in (9, 10, 11):
        (tmp_path / f"model_{number:07d}.pth").write_bytes(b"half")
    (tmp_path / "model_0_of_mine.pth").write_bytes(b"half")
    with pytest.raises(Interrupted):
        train(tmp_path, resume=True, in_step={9: ctrl_c}, period=100)
    assert set(good) < set(numbered(tmp_path))
    assert (tmp_path / "model_0_of_mine.pth").exists()


# ---- half-written files ----

HALF = (
    ".model_0000004.pth.tmp",
    ".model_best.pth.tmp",
    ".model_final.safetensors.4711.tmp",
    ".train.safetensors.4711.tmp",
    ".results.json.tmp",
    ".run.json.tmp",
    ".last_checkpoint.tmp",
)
OTHERS = ("model_0000004.pth", ".hidden.tmp", ".model_final.safetensors.bak", "mine.tmp")


def test_half_written_files_go_and_others_stay(tmp_path, caplog):
    for name in (*HALF, *OTHERS):
        (tmp_path / name).write_text("x")
    (tmp_path / "train.safetensors.parts").mkdir()
    (tmp_path / "train.safetensors.parts" / "0.boxes").write_text("x")
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / ".results.json.tmp").write_text("x")  # another run's
    with caplog.at_level(logging.INFO, logger=checkpoint.__name__):
        remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*OTHERS, "eval"}
    assert (tmp_path / "eval" / ".results.json.tmp").exists()
    assert len(caplog.messages) == len(HALF) + 1
    remove_leftovers(tmp_path / "not made yet")


@pytest.mark.parametrize("stage", ["rpn", "proposals", "fast_rcnn"])
def test_a_finished_stage_is_rid_of_them_too(tmp_path, monkeypatch, stage):
    """A process can be killed between the file that ends a stage and what it cleans up after."""
    monkeypatch.setattr(stage_files, "check_proposals", lambda _: None)
    monkeypatch.setattr(stage_files, "check_unchanged", lambda *_: None)
    cfg = make_cfg(tmp_path / "run", [("a", plain_set(tmp_path), tmp_path)])
    final = stage_files.stage_file(cfg, stage)
    (final.parent / "train.safetensors.parts").mkdir(parents=True)
    (final.parent / f".{final.name}.12.tmp").touch()
    final.touch()
    pipeline._run_stage(cfg, stage, resume=True)
    assert list(final.parent.iterdir()) == [final]
