"""Guard that stages, studies and tools mix nothing of two runs, nor leave half of a failed one."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small_disk import contents, small_disk

from resnext_det.classification.studies import Setting, run_all
from resnext_det.data.proposals import ProposalWriter, join_parts, parts_of, write_proposals
from resnext_det.detection import predict_files, stages
from resnext_det.detection.proposal_exchange import alone, convert
from resnext_det.detection.stage_files import network_cfg, proposals_made_with, stage_file
from resnext_det.engine import lock
from resnext_det.engine.run import write_json
from resnext_det.errors import InputError
from resnext_det.models import Architecture
from resnext_det.weights import WeightsRecord, save_weights

sys.path.insert(0, str(Path(__file__).parents[1] / "field"))
from tiny_sets import make_cfg, plain_set, refusal  # noqa: E402

ROOT = Path(__file__).parents[2]
HOLD = """
import fcntl, os, sys, time
os.makedirs(sys.argv[1])
file = open(os.path.join(sys.argv[1], ".lock"), "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def others(monkeypatch):
    """others(folder): a process that has made and locked it."""
    monkeypatch.setattr(lock, "PATIENCE", 0.2)
    processes = []

    def start(folder):
        command = [sys.executable, "-S", "-c", HOLD, str(folder)]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert processes[-1].stdout.readline() == "held\n"

    yield start
    for process in processes:
        process.kill()
        process.wait()


def proposals(images=(1, 2)):
    for image in images:
        yield image, np.ones((3, 4), np.float32), np.ones(3, np.float32)


# ---- stages ----


def rpn_weights(path, value):
    about = {"pixel_format": "RGB", "pixel_mean": [0.0] * 3, "pixel_std": [1.0] * 3}
    architecture = Architecture(depth=14, cardinality=4, bottleneck_width=8).as_dict()
    record = WeightsRecord(kind="rpn", architecture=architecture, **about)
    save_weights(path, {"weight": torch.full((2,), value)}, record)


def test_fast_rcnn_is_not_trained_on_another_rpns_proposals(tmp_path):
    """``--stage rpn`` again, in a folder whose proposals are of the RPN before."""
    cfg = make_cfg(tmp_path / "run", [("mixing", plain_set(tmp_path), tmp_path)])
    rpn_weights(stage_file(cfg, "rpn"), 1.0)
    made_with, path = proposals_made_with(cfg), stage_file(cfg, "proposals")
    writer = ProposalWriter(path)
    for image in proposals():
        writer.add(*image)
    writer.close()
    join_parts(path, 1, "mixing", made_with)
    own = network_cfg(cfg, "fast_rcnn")
    stages._loader(cfg, own, "fast_rcnn")
    rpn_weights(stage_file(cfg, "rpn"), 2.0)
    refusal(
        lambda: stages._loader(cfg, own, "fast_rcnn"),
        f"{path}: was made with rpn_sha256 {made_with['rpn_sha256']}",
        f"remove {path.parent} and {tmp_path / 'run' / 'fast_rcnn'}",
    )


# ---- studies ----


@pytest.mark.parametrize("left", ["results.json", "model_0000003.pth"])
def test_another_studys_runs_are_not_put_into_one_table(tmp_path, left):
    write_json(tmp_path / "narrow" / "options.json", ["a.yaml"])
    (tmp_path / "narrow" / "seed0").mkdir()
    (tmp_path / "narrow" / "seed0" / left).write_text("{}")
    before = contents(tmp_path)
    wide = [Setting("wide", Path("b.yaml"))]
    refusal(
        lambda: run_all(Path("none.py"), wide, 1, tmp_path, [], jobs=1),
        f"{tmp_path}: holds runs of another study (narrow/); choose another OUTPUT_DIR",
    )
    assert contents(tmp_path) == before
    (tmp_path / "narrow" / "seed0" / left).unlink()  # it came to nothing
    with pytest.raises(InputError, match="runs failed"):
        run_all(Path("none.py"), wide, 1, tmp_path, [], jobs=1)


# ---- files of proposals ----


def test_two_tools_that_make_one_file(tmp_path, others):
    """They would write into each other's parts."""
    path = tmp_path / "made.safetensors"
    others(parts_of(path))
    (parts_of(path) / "0.boxes").write_bytes(b"the other's")
    with pytest.raises(InputError) as caught, alone(path):
        write_proposals(path, proposals(), "mine")
    assert str(caught.value).startswith(f"{parts_of(path)}: is in use by ")
    assert str(caught.value).endswith("or choose another --output")
    assert (parts_of(path) / "0.boxes").read_bytes() == b"the other's" and not path.exists()


def test_one_that_has_finished_meanwhile(tmp_path):
    path = tmp_path / "made.safetensors"
    path.write_bytes(b"the other's")
    with pytest.raises(InputError, match=rf"^{path}: is there already"), alone(path):
        write_proposals(path, proposals(), "mine")
    assert contents(tmp_path) == {path.name: b"the other's"}


@pytest.mark.parametrize("main", [True, False])
def test_of_one_that_fails_nothing_is_left(tmp_path, main):
    """Parts of a process that is not the first are the first one's to remove."""
    path = tmp_path / "made.safetensors"
    with pytest.raises(ZeroDivisionError), alone(path, main):
        ProposalWriter(path, part=3)
        raise ZeroDivisionError
    assert parts_of(path).exists() != main
    assert os.path.realpath(parts_of(path) / lock.NAME) not in lock._held


def test_a_conversion_on_a_full_disk(tmp_path):
    source, pickled = tmp_path / "a.safetensors", tmp_path / "out" / "a.pkl"
    write_proposals(source, proposals(range(500)), "a set")
    with (
        small_disk(4096),
        pytest.raises(InputError, match=rf"^{pickled}: cannot be written \("),
    ):
        convert(source, pickled, "detectron2")
    assert not list(pickled.parent.iterdir())
    convert(source, pickled, "detectron2")
    back = pickled.with_name("b.safetensors")
    with small_disk(4096), pytest.raises(InputError, match=rf"^{back}: cannot be written \(File"):
        convert(pickled, back, "resnext_det")
    assert [path.name for path in pickled.parent.iterdir()] == ["a.pkl"]
    convert(pickled, back, "resnext_det")
    assert [path.name for path in sorted(back.parent.iterdir())] == ["a.pkl", "b.safetensors"]


# ---- predictions, the demo ----


def test_a_picture_that_does_not_fit(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (99, 99, 3), dtype=np.uint8)
    path = tmp_path / "pictures" / "a.jpg"
    with small_disk(1024), pytest.raises(InputError) as caught:
        predict_files._save(noise, path)
    assert str(caught.value).startswith(f"{path}: cannot be written (File too large); raise the")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"\(Not a directory\); remove the folder, or choose ano"):
        predict_files._save(noise, tmp_path / "file" / "a.jpg")


def test_two_demos_at_once(tmp_path, others, monkeypatch, capsys):
    """Also with other weights: both draw one data set."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["demo.py", "--random-weights"])
    others(tmp_path / "output" / "demo")
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(ROOT / "tools" / "demo.py"), run_name="__main__")
    said = capsys.readouterr().err
    assert caught.value.code == 2 and said.count("\n") == 1
    assert said.startswith("error: output/demo: is in use by ") and "start it elsewhere" in said
    assert os.listdir(tmp_path / "output" / "demo") == [".lock"]
