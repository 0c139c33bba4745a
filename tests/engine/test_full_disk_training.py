"""Guard what a training does when a disk takes no more: one line, and all that was saved stays."""

import logging
import os
import signal
import threading

import pytest
import torch
from tensorboard.summary.writer import event_file_writer
from torch import nn

from resnext_det.config import get_cfg
from resnext_det.engine.trainer import Trainer
from resnext_det.errors import InputError, exit_cleanly

FULL, STEPS = "/dev/full", 9


class Network(nn.Module):
    """Its weights go their own way with each step's number."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(5))

    def forward(self, iteration):
        return {"loss": (self.weight * torch.arange(5) * iteration).cos().sum()}


def train(folder, resume=False):
    """The weights behind the last step."""
    cfg, network = get_cfg(), Network()
    cfg.OUTPUT_DIR, cfg.SEED, cfg.MODEL.DEVICE = str(folder), 0, "cpu"
    cfg.SOLVER.BASE_LR, cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.STEPS = 0.1, 0, (5,)
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD = STEPS, 2
    cfg.SOLVER.CHECKPOINTS_TO_KEEP = 2
    Trainer(cfg, network, lambda start: iter(range(start, 10**6))).fit(resume)
    return network.weight.detach()


def aside(folder, name):
    """Where this process will write a file first."""
    return folder / f".{name}.{os.getpid()}.tmp"


def numbered(folder):
    return {path.name: path.read_bytes() for path in folder.glob("model_*.pth")}


@pytest.fixture
def full_events(monkeypatch):
    """TensorBoard's files on a device that is full; their names, as they are opened."""
    names, real = [], event_file_writer.tf.io.gfile.GFile

    class Full(real):
        def __init__(self, name, mode):
            names.append(name)
            super().__init__(FULL, mode)

    monkeypatch.setattr(event_file_writer.tf.io.gfile, "GFile", Full)
    return names


@pytest.mark.parametrize("name", ["model_0000005.pth", "last_checkpoint", "model_final.pth"])
def test_a_checkpoint_that_does_not_fit(tmp_path, name, caplog):
    """Weights are those of a run that nothing disturbed, to the bit."""
    whole = train(tmp_path / "whole")
    folder = tmp_path / "run"
    folder.mkdir()
    aside(folder, name).symlink_to(FULL)
    with caplog.at_level(logging.INFO), pytest.raises(InputError) as caught:
        train(folder)
    said = f"{folder / name}: cannot be written (No space left on device); free some space"
    assert str(caught.value).startswith(said)
    assert not [record for record in caplog.records if record.exc_info]  # Detectron2's traceback
    assert not list(folder.glob(".*.tmp"))
    kept = {"model_0000005.pth": {"model_0000001.pth", "model_0000003.pth"}}
    kept |= {"last_checkpoint": {"model_0000001.pth"}}
    kept |= {"model_final.pth": {"model_0000005.pth", "model_0000007.pth"}}
    assert set(numbered(folder)) == kept[name]
    assert torch.equal(train(folder, resume=True), whole)
    assert set(numbered(folder)) == set(numbered(tmp_path / "whole"))


def test_metrics_that_do_not_fit(tmp_path, caplog):
    (tmp_path / "metrics.json").symlink_to(FULL)
    with caplog.at_level(logging.INFO), pytest.raises(InputError) as caught:
        train(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'metrics.json'}: cannot be written (No space")
    assert not [record for record in caplog.records if record.exc_info]
    (tmp_path / "metrics.json").unlink()
    assert torch.equal(train(tmp_path, resume=True), train(tmp_path / "whole"))


def test_metrics_that_cannot_be_opened(tmp_path):
    (tmp_path / "metrics.json").mkdir()
    with pytest.raises(InputError, match=r"metrics.json: cannot be written \(Is a directory\)"):
        train(tmp_path)


def test_events_that_do_not_fit(tmp_path, full_events, capfd):
    """They are written by a thread of TensorBoard's, whose traceback nobody needs."""
    with pytest.raises(SystemExit) as caught:
        exit_cleanly(lambda: train(tmp_path))()
    said = capfd.readouterr().err
    assert caught.value.code == 2
    assert said.startswith(f"error: {tmp_path / 'events.out.*'}: cannot be written (No space left")
    assert said.count("\n") == 1 and len(full_events) == 1


def test_a_thread_of_others_keeps_its_traceback(capfd):
    def fail():
        raise OSError(28, "No space left on device")

    def tool():
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()

    before = threading.excepthook
    exit_cleanly(tool)()
    assert "Traceback" in capfd.readouterr().err
    assert threading.excepthook is before


def test_the_run_gives_its_signals_back(tmp_path):
    """A library's user goes on after it."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    (tmp_path / "metrics.json").symlink_to(FULL)
    with pytest.raises(InputError):
        train(tmp_path)
    assert [signal.getsignal(number) for number in numbers] == before
