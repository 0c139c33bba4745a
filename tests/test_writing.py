"""Guard the promise that a file is whole or absent, and that a full disk is told in one line."""

import ast
import errno
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from small_disk import contents, small_disk
from torch import nn

from resnext_det import writing
from resnext_det.data.proposals import write_proposals
from resnext_det.detection.confusion import write_table
from resnext_det.detection.scorer_arrays import Detections
from resnext_det.detection.scorer_results import write_results
from resnext_det.engine.checkpoint import RunCheckpointer
from resnext_det.engine.run import write_json
from resnext_det.errors import InputError, disk_error, exit_cleanly, not_written
from resnext_det.weights import WeightsRecord, export, save_weights
from resnext_det.writing import (
    open_for_torch,
    open_whole,
    told_of_writing,
    write_array,
    write_text,
    written_whole,
)

FULL = "/dev/full"  # every write to it says that the disk is full
MUCH = 100_000  # bytes, more than any buffer


def tensors():
    return {"weight": torch.arange(MUCH // 4, dtype=torch.float32)}


def proposals(path):
    boxes = np.ones((MUCH // 16, 4), np.float32)
    write_proposals(path, [(1, boxes, boxes[:, 0])], "a set")


def detections(path):
    rows = MUCH // 50
    found = Detections(
        images=np.zeros(rows, int),
        classes=np.zeros(rows, int),
        boxes=np.zeros((rows, 4)),
        scores=np.zeros(rows),
    )
    write_results(path, found, SimpleNamespace(image_ids=[7], class_ids=[2]))


def checkpoint(path):
    model = nn.Linear(MUCH // 4, 1)
    RunCheckpointer(model, str(path.parent)).save(path.stem, iteration=3)


RECORD = WeightsRecord(
    kind="rpn", architecture={}, pixel_format="RGB", pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3
)
WRITERS = {
    "text": lambda path: write_text(path, "x" * MUCH),
    "JSON": lambda path: write_json(path, ["x" * MUCH]),
    "array": lambda path: write_array(path, np.zeros(MUCH)),
    "table": lambda path: write_table(path, ["a" * MUCH, "background"], [[1, 2], [3, 4]]),
    "weights": lambda path: save_weights(path, tensors(), RECORD),
    "weights for timm": lambda path: export._write(path, tensors(), RECORD, "timm"),
    "weights for torchvision": lambda path: export._write(path, tensors(), RECORD, "torchvision"),
    "proposals": proposals,
    "detections": detections,
    "checkpoint": checkpoint,
}


@pytest.mark.parametrize("before", [False, True], ids=["new", "in place of another"])
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_full_disk_leaves_what_was_there(tmp_path, write, before):
    """By the system's limit of a file's size, in the middle of it; then it goes on as before."""
    path = tmp_path / "model_0000003.pth"
    if before:
        path.write_bytes(b"the former one")
    there = contents(tmp_path)
    with small_disk(MUCH // 2), pytest.raises(InputError) as caught:
        write(path)
    assert str(caught.value).startswith(f"{path}: cannot be written (File too large); raise the")
    assert caught.value.__cause__ is not None and "--resume" in caught.value.mend
    assert contents(tmp_path) == there and not list(tmp_path.glob("*.parts"))
    write(path)
    assert set(contents(tmp_path)) - {"last_checkpoint"} == {path.name}
    assert path.stat().st_size >= MUCH


@pytest.mark.parametrize("name", ["text", "JSON", "array", "weights for torchvision", "checkpoint"])
def test_no_space_left_on_the_device(tmp_path, name):
    """The system's own words, of a device that is full."""
    path = tmp_path / "model_0000003.pth"
    (tmp_path / f".{path.name}.{os.getpid()}.tmp").symlink_to(FULL)
    with pytest.raises(InputError) as caught:
        WRITERS[name](path)
    assert str(caught.value) == (
        f"{path}: cannot be written (No space left on device); free some space and give the same "
        "command again (a training with --resume)"
    )
    assert not list(tmp_path.iterdir())


def test_no_space_left_for_rows_of_proposals(tmp_path):
    path = tmp_path / "made.safetensors"
    (tmp_path / "made.safetensors.parts").mkdir()
    (tmp_path / "made.safetensors.parts" / "0.boxes").symlink_to(FULL)
    with pytest.raises(InputError, match=rf"{path}: cannot be written \(No space left on device"):
        proposals(path)
    assert not list(tmp_path.iterdir())


def test_a_place_that_is_none(tmp_path):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "a.json"
    with pytest.raises(InputError, match=rf"{path}: cannot be written \(Not a directory\)"):
        write_json(path, 1)
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"folder: cannot be written \(Is a directory\); my mend"):
        write_text(tmp_path / "folder", "x", "my mend")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(InputError, match=r"cannot be written \(Permission denied\); make it"):
            write_json(tmp_path / "a.json", 1)
    finally:
        tmp_path.chmod(0o700)


def test_a_folder_in_which_nobody_may_write():
    with pytest.raises(InputError, match=r"^/proc/none/a.json: cannot be written \("):
        write_json("/proc/none/a.json", 1)


def test_whole_means_on_the_disk_before_the_rename(tmp_path, monkeypatch):
    order = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (order.append("sync"), sync(file)))
    monkeypatch.setattr(os, "replace", lambda *paths: (order.append("rename"), replace(*paths)))
    write_text(tmp_path / "a", "x")
    assert order == ["sync", "rename"]


@pytest.mark.parametrize("number, passes", [(errno.EINVAL, True), (errno.EIO, False)])
def test_a_file_system_without_sync(tmp_path, monkeypatch, number, passes):
    def fail(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    if passes:
        write_text(tmp_path / "a", "x")
    else:
        with pytest.raises(InputError, match="Input/output error"):
            write_text(tmp_path / "a", "x")
    assert (tmp_path / "a").exists() == passes


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("ours"), InputError("b", "is", "do"), OSError("x")]
)
def test_other_errors_are_not_the_disks(tmp_path, error):
    with pytest.raises(type(error)) as caught, written_whole(tmp_path / "a") as aside:
        aside.write_text("half")
        raise error
    assert caught.value is error and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text",
    ["I/O error: No space left on device (os error 28)", "IoError(Os { code: 28, kind: X })"],
)
def test_what_safetensors_says(text):
    with pytest.raises(InputError, match=r"^a: cannot be written \(No space left on device\)"):
        with told_of_writing("a"):
            raise SafetensorError(text)


def test_torch_reads_what_was_written_through_a_file(tmp_path):
    with open_for_torch(tmp_path / "a.pth") as file:
        torch.save(tensors(), file)
    found = torch.load(tmp_path / "a.pth", weights_only=True)
    assert torch.equal(found["weight"], tensors()["weight"])


def test_text_is_utf8_and_options_reach_the_file(tmp_path):
    write_text(tmp_path / "a", "\u00e4\n")
    assert (tmp_path / "a").read_bytes() == b"\xc3\xa4\n"
    with open_whole(tmp_path / "deep" / "b", "w", newline="\r\n") as file:
        file.write("1\n")
    assert (tmp_path / "deep" / "b").read_bytes() == b"1\r\n"


@pytest.mark.parametrize(
    "error, is_one",
    [
        (OSError(errno.ENOSPC, "x"), True),
        (OSError(errno.EDQUOT, "x"), True),
        (OSError(errno.EFBIG, "x"), True),
        (OSError(errno.EROFS, "x"), True),
        (PermissionError(errno.EACCES, "x", "file"), True),
        (PermissionError(errno.EACCES, "x"), False),
        (FileNotFoundError(errno.ENOENT, "x", "file"), False),
        (OSError("x"), False),
        (ValueError("x"), False),
        (None, False),
    ],
)
def test_whose_error_it_is(error, is_one):
    assert disk_error(error) == is_one


def test_what_to_do_goes_by_the_reason():
    mends = [not_written("a", n, "x", "elsewhere").mend for n in (28, errno.EFBIG, errno.EROFS)]
    assert [mend.split()[0] for mend in mends] == ["free", "raise", "elsewhere"]
    assert "--resume" in not_written("a", errno.EROFS, "x").mend
    assert not_written(None, 28, "x").file == "the disk"


TRACEBACK = (
    "\n\n-- Process 1 terminated with the following error:\nTraceback (most recent call last):\n"
)
IN_WORDS = {  # error -> the line of a tool
    OSError(
        28, "No space left on device"
    ): "the disk: cannot be written (No space left on device); f",
    OSError(
        30, "Read-only file system", "a"
    ): "a: cannot be written (Read-only file system); make it",
    OSError(
        13, "Permission denied", "a"
    ): "a: cannot be used (Permission denied); give yourself acc",
    RuntimeError(
        f"{TRACEBACK}OSError: [Errno 28] No space left\n"
    ): "the disk: cannot be written (No",
    RuntimeError(
        f"{TRACEBACK}PermissionError: [Errno 13] Permission denied: '/b'"
    ): "/b: cannot be u",
}


@pytest.mark.parametrize("error, line", IN_WORDS.items(), ids=range(len(IN_WORDS)))
def test_a_tool_tells_what_nobody_has_told(error, line, capsys):
    """A picture that does not fit, in this process or in another one of the run."""

    @exit_cleanly
    def tool():
        raise error

    with pytest.raises(SystemExit) as caught:
        tool()
    said = capsys.readouterr().err
    assert caught.value.code == 2 and said.startswith(f"error: {line}") and said.count("\n") == 1


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(2, "No such file or directory", "a"),
        PermissionError(13, "Permission denied"),
        RuntimeError(f"{TRACEBACK}FileNotFoundError: [Errno 2] No such file: 'a'"),
        RuntimeError(f"{TRACEBACK}OSError: [Errno 2] No such file: 'a'"),
        RuntimeError("OSError: [Errno 28] No space left on device\nand then ours"),
    ],
)
def test_faults_of_ours_keep_their_traceback(error):
    @exit_cleanly
    def tool():
        raise error

    with pytest.raises(type(error)) as caught:
        tool()
    assert caught.value is error


