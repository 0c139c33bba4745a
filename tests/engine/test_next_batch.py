"""Guard what a training keeps that gets no next batch: the last whole iteration's state."""

import signal

import pytest
import torch
from detectron2.utils import comm
from torch import nn

from resnext_det.config import get_cfg
from resnext_det.engine.trainer import REMEMBERED, Trainer
from resnext_det.errors import InputError, Interrupted

LOST = InputError("DATALOADER.NUM_WORKERS", "data worker 7 was killed", "set it lower")


class Network(nn.Module):
    """Its one parameter falls by one a step, until a batch spoils it."""

    def __init__(self, spoiled=None):
        super().__init__()
        self.weight, self.spoiled, self.seen = nn.Parameter(torch.zeros(1)), spoiled, []

    def forward(self, batch):
        self.seen.append(batch)
        return {"loss": self.weight.sum() * (float("nan") if batch == self.spoiled else 1.0)}


def config(folder, **solver):
    cfg = get_cfg()
    cfg.OUTPUT_DIR, cfg.SEED, cfg.MODEL.DEVICE = str(folder), 0, "cpu"
    cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD = 1.0, 10, 4
    cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.STEPS, cfg.SOLVER.MOMENTUM = 0, (), 0.0
    cfg.SOLVER.WEIGHT_DECAY = 0.0
    for key, value in solver.items():
        cfg.SOLVER[key] = value
    return cfg


def until(stop, happens=lambda: None):
    """Batches 0, 1, .. until ``stop``, in whose place the refusal comes."""

    def batches(start):
        for number in range(start, 10**6):
            if number == stop:
                happens()
                raise LOST
            yield number

    return batches


def saved(folder):
    return sorted(int(path.stem[6:]) for path in folder.glob("model_0??????.pth"))


def fit(folder, batches, resume=False, network=None, **solver):
    network = network or Network()
    Trainer(config(folder, **solver), network, batches).fit(resume)
    return network


def test_the_last_whole_iteration_is_saved(tmp_path, caplog):
    with caplog.at_level("INFO"), pytest.raises(InputError, match="data worker 7 was killed"):
        fit(tmp_path, until(6))
    assert saved(tmp_path) == [3, 5]
    assert "no batch for the next iteration: --resume goes on behind 5" in caplog.text
    assert "Exception during training" not in caplog.text
    resumed = fit(tmp_path, until(None), resume=True)
    assert resumed.seen == [6, 7, 8, 9]
    assert float(resumed.weight.detach()) == float(
        fit(tmp_path / "whole", until(None)).weight.detach()
    )


def test_nothing_is_saved_before_a_step(tmp_path):
    with pytest.raises(InputError):
        fit(tmp_path, until(0))
    assert saved(tmp_path) == []


def test_nothing_is_saved_in_the_midst_of_an_update(tmp_path):
    """The first of its batches has moved the norms' statistics already."""
    with pytest.raises(InputError):
        fit(tmp_path, until(11), ACCUMULATE=2)
    assert saved(tmp_path) == [3]


def test_weights_that_a_loss_has_spoiled_are_not_saved(tmp_path):
    with pytest.raises(InputError, match="became infinite or no number at iteration 5"):
        fit(tmp_path, until(6), network=Network(spoiled=5))
    assert saved(tmp_path) == [3]


def test_one_of_several_processes_saves_and_asks_no_other(tmp_path, monkeypatch):
    def as_one_of_two():
        monkeypatch.setattr(comm, "get_world_size", lambda: 2)
        monkeypatch.setattr(comm, "all_gather", lambda _: pytest.fail("it waits for the other"))

    with pytest.raises(InputError):
        fit(tmp_path / "a", until(6, as_one_of_two))
    assert saved(tmp_path / "a") == [3, 5]
    monkeypatch.undo()
    network = Network()

    def spoil():
        as_one_of_two()
        network.weight.data.fill_(float("nan"))

    with pytest.raises(InputError, match="data worker 7"):
        fit(tmp_path / "b", until(6, spoil), network=network)
    assert saved(tmp_path / "b") == [3]


def test_a_stop_that_reached_the_workers_too_is_a_stop(tmp_path):
    with pytest.raises(Interrupted, match="saved iteration 5; the same command"):
        fit(tmp_path, until(6, lambda: signal.raise_signal(signal.SIGTERM)))
    assert saved(tmp_path) == [3, 5]


def test_figures_in_memory_are_bounded(tmp_path):
    trainer = Trainer(config(tmp_path, MAX_ITER=1), Network(), until(None))
    trainer.fit(resume=False)
    history = trainer.storage.histories()["a new figure"]
    for value in range(REMEMBERED + 5):
        history.update(float(value))
    assert len(history.values()) == REMEMBERED and history.latest() == REMEMBERED + 4
