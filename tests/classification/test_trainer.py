"""Guard the classification step: it learns, repeats and resumes exactly, scores each image once."""

import gc
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_classifier import TINY_CLASSIFIER

from resnext_det.classification import classifier, evaluation, trainer
from resnext_det.classification.classifier import build_classifier
from resnext_det.classification.evaluator import ErrorEvaluator
from resnext_det.config import load_cfg
from resnext_det.engine.seeding import seed_all
from resnext_det.engine.trainer import Trainer
from resnext_det.errors import InputError, Interrupted
from resnext_det.plots import read_metrics
from resnext_det.weights import read_weights

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "demo" / "classification.yaml"
ITERATIONS, STOPPED_AFTER = 12, 7


def tiny(data, folder, **others):
    """Options of a network of 0.02 M parameters on crops of 32 pixels, in KEY VALUE pairs."""
    values = {
        "DATA.ROOT": data / "classification",
        "OUTPUT_DIR": folder,
        **TINY_CLASSIFIER,
        "DATALOADER.NUM_WORKERS": 0,
        "SOLVER.IMS_PER_BATCH": 8,
        "SOLVER.MAX_EPOCHS": 0.0,
        "SOLVER.MAX_ITER": ITERATIONS,
        "SOLVER.WARMUP_ITERS": 2,
        "SOLVER.CHECKPOINT_PERIOD": 5,
        "TEST.EVAL_PERIOD": 0,
        **others,
    }
    return [str(word) for pair in values.items() for word in pair]


def train(data, folder, resume=False, **others):
    cfg = load_cfg(CONFIG, tiny(data, folder, **others))
    folder.mkdir(exist_ok=True)
    seed_all(cfg.SEED, 0)  # as start_run does for the tools
    return trainer.train(cfg, resume)


def weights(folder):
    return read_weights(folder / "model_final.safetensors")[0]


def assert_equal_runs(first, second):
    """Weights and results, bit for bit."""
    ours, theirs = weights(first), weights(second)
    assert ours.keys() == theirs.keys()
    for key in ours:
        assert torch.equal(ours[key], theirs[key]), key
    assert (first / "results.json").read_text() == (second / "results.json").read_text()


@pytest.fixture(scope="module")
def whole(demo_set, tmp_path_factory):
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    train(demo_set, folder)
    return folder


def test_same_seed_same_run(demo_set, whole, tmp_path):
    train(demo_set, tmp_path / "again")
    assert_equal_runs(whole, tmp_path / "again")


def test_another_seed_another_run(demo_set, whole, tmp_path):
    train(demo_set, tmp_path / "other", SEED=1)
    ours, theirs = weights(whole), weights(tmp_path / "other")
    assert not torch.equal(ours["linear.weight"], theirs["linear.weight"])


def test_workers_do_not_change_the_run(demo_set, whole, tmp_path):
    gc.disable()
    try:
        train(demo_set, tmp_path / "workers", **{"DATALOADER.NUM_WORKERS": 2})
        assert not multiprocessing.active_children()  # left to the collector, each takes 5 s
    finally:
        gc.enable()
    assert_equal_runs(whole, tmp_path / "workers")


def interrupt_after(monkeypatch, iterations, number=signal.SIGTERM):
    """The signal comes in the middle of a step, as from a batch system or Ctrl-C."""
    step = Trainer.run_step

    def stopped_step(self):
        step(self)
        if self.iter + 1 == iterations:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Trainer, "run_step", stopped_step)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("after", [STOPPED_AFTER, ITERATIONS])
def test_stopped_by_a_signal_and_resumed(demo_set, whole, tmp_path, monkeypatch, number, after):
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="--resume"):
        interrupt_after(patch, after, number)
        train(demo_set, tmp_path / "stopped")
    assert not (tmp_path / "stopped" / "model_final.safetensors").exists()
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before
    steps = []
    step = Trainer.run_step
    monkeypatch.setattr(Trainer, "run_step", lambda self: (steps.append(self.iter), step(self)))
    train(demo_set, tmp_path / "stopped", resume=True)
    assert steps == list(range(after, ITERATIONS))
    assert_equal_runs(whole, tmp_path / "stopped")


def test_killed_and_resumed_from_the_last_checkpoint(demo_set, whole, tmp_path, monkeypatch):
    """A kill leaves no time to save: the run goes on from SOLVER.CHECKPOINT_PERIOD's last one."""
    step = Trainer.run_step

    def killed_step(self):
        if self.iter == STOPPED_AFTER:
            raise MemoryError
        step(self)

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(Trainer, "run_step", killed_step)
        train(demo_set, tmp_path / "killed")
    checkpoints = sorted(path.name for path in (tmp_path / "killed").glob("*.pth"))
    assert checkpoints == ["model_0000004.pth"]
    train(demo_set, tmp_path / "killed", resume=True)
    assert_equal_runs(whole, tmp_path / "killed")