# Where the package writes otherwise than through `writing`, and why that leaves no half file.
OTHERWISE = {
    "classification/studies.py": "adds to a log",
    "data/demo.py": "demo.json is renamed when all the others are there",
    "data/imagenet5k.py": "into a folder that is renamed",
    "data/lists.py": "into the folder of imagenet5k.py",
    "data/proposals.py": "parts, which are joined",
    "data/shards.py": "a cache, renamed; a failure is a notice",
    "detection/predict_files.py": "pictures, in a folder that no second command writes to",
    "engine/checkpoint.py": "cuts off a half line",
    "engine/memory.py": "the kernel's",
    "models/measured.py": "a cache, renamed; a failure is a notice",
    "writing.py": "itself",
}


def writes(source):
    """Whether a source opens a file to write it, or has a path written."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Name("open"), args=[_, ast.Constant(str(mode)), *_]):
                if set(mode) & set("wax+"):
                    return True
            case ast.Call(func=ast.Attribute(attr="write_text" | "write_bytes")):
                return True
            case ast.Call(func=ast.Attribute(ast.Name("json" | "pickle" | "yaml"), "dump")):
                return True
    return False


@pytest.mark.parametrize(
    "source, found",
    [
        ('open(path, "wb")', True),
        ('with open(path, "r+b") as file: pass', True),
        ("path.write_text(x)", True),
        ("(folder / name).write_bytes(x)", True),
        ("json.dump(x, file)", True),
        ("open(path)", False),
        ('open(path, "rb")', False),
        ('write_text(path, "x")', False),
        ("cfg.dump()", False),
    ],
)
def test_what_counts_as_writing(source, found):
    assert writes(source) == found


def test_nothing_else_is_written():
    root = Path(writing.__file__).parent
    found = {str(p.relative_to(root)) for p in root.rglob("*.py") if writes(p.read_text())}
    assert found == set(OTHERWISE)


@pytest.mark.parametrize("write", [lambda p: write_text(p, "a"), lambda p: save_file({}, p)])
def test_others_may_read_what_open_lets_them_read(tmp_path, write):
    """safetensors makes files that no one else can read."""
    with open(tmp_path / "plain", "w"), written_whole(tmp_path / "ours") as aside:
        write(aside)
    modes = [(tmp_path / name).stat().st_mode for name in ("plain", "ours")]
    assert modes[0] == modes[1]
