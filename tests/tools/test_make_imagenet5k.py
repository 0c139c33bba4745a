"""Guard ImageNet-5K's whole path in small: tree, lists, training, both errors of Table 6."""

import json
import runpy
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnext_det.classification import evaluation, trainer
from resnext_det.config import load_cfg
from resnext_det.engine.seeding import seed_all
from resnext_det.weights import read_weights

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "imagenet5k" / "X50_32x4d.yaml"
COLOURS = {  # six classes; the first two of the chosen four stand for ILSVRC's
    "n00000001": (250, 0, 0),
    "n00000002": (0, 250, 0),
    "n00000003": (0, 0, 250),
    "n00000004": (250, 250, 0),
    "n00000005": (0, 250, 250),
    "n00000006": (250, 0, 250),
}
ILSVRC = ["n00000002", "n00000004"]
TINY = {
    "MODEL.DEVICE": "cpu",
    "MODEL.RESNETS.DEPTH": 14,
    "MODEL.RESNETS.NUM_GROUPS": 4,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.RESNETS.WIDTH_MULTIPLIER": 0.125,
    "DATA.CROP_SIZE": 32,
    "DATA.RESIZE_SIZE": 32,
    "DATA.MIN_CROP_AREA": 0.5,
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 8,
    "SOLVER.REFERENCE_BATCH": 0,
    "SOLVER.MAX_ITER": 60,
    "SOLVER.STEPS": "(40,)",
    "TEST.EVAL_PERIOD": 0,
}


def draw(folder, number):
    """Noise about the colour of the class."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for i in range(number):
        pixels = np.array(COLOURS[folder.name]) + random.integers(-60, 60, (32, 32, 3))
        pixels = pixels.clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{folder.name}_{i}.JPEG")


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trees")
    for number, wnid in enumerate(COLOURS):
        draw(folder / "imagenet22k" / wnid, 4 + number)
    for wnid in ILSVRC:
        draw(folder / "imagenet" / "val" / wnid, 3)
    return folder / "imagenet22k", folder / "imagenet"


def run_tool(monkeypatch, *args):
    """In this process, which saves the seconds of the imports."""
    monkeypatch.setattr(sys, "argv", ["make_imagenet5k.py", *map(str, args)])
    runpy.run_path(str(ROOT / "tools" / "make_imagenet5k.py"), run_name="__main__")


def make(monkeypatch, capsys, trees, output, *args):
    """The overrides that the tool prints for training."""
    run_tool(monkeypatch, *trees, "--output", output, "--classes", 4, *args)
    *lines, last = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{output}/classes.txt: 4 classes, 2 of ILSVRC")
    return shlex.split(last.removeprefix("for training: "))


@pytest.fixture
def lists(trees, tmp_path, monkeypatch, capsys):
    return make(monkeypatch, capsys, trees, tmp_path / "5k")


def config(lists, folder, **others):
    values = {**TINY, "OUTPUT_DIR": folder, **others}
    return load_cfg(CONFIG, [*lists, *(str(word) for pair in values.items() for word in pair)])


def test_from_the_trees_to_both_errors(lists, tmp_path):
    """By the paper's config, made small; scored again from the weights alone."""
    cfg = config(lists, tmp_path / "run")
    (tmp_path / "run").mkdir()
    seed_all(cfg.SEED, 0)
    errors = trainer.train(cfg, resume=False)["classification"]
    assert set(errors) == {
        "top1_error",
        "top5_error",
        "top1_error_2way",
        "top5_error_2way",
    }
    assert errors["top1_error_2way"] <= errors["top1_error"] < 50  # learnt more than chance
    assert errors["top5_error"] == 0  # five of four classes
    tensors, record = read_weights(tmp_path / "run" / "model_final.safetensors")
    assert record.class_names == [*ILSVRC, "n00000006", "n00000005"]
    assert tensors["linear.weight"].shape[0] == 4
    assert record.top1_error == errors["top1_error"]
    weights = {"MODEL.WEIGHTS": tmp_path / "run" / "model_final.safetensors"}
    again = evaluation.evaluate_only(config(lists, tmp_path / "scored", **weights))
    assert again["classification"] == errors
    assert json.loads((tmp_path / "scored" / "results.json").read_text()) == again


def test_the_log_names_both(lists, tmp_path, caplog):
    cfg = config(lists, tmp_path / "run", **{"SOLVER.MAX_ITER": 1})
    (tmp_path / "run").mkdir()
    with caplog.at_level("INFO", logger="resnext_det"):
        trainer.train(cfg, resume=False)
    (line,) = (r.getMessage() for r in caplog.records if "top-1 error" in r.getMessage())
    assert "among 4 classes; " in line and "among the first 2 classes; 6 images" in line


def test_the_papers_schedule():
    """As many mini-batches as 100 epochs of ImageNet-1K, whatever the size of the list."""
    cfg = trainer.with_epochs(load_cfg(CONFIG), num_images=6_800_000)
    assert cfg.SOLVER.MAX_ITER == 500_500 == 100 * 5005
    assert cfg.SOLVER.STEPS == tuple(epoch * 5005 for epoch in (30, 60, 90))
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR, cfg.SOLVER.NESTEROV) == (256, 0.1, True)
    assert cfg.DATA.EVAL_CLASSES == 1000


def test_a_text_file_of_the_classes(trees, tmp_path, monkeypatch, capsys):
    text = tmp_path / "ilsvrc.txt"
    text.write_text("\n".join(ILSVRC))
    given = make(monkeypatch, capsys, (trees[0], text), tmp_path / "5k")
    assert given == ["DATA.ROOT", str(trees[0]), "DATA.TRAIN_LIST", f"{tmp_path}/5k/train.txt"]


@pytest.mark.parametrize(
    "args, words",
    [
        (["--classes", "0"], ["--classes is 0", "1 or more"]),
        (["--threads", "0"], ["--threads is 0", "1 or more"]),
        (["--classes", "7"], ["has 6 classes with images", "--classes is 7"]),
        (["--class-list", "none.txt"], ["none.txt: cannot be read"]),
    ],
)
def test_refusal_is_one_line(trees, tmp_path, monkeypatch, capsys, args, words):
    with pytest.raises(SystemExit) as caught:
        run_tool(monkeypatch, *trees, "--output", tmp_path / "5k", *args)
    assert caught.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    for word in words:
        assert word in lines[0]
    assert not (tmp_path / "5k").exists()
