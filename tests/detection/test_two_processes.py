"""Guard detection with several processes: two are one, in losses, weights and figures.

What is drawn at random differs between processes, so nothing is drawn here: every anchor and every
proposal counts. Norms are frozen, as in the paper's detectors: a process's statistics are its own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import CONFIG, TINY, write_start_weights

from resnext_det.data.proposals import write_proposals
from resnext_det.plots import read_metrics
from resnext_det.weights import read_weights

ROOT = Path(__file__).parents[2]
BOXES = 40  # an image, or the mean over two images would not be that of the two means
EVERYTHING = {
    "MODEL.RESNETS.NORM": "FrozenBN",
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 10**6,
    "MODEL.RPN.POSITIVE_FRACTION": 1.0,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": BOXES,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": 1.0,
    "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT": False,
    "DATALOADER.ASPECT_RATIO_GROUPING": False,
    "SOLVER.RPN.BASE_LR": 50.0,  # its loss is divided by 10**6
    "TEST.EVAL_PERIOD": 2,
    "TEST.VALIDATION_LOSS": True,
}


def some_boxes(demo_set):
    """For every training image its objects, moved a little, and boxes anywhere."""
    content = json.loads((demo_set / "annotations" / "train.json").read_text())
    random = np.random.default_rng(0)
    for image in content["images"]:
        own = [a["bbox"] for a in content["annotations"] if a["image_id"] == image["id"]]
        own = np.array(own, dtype=np.float32).reshape(-1, 4)[:BOXES]
        own[:, 2:] += own[:, :2]
        size = np.array([image["width"], image["height"]] * 2, dtype=np.float32)
        near = own + random.normal(0, 2, own.shape)
        corners = np.sort(random.uniform(0, 1, (BOXES - len(own), 2, 2)), axis=1).reshape(-1, 4)
        boxes = np.clip(np.concatenate([near, corners * size]), 0, size).astype(np.float32)
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        yield image["id"], boxes, np.linspace(1, 0, BOXES, dtype=np.float32)


def run(demo_set, folder, processes):
    stored = folder / "boxes.safetensors"
    write_proposals(stored, some_boxes(demo_set), "boxes of the test")
    values = {
        **TINY,
        **EVERYTHING,
        "MODEL.WEIGHTS": write_start_weights(folder),
        "PROPOSALS.FILES": f"('{stored}',)",
        "OUTPUT_DIR": folder / "run",
    }
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    flags = [
        word
        for split in ("train", "val")
        for word in (
            f"--{split}-json",
            str(demo_set / "annotations" / f"{split}.json"),
            f"--{split}-images",
            str(demo_set / split),
        )
    ]
    done = subprocess.run(
        [
            *(sys.executable, "-W", "ignore"),
            *(launch if processes > 1 else ()),
            *(str(ROOT / "tools" / "train_net.py"), "--config-file", str(CONFIG), *flags),
            *(str(word) for pair in values.items() for word in pair),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "run"


@pytest.fixture(scope="module")
def one_and_two(demo_set, tmp_path_factory):
    return [run(demo_set, tmp_path_factory.mktemp(f"by_{n}"), n) for n in (1, 2)]


@pytest.mark.parametrize("stage", ["rpn", "fast_rcnn"])
def test_losses_are_equal(one_and_two, stage):
    one, two = (read_metrics(run / stage / "metrics.json") for run in one_and_two)
    names = [name for name in one if "loss" in name]
    assert "total_loss" in names and "validation/total_loss" in names
    for name in names:
        assert one[name][0] == two[name][0]
        assert two[name][1] == pytest.approx(one[name][1], rel=2e-4), name


def test_weights_are_equal(one_and_two):
    """Every parameter took part on both: one without a gradient would have stopped the run."""
    one, two = (read_weights(run / "model_final.safetensors")[0] for run in one_and_two)
    start, _ = read_weights(one_and_two[0].parent / "model_final.safetensors")
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=5e-6, msg=name)
    for network in ("rpn", "fast_rcnn"):
        moved = one[f"{network}.backbone.res4.0.conv1.weight"] - start["res4.0.conv1.weight"]
        assert moved.abs().max() > 2e-4  # or equal weights would say nothing


def test_figures_count_every_image_once(one_and_two):
    """Nine of ten images would give another recall."""
    one, two = (json.loads((run / "results.json").read_text()) for run in one_and_two)
    assert one["proposals"].keys() == two["proposals"].keys()
    for group in ("bbox", "proposals"):
        for name, value in one[group].items():
            assert two[group][name] == (value and pytest.approx(value, abs=0.5)), name
