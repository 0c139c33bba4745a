"""Guard the converter's command line: it says all that it knows, and never harms a file."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from resnext_det.models import Architecture, build_resnext
from resnext_det.weights import read_record, read_weights
from resnext_det.weights.names import to_caffe2, to_torchvision

TOOL = str(Path(__file__).parents[2] / "tools" / "convert_weights.py")


@pytest.fixture
def state():
    """torchvision's, of a network of its own width."""
    torch.manual_seed(0)
    member = Architecture.from_name("X14_4x4d")
    model = build_resnext(**member.as_dict(), num_classes=5)
    return {to_torchvision(name): tensor for name, tensor in model.state_dict().items()}


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """The tool in a folder; gives its exit status, lines of output, and error line."""
    monkeypatch.chdir(tmp_path)

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["convert_weights.py", *map(str, args)])
        status = 0
        try:
            runpy.run_path(TOOL, run_name="__main__")
        except SystemExit as end:
            status = end.code
        printed = capsys.readouterr()
        return status, printed.out.splitlines(), printed.err

    return call


def test_it_says_what_it_did(run, state):
    torch.save({"state_dict": state, "epoch": 90, "optimizer": {"lr": 0.1}}, "in.pth")
    status, lines, errors = run("in.pth", "out.safetensors")
    assert status == 0 and errors == ""
    assert lines == [
        "family: torchvision or timm",
        "architecture: X14_4x4d",
        "pixels: RGB, mean [123.675, 116.28, 103.53], std [58.395, 57.12, 57.375]",
        "norms: with statistics",
        f"entries used: {len(state)} of {len(state) + 2}",
        "not used: 2 x stands beside the weights: epoch, optimizer",
        "wrote: out.safetensors (resnext_det)",
    ]
    assert read_record("out.safetensors").family == "torchvision"


def test_there_and_back(run, state):
    torch.save(state, "in.pth")
    assert run("in.pth", "ours.safetensors")[0] == 0
    assert run("ours.safetensors", "back.pth", "--to", "torchvision")[0] == 0
    assert run("ours.safetensors", "timm.safetensors", "--to", "timm")[0] == 0
    for back in (torch.load("back.pth", weights_only=True), load_file("timm.safetensors")):
        assert set(back) == set(state)
        assert all(torch.equal(back[name], state[name]) for name in state)


def test_stated_facts(run, state):
    """With Detectron2's names and no author nothing is known, and four options say it."""
    native = {f"backbone.bottom_up.{k}": v for k, v in read_native(state).items()}
    save_file(native, "in.safetensors")
    status, lines, errors = run("in.safetensors", "out.safetensors")
    assert status == 2 and lines == [] and errors.count("\n") == 1
    options = ["--pixel-format", "BGR", "--pixel-mean", "103.53", "116.28", "123.675"]
    options += ["--pixel-std", "1", "1", "1", "--stride-in-1x1", "true"]
    for word in ("--pixel-format", "--pixel-mean", "--pixel-std", "--stride-in-1x1"):
        assert word in errors
    status, lines, _ = run("in.safetensors", "out.safetensors", *options)
    assert status == 0
    assert "pixels: BGR, mean [103.53, 116.28, 123.675], std [1.0, 1.0, 1.0]" in lines
    record = read_record("out.safetensors")
    assert record.stride_in_1x1 and record.pixel_format == "BGR"
    assert "architecture: X14_4x4d_stride1x1" in lines


def read_native(state):
    torch.save(state, "x.pth")
    return read_weights("x.pth")[0]


def test_a_fused_file_says_so(run, state):
    native = read_native(state)
    blobs = {
        to_caffe2(name): tensor
        for name, tensor in native.items()
        if to_caffe2(name) and "running" not in name
    }
    torch.save({**blobs, "lr": torch.tensor(0.1)}, "in.pth")
    _, lines, _ = run("in.pth", "out.pth", "--to", "torchvision")
    assert "family: Caffe2 (Detectron)" in lines
    assert "norms: fused to scale and shift" in lines
    assert "not used: 1 x solver's state: lr" in lines
    assert any(line.startswith("note: its norms are fused") for line in lines)


REFUSALS = {
    "missing": (["nothing.pth", "out.safetensors"], "nothing.pth: the weights file does not exist"),
    "same": (["in.pth", "in.pth", "--to", "torchvision"], "in.pth: is the file to convert"),
    "there": (["in.pth", "there.safetensors"], "there.safetensors: exists already"),
    "ending": (["in.pth", "out.pth"], "out.pth: does not end in .safetensors"),
    "format": (["in.pth", "o.safetensors", "--pixel-format", "RBG"], "--pixel-format is 'RBG'"),
    "mean": (["in.pth", "o.safetensors", "--pixel-mean", "1", "nan", "1"], "--pixel-mean is"),
    "std": (["in.pth", "o.safetensors", "--pixel-std", "1", "0", "1"], "--pixel-std is"),
    "stride": (
        ["in.pth", "out.pth", "--to", "torchvision", "--stride-in-1x1", "true"],
        "has its stride in the 1x1",
    ),
    "text": (["text.pth", "out.safetensors"], "text.pth: is no weights file"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(run, state, tmp_path, case):
    """One line, exit status 2, nothing written and nothing changed."""
    torch.save(state, "in.pth")
    Path("there.safetensors").write_text("mine")
    Path("text.pth").write_text("hello")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    args, words = REFUSALS[case]
    status, lines, errors = run(*args)
    assert status == 2 and errors.startswith("error: ") and errors.count("\n") == 1
    assert words in errors and not any(line.startswith("wrote") for line in lines)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_file_with_a_record_takes_no_facts(run, state):
    torch.save(state, "in.pth")
    run("in.pth", "ours.safetensors")
    status, _, errors = run("ours.safetensors", "o.safetensors", "--pixel-format", "BGR")
    assert status == 2 and "has a record" in errors and "leave --pixel-format" in errors


@pytest.mark.parametrize(
    "args", [[], ["in.pth"], ["in.pth", "o.safetensors", "--to", "caffe2"]], ids=len
)
def test_usage(run, args):
    status, _, errors = run(*args)
    assert status == 2 and errors.startswith("error: command line: ") and errors.count("\n") == 1


def test_debug_keeps_the_traceback(run):
    with pytest.raises(ValueError, match="does not exist"):
        run("nothing.pth", "out.safetensors", "--debug")