def test_record_travels_in_the_weights(demo_set, whole):
    _, record = read_weights(whole / "model_final.safetensors")
    results = json.loads((whole / "results.json").read_text())
    assert record.kind == "classification"
    assert record.class_names == ["cross", "cube", "leaf", "mug", "ring", "star"]
    assert record.top1_error == results["classification"]["top1_error"]
    assert record.architecture["depth"] == 14 and record.architecture["cardinality"] == 4
    assert (record.pixel_format, record.pixel_mean) == ("RGB", [123.675, 116.28, 103.53])
    assert f"MAX_ITER: {ITERATIONS}" in record.config


def test_eval_only_repeats_the_result(demo_set, whole, tmp_path):
    found = evaluate_only(demo_set, whole, tmp_path / "scored")
    assert found["classification"] == results_in(whole)["classification"]


def results_in(folder):
    return json.loads((folder / "results.json").read_text())


def test_results_say_how_they_were_measured(demo_set, whole, tmp_path):
    how = {"protocol": "single", "crop": 32, "resize": 32, "precision": "fp32", "images": 36}
    assert results_in(whole)["evaluation"] == {**how, "weights": "model_final.safetensors"}
    found = evaluate_only(demo_set, whole, tmp_path / "a")
    assert found["evaluation"] == {**how, "weights": str(whole / "model_final.safetensors")}
    keys = {"DATA.TEST_PROTOCOL": "dense", "DATA.TEST_SCALES": "(32, 48)"}
    found = evaluate_only(demo_set, whole, tmp_path / "b", **keys)["evaluation"]
    assert (found["protocol"], found["scales"]) == ("dense", [32, 48]) and "resize" not in found


LINES = {
    "single": "36 images (single, crop 32 from a short side of 32; fp32)",
    "ten_crop": "36 images (ten_crop, crop 32 from a short side of 32; fp32)",
    "dense": "36 images (dense, short sides 32, 48; fp32)",
}


@pytest.mark.parametrize("protocol, line", LINES.items(), ids=LINES)
def test_the_log_names_the_protocol(demo_set, whole, tmp_path, caplog, protocol, line):
    keys = {"DATA.TEST_PROTOCOL": protocol, "DATA.TEST_SCALES": "(32, 48)"}
    with caplog.at_level("INFO", logger="resnext_det"):
        evaluate_only(demo_set, whole, tmp_path / "scored", **keys)
    assert any(r.getMessage().endswith(line) for r in caplog.records)


def test_auto_is_recorded_as_what_it_became(demo_set, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(classifier, "resolve_precision", lambda given, device: "bf16")
    others = {"MODEL.PRECISION": "auto", "SOLVER.MAX_ITER": 1}
    with caplog.at_level("INFO", logger="resnext_det"):
        train(demo_set, tmp_path / "run", **others)
        evaluate_only(demo_set, tmp_path / "run", tmp_path / "scored", **others)
    for name in ("run", "scored"):
        assert json.loads((tmp_path / name / "run.json").read_text())["precision"] == "bf16"
        assert results_in(tmp_path / name)["evaluation"]["precision"] == "bf16"
        assert "PRECISION: auto" in (tmp_path / name / "config.yaml").read_text()
    text = caplog.text
    assert "MODEL.PRECISION auto: bf16" in text and "M parameters, bf16" in text
    assert text.count("; bf16)") == 2


def evaluate_only(data, trained, folder, **others):
    keys = {"MODEL.WEIGHTS": trained / "model_final.safetensors", **others}
    evaluation.evaluate_only(load_cfg(CONFIG, tiny(data, folder, **keys)))
    return results_in(folder)


def test_eval_only_takes_the_pixels_from_the_weights(demo_set, tmp_path):
    """Nobody types channel order and statistics a second time, and a wrong pair cannot run."""
    pixels = {
        "INPUT.FORMAT": "BGR",
        "MODEL.PIXEL_MEAN": [90, 99, 111],
        "MODEL.PIXEL_STD": [9, 8, 7],
    }
    results = train(demo_set, tmp_path / "bgr", **pixels)
    scored = evaluate_only(demo_set, tmp_path / "bgr", tmp_path / "scored")
    assert scored["classification"] == results["classification"]
    images = trainer.sets.class_folders.class_folder
    seen = []

    def spy(cfg, split, transform):
        seen.append((cfg.INPUT.FORMAT, list(cfg.MODEL.PIXEL_MEAN), list(cfg.MODEL.PIXEL_STD)))
        return images(cfg, split, transform)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.sets.class_folders, "class_folder", spy)
        evaluate_only(demo_set, tmp_path / "bgr", tmp_path / "scored")
    assert seen == [("BGR", [90, 99, 111], [9, 8, 7])]


def test_eval_only_refuses_other_classes(demo_set, whole, tmp_path):
    for name in ("cross", "cube", "leaf", "mug", "ring", "stars"):
        folder = tmp_path / "classification" / "val" / name
        folder.mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(folder / "0.png")
    with pytest.raises(InputError) as caught:
        evaluate_only(tmp_path, whole, tmp_path / "scored")
    message = str(caught.value)
    assert str(tmp_path / "classification" / "val") in message
    assert "model_final.safetensors" in message


