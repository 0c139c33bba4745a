"""Every script in benchmarks/ runs from its command line, at its smallest size, and reports."""

import json
import math
import runpy
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import torch
from torch import nn

from resnext_det.data.proposals import write_proposals

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
COMMON = {"benchmark", "machine", "threads", "versions"}


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs a script as a command line would, in this process; its JSON object."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.chdir(ROOT)
    import _pairs

    monkeypatch.setattr(_pairs, "GEMM", 32)
    threads, own = torch.get_num_threads(), cv2.getNumThreads()

    def run(script, *args):
        monkeypatch.setattr(sys, "argv", [script, *map(str, args)])
        capsys.readouterr()
        runpy.run_path(str(BENCHMARKS / script), run_name="__main__")
        return json.loads(capsys.readouterr().out)

    yield run
    torch.set_num_threads(threads)  # a script has its process for itself
    cv2.setNumThreads(own)


def command(script, *args):
    """As `run`, in a process of its own."""
    words = [sys.executable, str(BENCHMARKS / script), *map(str, args)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True)


def spreads(found):
    """All {"median", "min", "max"} in a report."""
    if isinstance(found, dict):
        if "median" in found:
            yield found
        else:
            for value in found.values():
                yield from spreads(value)


def check_spreads(found, at_least):
    seen = list(spreads(found))
    assert len(seen) >= at_least
    for spread in seen:
        assert 0 < spread["min"] <= spread["median"] <= spread["max"] < math.inf


def check_written(found, path):
    assert json.loads(path.read_text()) == found


# ---- what feeds a step ----


def test_data(run, tmp_path):
    output = tmp_path / "data.json"
    args = ["--count", 4, "--batch", 2, "--repeats", 1, "--output", output]
    found = run("data.py", *args)
    check_written(found, output)
    assert found.keys() == COMMON | {"arguments", "classification", "detection"}
    assert found["threads"] == 1
    check_spreads(found, 60)
    for kind, pixels in (("classification", 500 * 375), ("detection", 640 * 480)):
        part = found[kind]
        assert part["files"]["images"] == 4 and part["files"]["pixels"] == pixels
        assert 0.3 < part["files"]["bytes a pixel"] < 0.7  # a photograph's
        assert part["decode"]["pixels"]["Pillow"] == {"equal": True, "mean": 0.0, "largest": 0}
        assert set(part["decode"]["ratios"]) >= {"OpenCV / ours", "torchvision.io / ours"}
        assert part["resize"]["pixels"]["torchvision tensors"]["largest"] <= 1
        for loader in ("training loader", "evaluation loader"):
            assert part[loader].keys() == {"0 workers", "1 workers"}
    assert "Lighting" in found["classification"]["training steps, ms"]
    for split in ("train", "val"):  # the same pixels as Detectron2's mapper
        assert found["detection"][f"{split}, file to input"]["equal"] is True


def test_data_of_ones_own(run, demo_set, tmp_path):
    args = ["--count", 4, "--batch", 2, "--repeats", 1, "--output", tmp_path / "data.json"]
    args += ["--root", demo_set / "classification"]
    args += ["--json", demo_set / "annotations/train.json", "--images", demo_set / "train"]
    found = run("data.py", *args)
    assert found["detection"]["files"]["pixels"] == 192 * 256
    assert found["classification"]["files"]["pixels"] == 64 * 64


# ---- proposals ----

SECTIONS = ("write", "open", "open and read one image", "random access")


def test_proposals(run, tmp_path):
    args = ["--images", 30, "--boxes", 50, "--repeats", 1]
    output = tmp_path / "proposals.json"
    found = run("proposals.py", *args, "--folder", tmp_path, "--output", output)
    check_written(found, output)
    assert found["images"] == 30
    check_spreads(found, 8)
    assert all(found[section]["Detectron2 / ours"] > 0 for section in SECTIONS)
    for program in ("ours", "Detectron2"):
        assert found["file, MB"][program] >= 30 * 50 * 20 / 1e6
        assert found["memory after reading, MB"][program].keys() == {"own", "resident", "peak"}
    assert [path.name for path in tmp_path.iterdir()] == ["proposals.json"]  # nothing is left


def test_proposals_stay_out_of_memory(tmp_path):
    """docs/proposals.md's claim, on 8 MB, in a process without memory to use again."""
    args = ["--images", 200, "--boxes", 2000, "--repeats", 1]
    found = command("proposals.py", *args, "--folder", tmp_path, "--output", tmp_path / "p.json")
    memory = json.loads(found.stdout)["memory after reading, MB"]
    assert memory["ours"]["own"] < 4 < 8 <= memory["Detectron2"]["own"]


def test_proposals_of_ones_own(run, tmp_path):
    import _drawn

    path = tmp_path / "mine.safetensors"
    write_proposals(path, [(7 * i, *_drawn.draw_proposals(i, 9)) for i in range(5)], "a test")
    args = ["--file", path, "--repeats", 1, "--output", tmp_path / "out.json"]
    assert run("proposals.py", *args)["images"] == 5


# ---- growth ----


