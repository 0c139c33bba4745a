"""Guard exact resume and equal processes of tools/pretrain_imagenet.py, in real processes.

A few dozen images of 32 pixels and a network of 0.02 M parameters: what is compared is whole runs.
"""

import json
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_classifier import TINY_CLASSIFIER

from resnext_det.plots import read_metrics
from resnext_det.weights import read_weights

ROOT = Path(__file__).parents[2]
TOOL = [str(ROOT / "tools" / "pretrain_imagenet.py")]
TOOL += ["--config-file", str(ROOT / "configs" / "demo" / "classification.yaml")]
ITERATIONS = 100
CLASSES, TRAIN, VAL = ("blue", "green", "red"), 8, (5, 5, 3)  # images a class; 13 are odd
TINY = {
    "MODEL.DEVICE": "cpu",
    **TINY_CLASSIFIER,
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


# ---- evaluations ----


def score(monkeypatch, data, trained, *opts):
    """``--eval-only`` of a run's weights in this process, which saves the seconds of imports."""
    values = {**TINY, "DATA.ROOT": data, "MODEL.WEIGHTS": trained / "model_final.safetensors"}
    del values["MODEL.PRECISION"]
    words = [str(word) for pair in values.items() for word in pair]
    monkeypatch.setattr(sys, "argv", [*TOOL, "--eval-only", *words, *map(str, opts)])
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    runpy.run_path(TOOL[0], run_name="__main__")


def read(folder, name):
    return json.loads((folder / name).read_text())


@pytest.fixture
def trained(whole, tmp_path):
    """A copy of the run, to be scored."""
    shutil.copytree(whole, tmp_path / "trained")
    return tmp_path / "trained"


FOLDERS = {
    "eval_single32": [],
    "eval_single48": ["DATA.CROP_SIZE", 48, "DATA.RESIZE_SIZE", 48],
    "eval_ten_crop32": ["DATA.TEST_PROTOCOL", "ten_crop"],
    "eval_dense": ["DATA.TEST_PROTOCOL", "dense", "DATA.TEST_SCALES", "(32, 40)"],
}


def test_an_evaluation_has_a_folder_of_its_own(monkeypatch, data, trained):
    """Beside the weights, by protocol and crop; the run that trained them stays as it is."""
    names = ("run.json", "config.yaml", "results.json")
    before = [(trained / name).read_bytes() for name in names]
    for name, opts in FOLDERS.items():
        score(monkeypatch, data, trained, *opts)
        assert read(trained / name, "run.json")["kind"] == "evaluation"
        assert f"eval_{read(trained / name, 'results.json')['evaluation']['protocol']}" in name
    assert {path.name for path in trained.glob("eval*")} == set(FOLDERS)
    assert [(trained / name).read_bytes() for name in names] == before
    error = read(trained / "eval_single32", "results.json")["classification"]
    assert error == read(trained, "results.json")["classification"]


def test_other_settings_have_another_folder(monkeypatch, data, trained):
    """The same evaluation again replaces itself; resize or arithmetic make it another."""
    kept = {}
    for name, opts in (
        ("eval_single32", []),
        ("eval_single32_2", ["DATA.RESIZE_SIZE", 40]),
        ("eval_single32_3", ["DATA.RESIZE_SIZE", 40, "MODEL.PRECISION", "bf16"]),
        ("eval_single32", []),
        ("eval_single32_2", ["DATA.RESIZE_SIZE", 40]),
    ):
        score(monkeypatch, data, trained, *opts)
        found = read(trained / name, "results.json")
        assert kept.setdefault(name, found) == found
        assert {path.name for path in trained.glob("eval*")} == set(kept)
        log = (trained / name / "log.txt").read_text()
        assert f"results: {trained / name / 'results.json'}" in log
    assert [kept[name]["evaluation"]["resize"] for name in sorted(kept)] == [32, 40, 40]


def test_without_a_config_the_weights_own_settings_hold(monkeypatch, capfd, data, trained):
    """Crops of 32 pixels, as they were trained with, and not the paper's 224."""
    weights = trained / "model_final.safetensors"
    keys = ["MODEL.WEIGHTS", weights, "DATALOADER.NUM_WORKERS", 0, "MODEL.DEVICE", "cpu"]
    monkeypatch.setattr(sys, "argv", [TOOL[0], "--eval-only", *map(str, keys)])
    runpy.run_path(TOOL[0], run_name="__main__")
    found, own = (read(f, "results.json") for f in (trained / "eval_single32", trained))
    assert found["classification"] == own["classification"]
    assert (found["evaluation"]["crop"], found["evaluation"]["resize"]) == (32, 32)
    assert f"no --config-file: settings are those stored in {weights}" in capfd.readouterr().out


def test_other_sizes_than_the_weights_are_told(monkeypatch, capfd, data, trained):
    score(monkeypatch, data, trained, "DATA.CROP_SIZE", 48, "DATA.RESIZE_SIZE", 48)
    out = capfd.readouterr().out
    assert "DATA.CROP_SIZE is 48 here, the run of these weights had 32" in out
    assert "X14_4x8d_w0.125 with 3 classes" in out


def test_scales_of_larger_networks_are_told(monkeypatch, capfd, data, trained, tmp_path):
    dense = ["DATA.TEST_PROTOCOL", "dense", "OUTPUT_DIR", tmp_path]
    score(monkeypatch, data, trained, *dense, "DATA.TEST_SCALES", (64, 96))
    out = capfd.readouterr().out
    assert "trained at 32 pixels: an image takes about 13 times a single crop's time" in out
    assert 'DATA.TEST_SCALES "(32, 48)"' in out
    score(monkeypatch, data, trained, *dense, "DATA.TEST_SCALES", (32, 48))
    assert "DATA.TEST_SCALES are" not in capfd.readouterr().out


def test_a_second_evaluation_into_one_folder(monkeypatch, data, trained, tmp_path):
    """Results, settings and command are all of the last one."""
    for size in (32, 48):
        opts = ["DATA.CROP_SIZE", size, "DATA.RESIZE_SIZE", size, "OUTPUT_DIR", tmp_path / "5"]
        score(monkeypatch, data, trained, *opts)
    assert read(tmp_path / "5", "results.json")["evaluation"]["crop"] == 48
    assert "CROP_SIZE: 48" in (tmp_path / "5" / "config.yaml").read_text()
    assert read(tmp_path / "5", "run.json")["command"].count("48") == 2


def refusal(capsys, call):
    with pytest.raises(SystemExit) as caught:
        call()
    message = capsys.readouterr().err
    assert caught.value.code == 2 and message.count("\n") == 1, message
    return message


@pytest.mark.parametrize("norm, words", [("GN", ["NORM is 'GN'", '"FrozenBN", "BN"'])])
def test_norms_that_cannot_take_the_weights(monkeypatch, capsys, data, trained, norm, words):
    opts = ["MODEL.RESNETS.NORM", norm]
    message = refusal(capsys, lambda: score(monkeypatch, data, trained, *opts))
    for word in words:
        assert word in message, message


def test_a_config_that_contradicts_the_weights(monkeypatch, capsys, data, trained):
    opts = ["MODEL.RESNETS.DEPTH", 101]
    message = refusal(capsys, lambda: score(monkeypatch, data, trained, *opts))
    assert "MODEL.RESNETS.DEPTH is 101, but" in message and "was trained with 14" in message
    assert not list(trained.glob("eval*"))


def test_not_into_the_folder_of_a_training_run(monkeypatch, capsys, data, trained):
    before = {path: path.read_bytes() for path in trained.iterdir() if path.is_file()}
    message = refusal(capsys, lambda: score(monkeypatch, data, trained, "OUTPUT_DIR", trained))
    assert f"error: {trained}: holds a training run (run.json); choose another" in message
    assert {path: path.read_bytes() for path in trained.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("given, used", [([], "fp32"), (["MODEL.PRECISION", "bf16"], "bf16")])
def test_an_evaluation_is_in_fp32_unless_asked(monkeypatch, capsys, data, trained, given, used):
    """The demo's config says "auto", as the paper's recipes here."""
    score(monkeypatch, data, trained, *given)
    folder = trained / "eval_single32"
    assert read(folder, "results.json")["evaluation"]["precision"] == used
    assert read(folder, "run.json")["precision"] == used
    log = (folder / "log.txt").read_text()
    assert ("MODEL.PRECISION fp32, as of published errors" in log) == (not given)
    assert f"; {used})" in log


# ---- what training begins with ----


def train_here(monkeypatch, data, folder, *flags, **others):
    values = {"DATA.ROOT": data, "OUTPUT_DIR": folder, **TINY, "SOLVER.MAX_ITER": 1, **others}
    words = [str(word) for pair in values.items() for word in pair]
    monkeypatch.setattr(sys, "argv", [*TOOL, *flags, *words])
    runpy.run_path(TOOL[0], run_name="__main__")


REFUSED = {
    "missing": ({"MODEL.WEIGHTS": "none.pth"}, ["none.pth"]),
    "a small crop": (
        {"DATA.CROP_SIZE": 31},
        ["DATA.CROP_SIZE is 31", "needs 32 pixels", "set it to 32 or more"],
    ),
    "a small scale": (
        {"DATA.TEST_PROTOCOL": "dense", "DATA.TEST_SCALES": "(32, 16)"},
        ["DATA.TEST_SCALES is (32, 16)", "set it to 32 or more"],
    ),
    "CIFAR's crop": (
        {"MODEL.RESNETS.DEPTH": 11, "DATA.CROP_SIZE": 3},
        ["DATA.CROP_SIZE is 3,", "set it to 4 or more"],
    ),
    "groups": ({"MODEL.RESNETS.NORM": "GN"}, ["MODEL.RESNETS.NORM", "GN cannot divide 4 channels"]),
}


@pytest.mark.parametrize("others, words", REFUSED.values(), ids=REFUSED)
def test_refused_before_the_folder_is_made(monkeypatch, capsys, data, tmp_path, others, words):
    message = refusal(capsys, lambda: train_here(monkeypatch, data, tmp_path / "run", **others))
    for word in words:
        assert word in message
    assert not (tmp_path / "run").exists()


def test_a_fault_of_the_data_leaves_no_folder(monkeypatch, capsys, data, tmp_path):
    keys = {"DATA.ROOT": tmp_path / "none"}
    message = refusal(capsys, lambda: train_here(monkeypatch, data, tmp_path / "run", **keys))
    assert str(tmp_path / "none") in message
    assert not (tmp_path / "run").exists()


def test_resume_wins_over_weights(monkeypatch, data, tmp_path):
    """A run that was begun from weights goes on when they are gone."""
    train_here(monkeypatch, data, tmp_path / "run")
    others = {"SOLVER.MAX_ITER": 2, "MODEL.WEIGHTS": tmp_path / "gone.pth"}
    train_here(monkeypatch, data, tmp_path / "run", "--resume", **others)
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "MODEL.WEIGHTS is not read" in log and "going on at iteration 1 of 2" in log


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
