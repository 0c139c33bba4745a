"""Guard the promise that a kill costs no run: checkpoints are whole or absent, and run no code."""

import errno
import logging
import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from resnext_det.engine import checkpoint
from resnext_det.engine.checkpoint import RunCheckpointer, remove_leftovers
from resnext_det.errors import InputError


class Counter:
    """Something that is saved beside the model."""

    def __init__(self, count):
        self.count = count

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Linear(3, 2)


@pytest.fixture
def checkpointer(model, tmp_path):
    return RunCheckpointer(model, str(tmp_path), counter=Counter(5))


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_comes_back(checkpointer, model, tmp_path):
    checkpointer.save("model_0000003", iteration=3)
    assert files(tmp_path) == ["last_checkpoint", "model_0000003.pth"]
    other = nn.Linear(3, 2)
    reader = RunCheckpointer(other, str(tmp_path), counter=Counter(0))
    assert reader.load(reader.newest())["iteration"] == 3
    assert torch.equal(other.weight, model.weight) and torch.equal(other.bias, model.bias)
    assert reader.checkpointables["counter"].count == 5


def test_nothing_is_left_of_a_save_that_fails(checkpointer, tmp_path, monkeypatch):
    """Out of disk space in the middle of a write: the file before it stays, whole."""
    checkpointer.save("model_0000003", iteration=3)
    before = (tmp_path / "model_0000003.pth").read_bytes()

    def fail_halfway(_data, file):
        file.write(before[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", fail_halfway)
    for name in ("model_0000003", "model_0000007"):
        with pytest.raises(InputError, match=rf"{name}.pth: cannot be written \(No space left"):
            checkpointer.save(name, iteration=7)
    assert files(tmp_path) == ["last_checkpoint", "model_0000003.pth"]
    assert (tmp_path / "model_0000003.pth").read_bytes() == before
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_0000003.pth")


def test_file_appears_only_when_it_is_whole(checkpointer, tmp_path, monkeypatch):
    replaced = []
    replace = os.replace

    def check_then_replace(source, target):
        if str(target).endswith(".pth"):
            assert not Path(target).exists()
            assert torch.load(source, weights_only=True)["iteration"] == 3
        replaced.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", check_then_replace)
    checkpointer.save("model_0000003", iteration=3)
    assert replaced == ["model_0000003.pth", "last_checkpoint"]


@pytest.mark.parametrize("kept", [0, 10, 0.5, -1])
def test_newest_passes_over_a_broken_file(checkpointer, tmp_path, caplog, kept):
    for iteration in (3, 7, 11):
        checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
    broken = tmp_path / "model_0000011.pth"
    content = broken.read_bytes()
    broken.write_bytes(content[: int(len(content) * kept) if isinstance(kept, float) else kept])
    with caplog.at_level(logging.WARNING, logger=checkpoint.__name__):
        assert checkpointer.newest() == str(tmp_path / "model_0000007.pth")
    (said,) = caplog.messages
    assert said.startswith(f"passed over: {broken}: is not a whole checkpoint (")
    assert said.endswith("remove it; the run then resumes from the one before")


OTHERS = {
    "holds a list, no checkpoint; remove it": [1, 2],
    "holds a Tensor, no checkpoint; remove it": torch.zeros(3),
    "has no iteration to go on from": {"conv1.weight": torch.zeros(3)},
}


@pytest.mark.parametrize("words", OTHERS)
def test_newest_passes_over_what_is_no_checkpoint(checkpointer, tmp_path, caplog, words):
    """Weights that a user has put there, say."""
    checkpointer.save("model_0000003", iteration=3)
    torch.save(OTHERS[words], tmp_path / "model_mine.pth")
    with caplog.at_level(logging.WARNING, logger=checkpoint.__name__):
        assert checkpointer.newest() == str(tmp_path / "model_0000003.pth")
    assert caplog.messages == [f"passed over: {tmp_path / 'model_mine.pth'}: {words}"]


def test_a_half_line_of_metrics_is_cut_off(tmp_path, caplog):
    """A full disk takes a part of it; the next line would be joined to that."""
    path = tmp_path / "metrics.json"
    for content, kept in ((b"", b""), (b"{}\n{}\n", b"{}\n{}\n"), (b"{", b"")):
        path.write_bytes(content)
        remove_leftovers(tmp_path)
        assert path.read_bytes() == kept
    path.write_bytes(b'{"a": 1}\n{"a": 2}\n{"a":')
    with caplog.at_level(logging.INFO, logger=checkpoint.__name__):
        remove_leftovers(tmp_path)
    assert path.read_bytes() == b'{"a": 1}\n{"a": 2}\n'
    assert "its last line was cut off" in caplog.messages[-1]
    path.unlink()
    path.symlink_to("/dev/full")  # no file of ours
    remove_leftovers(tmp_path)


def test_newest_of_an_empty_folder(checkpointer):
    assert checkpointer.newest() is None


def test_newest_is_by_iteration_when_a_finished_run_is_made_longer(checkpointer, tmp_path):
    """model_final.pth of the shorter run lies beside the later checkpoints of the longer one."""
    checkpointer.save("model_final", iteration=9)
    checkpointer.save("model_0000015", iteration=15)
    assert checkpointer.newest() == str(tmp_path / "model_0000015.pth")


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (Path(self.marker),)


@pytest.mark.parametrize("write", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x))])
def test_a_malicious_pickle_does_not_run(checkpointer, tmp_path, write):
    """A checkpoint from a stranger is data, never a program."""
    path, marker = tmp_path / "model_0000011.pth", tmp_path / "ran"
    write({"model": {}, "iteration": Malicious(marker)}, path)
    torch.load(path, weights_only=False) if write is torch.save else pickle.loads(path.read_bytes())
    assert marker.exists()  # it does run when it is let
    marker.unlink()
    with pytest.raises(InputError) as caught:
        checkpointer.load(str(path))
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    assert checkpointer.newest() is None
    assert not marker.exists()


def test_a_byte_that_a_disk_has_changed(tmp_path):
    """torch stores a sum of every part, and does not look at it."""
    model = nn.Linear(50, 50)
    RunCheckpointer(model, str(tmp_path)).save("model_0000003", iteration=3)
    path = tmp_path / "model_0000003.pth"
    content = bytearray(path.read_bytes())
    place = content.index(model.weight.detach().numpy().tobytes()[:64])
    content[place + 5] ^= 1
    path.write_bytes(content)
    assert torch.load(path, weights_only=True)["iteration"] == 3  # it sees nothing
    with pytest.raises(InputError, match="is not what its sum says"):
        RunCheckpointer.read(path)


def test_what_an_evaluation_on_the_way_left_goes_too(tmp_path):
    below = tmp_path / "inference" / "custom_val"
    below.mkdir(parents=True)
    for name in (".confusion.json.17635.tmp", "confusion.json"):
        (below / name).write_text("{}")
    remove_leftovers(tmp_path)
    assert [path.name for path in below.iterdir()] == ["confusion.json"]
