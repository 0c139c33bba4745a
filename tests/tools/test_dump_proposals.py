"""Guard the command that writes proposals: what it prints, leaves and refuses."""

import pickle
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from test_tools import run_here

from resnext_det.config import load_cfg, stage_cfg
from resnext_det.data import coco
from resnext_det.data.proposals import ProposalFile
from resnext_det.detection.detector import record_of
from resnext_det.weights import save_weights

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "demo" / "detection.yaml"
TINY = {
    "MODEL.DEVICE": "cpu",
    "MODEL.PRECISION": "fp32",
    "MODEL.RESNETS.NUM_GROUPS": 4,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.RESNETS.WIDTH_MULTIPLIER": 0.125,
    "INPUT.MIN_SIZE_TEST": 96,
    "PROPOSALS.POST_NMS_TOPK": 60,
    "DATALOADER.NUM_WORKERS": 0,
}


@pytest.fixture(scope="module")
def weights(demo_set, tmp_path_factory):
    """An RPN that has learnt nothing, of a run on the demo set."""
    path = tmp_path_factory.mktemp("rpn") / "model_final.safetensors"
    train = ["dumped_train", f"{demo_set}/annotations/train.json", f"{demo_set}/train"]
    values = {**TINY, "DATASETS.COCO_JSON": [train], "DATASETS.TRAIN": "('dumped_train',)"}
    cfg = load_cfg(CONFIG, [str(word) for pair in values.items() for word in pair])
    cfg.DATASETS.TEST = ()
    coco.register_from_config(cfg)
    coco.load("dumped_train")
    own = stage_cfg(cfg, "rpn")
    torch.manual_seed(0)
    save_weights(path, build_model(own).state_dict(), record_of(own, "rpn", "dumped_train"))
    return path


def run(monkeypatch, *args):
    run_here(monkeypatch, "dump_proposals.py", *map(str, args))


def refused(monkeypatch, capsys, *args):
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, *args)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error
    return error


def test_the_readers_of_a_set_of_ones_own(weights, demo_set, tmp_path, monkeypatch, capsys):
    """Weights, a JSON file and its images are enough: four lines of recall."""
    made = tmp_path / "val.safetensors"
    data = ["--json", demo_set / "annotations" / "val.json", "--images", demo_set / "val"]
    run(monkeypatch, "MODEL.WEIGHTS", weights, *data, "--output", made)
    lines = capsys.readouterr().out.splitlines()
    start = lines.index(f"wrote: {made} (resnext_det)")
    everything, small, medium, large = lines[start + 1 :]
    assert everything.startswith("custom: AR@100 ") and ", AR@1000 " in everything
    assert small.startswith("custom: small objects: ARs@100 ")
    assert (medium[:20], large[:19]) == ("custom: medium: ARm@", "custom: large: ARl@")
    stored = ProposalFile(made)
    assert len(stored) == 6 and stored.metadata["source"] == "custom"
    assert max(len(stored[i][0]) for i in stored.image_ids) <= 60


def test_overrides_after_the_flags(weights, tmp_path, monkeypatch):
    """On the set that the weights were trained on, since none is named."""
    made = tmp_path / "train.pkl"
    run(
        monkeypatch,
        *("--output", made, "--format", "detectron2", "MODEL.WEIGHTS", weights),
        *("PROPOSALS.POST_NMS_TOPK", 7),
    )
    content = pickle.loads(made.read_bytes())
    assert len(content["ids"]) == 12 and {len(b) for b in content["boxes"]} == {7}


def test_by_a_config(weights, demo_set, tmp_path, monkeypatch):
    made = tmp_path / "made.safetensors"
    sets = [["dumped_val", f"{demo_set}/annotations/val.json", f"{demo_set}/val"]]
    options = {**TINY, "DATASETS.COCO_JSON": sets, "MODEL.WEIGHTS": weights}
    words = [str(word) for pair in options.items() for word in pair]
    given = ["--config-file", CONFIG, "--dataset", "dumped_val", "--output", made]
    run(monkeypatch, *given, "--num-gpus", 0, *words)
    assert ProposalFile(made).metadata["source"] == "dumped_val"


def test_conversion(weights, tmp_path, monkeypatch, capsys):
    first, second = tmp_path / "first.safetensors", tmp_path / "second.pkl"
    run(monkeypatch, "MODEL.WEIGHTS", weights, "--output", first)
    capsys.readouterr()
    run(monkeypatch, "--from", first, "--output", second, "--format", "detectron2")
    assert capsys.readouterr().out == f"wrote: {second} (detectron2), 12 images\n"
    error = refused(monkeypatch, capsys, "--from", second, "--output", first)
    assert f"{first}: is there already" in error


def test_refusals(weights, tmp_path, monkeypatch, capsys):
    made = tmp_path / "made"
    assert "MODEL.WEIGHTS: is empty" in refused(monkeypatch, capsys, "--output", made)
    given = ["MODEL.WEIGHTS", weights, "--output", made]
    error = refused(monkeypatch, capsys, *given, "--dataset", "nowhere")
    assert "nowhere is not a known data set" in error
    error = refused(monkeypatch, capsys, *given, "--json", "a.json")
    assert "--json or --images is given alone" in error
    assert not list(tmp_path.iterdir())