def test_scaling(run, tmp_path):
    output = tmp_path / "scaling.json"
    found = run("scaling.py", "--quick", "--repeats", 1, "--output", output)
    check_written(found, output)
    curves = found["curves"]
    assert len(curves) == 10 and set(found["above_linear"]) <= set(curves)
    check_spreads(found, 40)
    grown = {curve["by"] for curve in curves.values()}
    assert grown >= {"pixels", "RoIs", "images of a batch", "annotations", "images"}
    for curve in curves.values():
        (ours, peer) = curve["slope"]
        assert curve["why"] and curve["seconds"].keys() == {ours, peer}
        assert list(curve["ratios"]) == [f"{peer} / ours"]


@pytest.mark.parametrize("power", [0, 1, 2])
def test_slope(run, power):
    import _curves

    sizes = [10, 30, 100]
    assert _curves.slope(sizes, [3 * n**power for n in sizes]) == pytest.approx(power, abs=1e-3)


def test_a_steep_curve_is_told(run):
    import _curves

    data = list(range(3000))
    quadratic = {n: lambda n=n: [sum(data[:n]) for _ in range(n)] for n in (300, 3000)}
    flat = {n: lambda: sum(data) for n in (300, 3000)}
    curve = _curves.Curve("sums", by="n", runs={"ours": quadratic, "flat": flat}, why="n sums of n")
    found = _curves.measured(curve, 3)
    assert found["is above linear"] and found["slope"]["flat"] < 1


# ---- those of before ----


@pytest.fixture
def quick_weights(monkeypatch):
    """Networks of 50 layers are built dozens of times; their random numbers take most of it."""

    def mean(tensor, *_, **__):
        return tensor.data.fill_(tensor.shape[0] / tensor.numel())

    for name in ("kaiming_uniform_", "kaiming_normal_"):
        monkeypatch.setattr(nn.init, name, mean)


def test_scorer(run):
    args = ["--repeats", 1, "--images", 10, "--objects", 30, "--detections", 100]
    found = run("scorer.py", *args)
    assert found["largest_difference"] <= 1e-9
    check_spreads(found, 3)


def test_proposal_memory(run, tmp_path):
    args = ["--images", 30, "--boxes", 20, "--workers", 1, "--reads", 40, "--folder", tmp_path]
    found = run("proposal_memory.py", *args)
    assert found["worker"].keys() == {"0"} and found["main"].keys() >= {"after reading"}


def test_trunk(run, quick_weights):
    found = run("trunk.py", "--repeats", 1, "--batch", 2, "--size", "32x48")
    for mode in ("inference", "training"):
        for precision in ("fp32", "bf16"):
            assert "torchvision / ours X-50" in found[f"{mode} {precision}"]["ratios"]
    assert "released / ours X-50" in found["training bf16"]["ratios"]
    assert found["arguments"]["size"] == [32, 48]
    check_spreads(found, 40)


def test_pooling(run):
    found = run("pooling.py", "--repeats", 1, "--rois", 3)
    for name in ("RoIPool", "RoIAlign"):
        assert found[name]["forward"]["torchvision / ours"] > 0
    check_spreads(found, 8 if found["in_c"] else 6)


def test_detector(run, quick_weights, tmp_path, monkeypatch):
    """With few RoIs: a config of the same name, relative to the folder that it is run in."""
    name = "configs/faster_rcnn_X50_32x4d.yaml"
    few = {"ROI_HEADS": {"BATCH_SIZE_PER_IMAGE": 2}, "RPN": {"POST_NMS_TOPK_TEST": 2}}
    (tmp_path / "configs").mkdir()
    (tmp_path / name).write_text(json.dumps({"_BASE_": str(ROOT / name), "MODEL": few}))
    monkeypatch.chdir(tmp_path)
    found = run("detector.py", "--repeats", 1, "--height", 64, "--width", 64)
    assert found["training"].keys() >= {"RPN step", "Fast R-CNN step"}
    assert "stock, shared / ours" in found["inference"]["ratios"]
    check_spreads(found, 10)


# ---- refusals ----


@pytest.mark.parametrize(
    "script, args, words",
    [
        ("data.py", ["--json", "a.json"], ["--images", "give both"]),
        ("data.py", ["--count", "3", "--batch", "2"], ["--count 3", "give --count 4 or more"]),
        ("data.py", ["--count", "4", "--batch", "0"], ["--batch 0", "give 1 or more"]),
        ("proposals.py", ["--boxes", "0"], ["--boxes 0", "give 1 or more"]),
        ("proposals.py", ["--file", "no.safetensors"], ["no.safetensors: ", "does not exist"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_refusals(run, capsys, script, args, words):
    with pytest.raises(SystemExit) as stopped:
        run(script, *args)
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and said.count("\n") == 1
    assert all(word in said for word in words), said


@pytest.mark.parametrize("script", sorted(p.name for p in BENCHMARKS.glob("[!_]*.py")))
def test_each_has_a_test_and_says_what_it_does(run, script, monkeypatch, capsys):
    assert f'"{script}"' in Path(__file__).read_text() or script == "same_minutes.py"  # minutes
    with pytest.raises(SystemExit) as stopped:
        run(script, "--help")
    assert stopped.value.code == 0 and f"python benchmarks/{script}" in capsys.readouterr().out
