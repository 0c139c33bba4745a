"""Guard that a broken newest checkpoint costs the steps since the one before, and is named.

In both tasks and all stages, to the bit: the weights are those of a run that nothing disturbed.
"""

import logging
import sys
from pathlib import Path

import pytest
import torch
from killed_sets import classification

from resnext_det.classification import trainer as classifier
from resnext_det.config import load_cfg
from resnext_det.detection import pipeline
from resnext_det.engine.trainer import Trainer
from resnext_det.errors import InputError
from resnext_det.weights import read_weights

sys.path.insert(0, str(Path(__file__).parents[1] / "field"))
from tiny_sets import make_cfg, plain_set  # noqa: E402

LONGER = {"SOLVER.FAST_RCNN.MAX_ITER": 9, "TEST.EVAL_PERIOD": 0}


def detect(folder, data, resume):
    own_set = [(f"broken_{folder.name}", data / "set.json", data)]
    pipeline.run(make_cfg(folder, own_set, **LONGER), resume)


def classify(folder, data, resume):
    others = {"SOLVER.MAX_ITER": 9, "TEST.EVAL_PERIOD": 0, "DATALOADER.NUM_WORKERS": 0}
    words = classification(data, **others).words
    classifier.train(load_cfg(words[2], [*words[3:], "OUTPUT_DIR", str(folder)]), resume)


RUNS = {"classification": (classify, "."), "rpn": (detect, "rpn")}
RUNS |= {"fast_rcnn": (detect, "fast_rcnn")}


@pytest.fixture
def killed_in(monkeypatch):
    """killed_in(folder, run): end the run in the eighth step of its network in ``folder``."""
    step = Trainer.run_step

    def killed(folder, run):
        def killed_step(self):
            if self.iter == 7 and Path(self.cfg.OUTPUT_DIR) == folder:
                raise MemoryError
            step(self)

        with monkeypatch.context() as patch, pytest.raises(MemoryError):
            patch.setattr(Trainer, "run_step", killed_step)
            run()

    return killed


def checkpoints(folder):
    return sorted(path.name for path in folder.glob("model_0*.pth"))


@pytest.mark.parametrize("name", RUNS)
def test_it_falls_back_to_the_one_before(tmp_path, killed_in, caplog, name):
    train, below = RUNS[name]
    data, whole, folder = tmp_path / "data", tmp_path / "whole", tmp_path / "run"
    data.mkdir()
    plain_set(data)
    train(whole, data, False)
    killed_in(folder / below, lambda: train(folder, data, False))
    assert checkpoints(folder / below) == ["model_0000003.pth", "model_0000005.pth"]
    newest = folder / below / "model_0000005.pth"
    content = newest.read_bytes()
    newest.write_bytes(content[: len(content) // 2])
    with caplog.at_level(logging.INFO):
        train(folder, data, True)
    before = newest.with_name("model_0000003.pth")
    assert [line for line in caplog.messages if line.startswith(f"passed over: {newest}: is not a")]
    assert f"resumed from {before}: going on at iteration 4 of 9" in caplog.messages
    ours, theirs = (read_weights(run / "model_final.safetensors")[0] for run in (folder, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert (folder / "results.json").read_bytes() == (whole / "results.json").read_bytes()


def test_without_any_that_is_whole_it_begins_and_says_so(tmp_path, killed_in, caplog):
    data, folder = tmp_path / "data", tmp_path / "run"
    killed_in(folder, lambda: classify(folder, data, False))
    for name in checkpoints(folder):
        (folder / name).write_bytes(b"half")
    with caplog.at_level(logging.INFO):
        classify(folder, data, True)
    assert len([line for line in caplog.messages if line.startswith("passed over: ")]) == 2
    assert f"{folder}: no checkpoint to go on with, beginning" in caplog.messages


def test_a_broken_final_file_is_named(tmp_path, killed_in):
    """Something else than a stop has broken it, and no stage goes on with it."""
    data, folder = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    plain_set(data)
    killed_in(folder / "fast_rcnn", lambda: detect(folder, data, False))
    final = folder / "rpn" / "model_final.safetensors"
    final.write_bytes(final.read_bytes()[:100])
    with pytest.raises(InputError) as caught:
        detect(folder, data, True)
    assert str(caught.value).startswith(f"{final}: ") and "\n" not in str(caught.value)
