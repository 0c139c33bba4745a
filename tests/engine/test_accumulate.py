"""Guard SOLVER.ACCUMULATE: parts in turn are one step of the whole batch, in one process or two.

As a script, ``torchrun --nproc-per-node 2 test_accumulate.py FOLDER``, it is one of two processes.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from detectron2.utils import comm
from torch import nn

from resnext_det.config import get_cfg
from resnext_det.engine.batch import images_per_process
from resnext_det.engine.launch import launch
from resnext_det.engine.sampler import ResumableBatches, training_loader
from resnext_det.engine.trainer import Trainer
from resnext_det.plots import read_metrics

ROOT = Path(__file__).parents[2]
SIZE, ITERATIONS = 24, 6


class Network(nn.Module):
    """Without batch norm, whose statistics are of a part; it notes what it is given."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4)).double()
        self.seen = []

    def forward(self, batch):
        self.seen.append(batch["index"].tolist())
        logits = self.layers(batch["x"])
        return {
            "loss_cls": F.cross_entropy(logits, batch["label"]),
            "loss_size": 0.1 * logits.square().mean(),
        }


def read(index):
    generator = torch.Generator().manual_seed(index)
    return index, torch.randn(3, dtype=torch.float64, generator=generator), index % 4


def collate(samples):
    index, x, label = zip(*samples, strict=True)
    return {"index": torch.tensor(index), "x": torch.stack(x), "label": torch.tensor(label)}


def config(folder, parts, iterations=ITERATIONS):
    cfg = get_cfg()
    cfg.OUTPUT_DIR, cfg.SEED, cfg.MODEL.DEVICE = str(folder), 3, "cpu"
    solver = cfg.SOLVER
    solver.IMS_PER_BATCH, solver.ACCUMULATE, solver.MAX_ITER = 8, parts, iterations
    solver.BASE_LR, solver.NESTEROV, solver.WEIGHT_DECAY = 0.2, True, 1e-3
    solver.WARMUP_ITERS, solver.STEPS = 0, (4,)
    return cfg


def run(folder, parts, iterations=ITERATIONS, resume=False):
    """(network after the run, numbers of batches that were skipped at its start)."""
    cfg, network, starts = config(folder, parts, iterations), Network(), []

    def build_loader(start):
        starts.append(start)
        batches = ResumableBatches(SIZE, images_per_process(cfg), cfg.SEED, start=start)
        return training_loader(read, batches, num_workers=0, collate=collate)

    Trainer(cfg, network, build_loader).fit(resume)
    return network, starts


def assert_same(found, expected, atol):
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value, rtol=0, atol=atol)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return run(folder, parts=1)[0], folder


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_parts_equal_the_whole_batch(whole, tmp_path, parts):
    network, starts = run(tmp_path, parts)
    assert starts == [0]
    assert_same(network, whole[0], atol=1e-12)
    assert (network.layers[0].weight - Network().layers[0].weight).abs().max() > 0.05  # it learned


@pytest.mark.parametrize("parts", [2, 4])
def test_batches_are_taken_in_order_and_none_twice(whole, tmp_path, parts):
    network, _ = run(tmp_path, parts)
    assert len(network.seen) == parts * ITERATIONS
    assert {len(batch) for batch in network.seen} == {8 // parts}
    assert sum(network.seen, []) == sum(whole[0].seen, [])
    assert sorted(sum(network.seen, [])[:SIZE]) == list(range(SIZE))  # an epoch is an epoch


def test_the_loss_in_the_log_is_of_the_whole_batch(whole, tmp_path):
    run(tmp_path, parts=4)
    found, expected = (read_metrics(folder / "metrics.json") for folder in (tmp_path, whole[1]))
    for name in ("total_loss", "loss_cls", "loss_size"):
        assert found[name][0] == expected[name][0]
        assert found[name][1] == pytest.approx(expected[name][1], rel=1e-12)
    assert "data_time" in found


def test_resume_is_exact(tmp_path):
    undisturbed, _ = run(tmp_path / "whole", parts=2)
    first, _ = run(tmp_path / "stopped", parts=2, iterations=3)
    second, starts = run(tmp_path / "stopped", parts=2, resume=True)
    assert starts == [6]  # batches, of which an iteration takes two
    assert first.seen + second.seen == undisturbed.seen
    for name, value in undisturbed.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name


def test_a_run_may_be_resumed_with_other_parts(whole, tmp_path):
    """On a machine with less memory, say."""
    run(tmp_path, parts=1, iterations=3)
    network, starts = run(tmp_path, parts=4, resume=True)
    assert starts == [12]
    assert_same(network, whole[0], atol=1e-12)


def one_of_two(args):
    network, _ = run(args.folder / "run", parts=2)
    torch.save(network.state_dict(), args.folder / f"{comm.get_rank()}.pth")


def test_two_processes_equal_one(whole, tmp_path):
    """Four shares of two images each: gradients are exchanged once an update, and are the mean."""
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", __file__, str(tmp_path)]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in (0, 1))
    for name, value in whole[0].state_dict().items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value, rtol=0, atol=1e-12)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    launch(one_of_two, parser.parse_args())
