"""Guard exact resume and equal processes of tools/pretrain_imagenet.py, in real processes.

A few dozen images of 32 pixels and a network of 0.02 M parameters: what is compared is whole runs.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resnext_det.plots import read_metrics
from resnext_det.weights import read_weights

ROOT = Path(__file__).parents[2]
TOOL = [str(ROOT / "tools" / "pretrain_imagenet.py")]
TOOL += ["--config-file", str(ROOT / "configs" / "demo" / "classification.yaml")]
ITERATIONS = 100
CLASSES, TRAIN, VAL = ("blue", "green", "red"), 8, (5, 5, 3)  # images a class; 13 are odd
TINY = {
    "MODEL.DEVICE": "cpu",
    "MODEL.PRECISION": "fp32",
    "MODEL.RESNETS.NUM_GROUPS": 4,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.RESNETS.WIDTH_MULTIPLIER": 0.125,
    "DATA.CROP_SIZE": 32,
    "DATA.RESIZE_SIZE": 32,
    "DATA.MIN_CROP_AREA": 0.3,
    "DATA.TEST_BATCH_SIZE": 4,
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 8,
    "SOLVER.MAX_EPOCHS": 0.0,
    "SOLVER.MAX_ITER": ITERATIONS,
    "SOLVER.BASE_LR": 0.05,
    "SOLVER.WARMUP_ITERS": 5,
    "SOLVER.CHECKPOINT_PERIOD": 3,
    "TEST.EVAL_PERIOD": 0,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Noise of 32 pixels with a tint that tells the class, but not every time."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        for split, images in (("train", TRAIN), ("val", VAL[label])):
            (root / split / name).mkdir(parents=True)
            for number in range(images):
                pixels = rng.integers(0, 200, (32, 32, 3))
                pixels[:, :, 2 - label] += rng.integers(0, 56)
                image = Image.fromarray(pixels.astype(np.uint8))
                image.save(root / split / name / f"{number}.png")
    return root


def start(data, folder, *flags, launcher=(), **others):
    """The tool as a process of one thread, on the CPU, without torchrun's variables."""
    values = {"DATA.ROOT": data, "OUTPUT_DIR": folder, **TINY, **others}
    words = [str(word) for pair in values.items() for word in pair]
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    return subprocess.Popen(
        [sys.executable, *launcher, *TOOL, *flags, *words],
        env={
            **environment,
            "PYTHONPATH": str(ROOT),
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process):
    """Standard output and error of a process that must succeed."""
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return output, errors


def weights(folder):
    return read_weights(folder / "model_final.safetensors")[0]


# ---- stopped at any moment ----


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    end(start(data, folder))
    return folder


def saved_iteration(folder):
    """The newest checkpoint's iteration, -1 for none."""
    names = [path.stem.removeprefix("model_") for path in folder.glob("model_???????.pth")]
    return max(map(int, names), default=-1)


def is_training(folder):
    log = folder / "log.txt"
    return log.exists() and "Starting training" in log.read_text()


def stop(process, folder, number, draw):
    """Send a signal at a drawn moment of the first half of the training."""
    iteration = draw.randrange(-1, ITERATIONS // 2)
    while not is_training(folder) or saved_iteration(folder) < iteration:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    time.sleep(draw.uniform(0, 0.1))
    process.send_signal(number)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_stopped_at_any_moment_and_resumed(data, whole, tmp_path, number):
    """Weights and results to the bit; a kill leaves time for nothing, the others for a save."""
    process = start(data, tmp_path)
    stop(process, tmp_path, number, random.Random(int(number)))
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == (-number if number == signal.SIGKILL else 130), errors
    assert not (tmp_path / "results.json").exists()
    saved = saved_iteration(tmp_path)
    assert saved < ITERATIONS - 1
    if number != signal.SIGKILL:
        assert f"stopped: saved iteration {saved};" in errors
    output, _ = end(start(data, tmp_path, "--resume"))
    assert (f"going on at iteration {saved + 1} of {ITERATIONS}" in output) == (saved >= 0)
    ours, theirs = weights(tmp_path), weights(whole)
    assert ours.keys() == theirs.keys()
    for key in ours:
        assert torch.equal(ours[key], theirs[key]), key
    assert (tmp_path / "results.json").read_bytes() == (whole / "results.json").read_bytes()


# ---- two processes ----


def test_two_processes_are_one(data, tmp_path):
    """Equal batches are dealt to two processes: losses, weights and the error are those of one.

    Only where no layer's statistics are of a process's share of the batch, so not with BN, and
    gloo has no SyncBN: LN's are of one image. The 13 validation images leave one process with 7
    and the other with 6 (an even number: tests/classification/test_trainer.py).
    """
    launcher = ["-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
    launcher += ["--nproc-per-node", "2"]
    others = {"MODEL.RESNETS.NORM": "LN", "SOLVER.MAX_ITER": 25}
    end(start(data, tmp_path / "one", **others))
    end(start(data, tmp_path / "two", launcher=launcher, **others))
    results = [(tmp_path / name / "results.json").read_text() for name in ("one", "two")]
    assert results[0] == results[1]
    assert 0 < json.loads(results[0])["classification"]["top1_error"] < 100
    losses = [
        read_metrics(tmp_path / name / "metrics.json")["total_loss"] for name in ("one", "two")
    ]
    assert losses[0][0] == losses[1][0] and len(losses[0][0]) == 2
    np.testing.assert_allclose(losses[1][1], losses[0][1], rtol=1e-4)
    ours, theirs = weights(tmp_path / "two"), weights(tmp_path / "one")
    for key in ours:
        # Sums of other orders, carried through 25 steps; another seed differs by 2.
        torch.testing.assert_close(ours[key], theirs[key], rtol=0, atol=1e-3)
