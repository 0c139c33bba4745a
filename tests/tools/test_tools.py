"""Guard the command line: a refusal is one line that says what to do, Ctrl-C costs nothing."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from resnext_det.errors import InputError
from resnext_det.weights import read_record

ROOT = Path(__file__).parents[2]
TOOLS = sorted((ROOT / "tools").glob("*.py"))
PAPER = str(ROOT / "configs" / "faster_rcnn_X50_32x4d.yaml")
CLASSIFY = str(ROOT / "configs" / "demo" / "classification.yaml")
TINY_TRUNK = {
    "MODEL.DEVICE": "cpu",
    "MODEL.PRECISION": "fp32",
    "MODEL.RESNETS.DEPTH": 14,
    "MODEL.RESNETS.NUM_GROUPS": 4,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.RESNETS.WIDTH_MULTIPLIER": 0.125,
}


def options(values):
    """KEY VALUE pairs of a command line."""
    return [str(word) for pair in values.items() for word in pair]


def environment():
    """This one, without a GPU, torchrun's variables or the user's own data sets."""
    dropped = ("DETECTRON2_DATASETS", "WORLD_SIZE", "RANK")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return {**kept, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def command(tool, *args):
    return [sys.executable, str(ROOT / "tools" / tool), *map(str, args)]


def run(folder, tool, *args):
    return subprocess.run(
        command(tool, *args), cwd=folder, env=environment(), capture_output=True, text=True
    )


REFUSALS = {
    "bare pretrain_imagenet": (
        ["pretrain_imagenet.py"],
        ["{cwd}/datasets/imagenet/train: ", "<root>/train/<class>/<image>", "make demo"],
    ),
    "train_net without COCO": (
        ["train_net.py", "--config-file", PAPER, "MODEL.WEIGHTS", ""],
        ["coco/annotations/instances_train2017.json", "DETECTRON2_DATASETS"],
    ),
    "pretrain_imagenet --eval-only without weights": (
        ["pretrain_imagenet.py", "--eval-only"],
        ["MODEL.WEIGHTS", "model_final.safetensors"],
    ),
    "train_net --eval-only without weights": (
        ["train_net.py", "--eval-only"],
        ["MODEL.WEIGHTS", "model_final.safetensors"],
    ),
    "train_net without a config": (
        ["train_net.py", "--train-json", "train.json", "--train-images", "."],
        ["command line: --config-file is missing", "configs/custom/small.yaml"],
    ),
    "--train-json without --val-json": (
        [
            *("train_net.py", "--config-file", PAPER),
            *("--train-json", "train.json", "--train-images", "."),
        ],
        ["--val-json is missing; add --val-json and --val-images"],
    ),
    "--train-json alone": (
        ["train_net.py", "--config-file", PAPER, "--train-json", "train.json"],
        ["--train-json is given alone", "add --train-images"],
    ),
}


@pytest.mark.parametrize("args, words", REFUSALS.values(), ids=REFUSALS)
def test_refusal_is_one_line(tmp_path, args, words):
    done = run(tmp_path, *args)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word.format(cwd=tmp_path) in done.stderr
    assert not list(tmp_path.rglob("run.json"))  # the same command, mended, is not refused


def run_here(monkeypatch, tool, *args):
    """In this process, which saves the seconds of the imports."""
    monkeypatch.setattr(sys, "argv", [str(tool), *args])
    runpy.run_path(str(ROOT / "tools" / tool), run_name="__main__")


def test_debug_keeps_the_traceback(monkeypatch):
    with pytest.raises(InputError, match="MODEL.WEIGHTS"):
        run_here(monkeypatch, "train_net.py", "--eval-only", "--debug")


def test_training_wants_a_config(monkeypatch):
    with pytest.raises(InputError, match="--config-file is missing; .*configs/custom/small.yaml"):
        run_here(monkeypatch, "train_net.py", "--debug")


@pytest.mark.parametrize("tool", TOOLS, ids=lambda path: path.name)
def test_help(tool, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        run_here(monkeypatch, tool.name, "--help")
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: {tool.name}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("tool", TOOLS, ids=lambda path: path.name)
def test_a_tool_only_parses_and_calls(tool):
    """What a user would want to import stands in the package, not in a script."""
    assert len(tool.read_text().splitlines()) < 80


def test_flags_and_overrides_come_in_any_order(monkeypatch):
    """The README's own evaluation command names flags after ``MODEL.WEIGHTS``."""
    given = "--eval-only MODEL.WEIGHTS m.safetensors --val-json v.json MODEL.RPN.BOUNDARY_THRESH -1"
    monkeypatch.setattr(sys, "argv", ["train_net.py", *given.split(), "--val-images", "images/"])
    args = runpy.run_path(str(ROOT / "tools" / "train_net.py"))["parse"]()
    assert args.eval_only and (args.val_json, args.val_images) == ("v.json", "images/")
    assert args.opts == ["MODEL.WEIGHTS", "m.safetensors", "MODEL.RPN.BOUNDARY_THRESH", "-1"]