def test_tiny_overfit(demo_set, tmp_path):
    """Two images a class, nothing left out by a crop: 60 iterations learn them by heart."""
    for path in (demo_set / "classification" / "train").glob("*/0000[12].jpg"):
        for split in ("train", "val"):
            folder = tmp_path / "classification" / split / path.parent.name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / path.name).write_bytes(path.read_bytes())
    others = {"SOLVER.IMS_PER_BATCH": 12, "SOLVER.MAX_ITER": 60, "DATA.MIN_CROP_AREA": 0.9}
    results = train(tmp_path, tmp_path / "run", **others)
    _, losses = read_metrics(tmp_path / "run" / "metrics.json")["total_loss"]
    assert losses[-1] < 0.1 < losses[0]
    assert results["classification"]["top1_error"] == 0


def test_evaluator_counts():
    """Five images, seven classes: three hit at once, one among the five best, one not."""
    evaluator = ErrorEvaluator()
    evaluator.reset()
    ranked = torch.tensor([7.0, 6, 5, 4, 3, 2, 1])  # class 0 first, class 6 last
    evaluator.process({"label": torch.tensor([0, 4])}, {"logits": ranked.repeat(2, 1)})
    evaluator.process({"label": torch.tensor([5, 0, 0])}, {"logits": ranked.repeat(3, 1)})
    errors = evaluator.evaluate()["classification"]
    assert errors == pytest.approx({"top1_error": 40.0, "top5_error": 20.0})
    evaluator.reset()
    evaluator.process({"label": torch.tensor([0])}, {"logits": ranked[None]})
    assert evaluator.evaluate()["classification"] == {"top1_error": 0.0, "top5_error": 0.0}


def test_evaluator_with_fewer_than_five_classes():
    evaluator = ErrorEvaluator()
    evaluator.reset()
    logits = torch.tensor([[3.0, 2, 1], [3.0, 2, 1]])
    evaluator.process({"label": torch.tensor([2, 0])}, {"logits": logits})
    errors = evaluator.evaluate()["classification"]
    assert errors == pytest.approx({"top1_error": 50.0, "top5_error": 0.0})


def test_epochs_become_iterations(demo_set, tmp_path):
    """Goyal et al. count in epochs, Detectron2 in iterations: 30 and 60 of 90 in 7 steps each."""
    cfg = load_cfg(CONFIG, tiny(demo_set, tmp_path))
    cfg.SOLVER.MAX_EPOCHS, cfg.SOLVER.EPOCH_STEPS = 90.0, (30, 60)
    cfg = trainer.with_epochs(cfg, num_images=50)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (630, (210, 420))


def test_every_parameter_has_a_gradient(demo_set, tmp_path):
    model = build_classifier(load_cfg(CONFIG, tiny(demo_set, tmp_path)), num_classes=6)
    batch = {"image": torch.randn(4, 3, 32, 32), "label": torch.tensor([0, 1, 2, 5])}
    model.train()(batch)["loss_cls"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_two_processes_score_every_image_once(demo_set, tmp_path):
    """Trained and scored by two, scored again by one: the same error, not one image twice."""
    folder = tmp_path / "two"
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(ROOT / "tools" / "pretrain_imagenet.py")]
    command += ["--config-file", str(CONFIG)]
    # An odd batch of test images: the two shares do not end together.
    opts = tiny(demo_set, folder, **{"DATA.TEST_BATCH_SIZE": 5})
    done = subprocess.run(
        command + opts,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    by_two = results_in(folder)
    by_one = evaluate_only(demo_set, folder, tmp_path / "one")
    assert by_two["classification"] == by_one["classification"]
    _, record = read_weights(folder / "model_final.safetensors")
    assert record.top1_error == by_two["classification"]["top1_error"]


@pytest.mark.parametrize("final", ["best", "last"])
def test_best_weights_as_the_final_ones(demo_set, tmp_path, final):
    """Of nearly untrained networks the last is seldom the best; equal ones: the first."""
    others = {"TEST.EVAL_PERIOD": 2, "SOLVER.FINAL_WEIGHTS": final, "SOLVER.BASE_LR": 1.0}
    results = train(demo_set, tmp_path, **others)["classification"]
    errors = read_metrics(tmp_path / "metrics.json")["classification/top1_error"][1]
    last_is_best = errors.index(min(errors)) == len(errors) - 1
    assert results["top1_error"] == pytest.approx(min(errors) if final == "best" else errors[-1])
    best = torch.load(tmp_path / "model_best.pth", weights_only=True)["model"]
    same = [torch.equal(best[f"trunk.{name}"], value) for name, value in weights(tmp_path).items()]
    assert all(same) == (final == "best" or last_is_best)