def test_detectron2s_own_name_of_coco(shared_data, tmp_path):
    """COCO as Detectron2 lays it out, under $DETECTRON2_DATASETS, by the paper's config."""
    (tmp_path / "coco").symlink_to(shared_data / "coco")
    args = ["--config-file", PAPER, "--stage", "rpn", *options(TINY_TRUNK), "MODEL.WEIGHTS", ""]
    args += ["SOLVER.RPN.MAX_ITER", 2, "SOLVER.RPN.IMS_PER_BATCH", 2, "DATALOADER.NUM_WORKERS", 0]
    args += ["INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.MAX_SIZE_TRAIN", 128, "OUTPUT_DIR", "run"]
    found = {**environment(), "DETECTRON2_DATASETS": str(tmp_path)}
    done = subprocess.run(
        command("train_net.py", *args), cwd=tmp_path, env=found, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    record = read_record(tmp_path / "run" / "rpn" / "model_final.safetensors")
    assert len(record.class_names) == 80 and record.class_ids[-1] == 90


def small_run(data, folder, iterations):
    values = {
        "DATA.ROOT": data / "classification",
        "OUTPUT_DIR": folder,
        **TINY_TRUNK,
        "DATA.CROP_SIZE": 32,
        "DATA.RESIZE_SIZE": 32,
        "SOLVER.IMS_PER_BATCH": 4,
        "SOLVER.MAX_EPOCHS": 0.0,
        "SOLVER.MAX_ITER": iterations,
        "SOLVER.CHECKPOINT_PERIOD": 100_000,
        "TEST.EVAL_PERIOD": 0,
    }
    return options(values)


def wait_for(path, process):
    """Until training has written its first metrics."""
    while not (path.exists() and path.stat().st_size):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)


@pytest.mark.parametrize(
    "number, send", [(signal.SIGINT, os.killpg), (signal.SIGTERM, os.kill)], ids=["Ctrl-C", "kill"]
)
def test_a_stopped_run_saves_and_resumes(demo_set, tmp_path, number, send):
    """Ctrl-C reaches the data workers as well, ``kill`` the tool alone; both leave a checkpoint."""
    folder = tmp_path / "run"
    start = command("pretrain_imagenet.py", "--config-file", CLASSIFY)
    process = subprocess.Popen(
        start + small_run(demo_set, folder, 100_000),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        wait_for(folder / "metrics.json", process)
        send(process.pid, number)
        _, errors = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130, errors
    (checkpoint,) = folder.glob("model_*.pth")
    iteration = int(checkpoint.stem.removeprefix("model_"))
    assert errors.startswith(f"stopped: saved iteration {iteration};") and "--resume" in errors
    assert errors.count("\n") == 1, errors

    end = small_run(demo_set, folder, iteration + 3)
    resumed = start + ["--resume"] + end
    done = subprocess.run(resumed, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"going on at iteration {iteration + 1} of {iteration + 3}" in done.stdout
    results = json.loads((folder / "results.json").read_text())
    assert set(results) == {"classification", "evaluation"}
