"""Guard what is known of the losses of a run: means, spoiled ones, the batches they came from."""

import json
import logging

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from resnext_det.config import get_cfg
from resnext_det.engine.losses import LossLog, images_of
from resnext_det.engine.trainer import Trainer
from resnext_det.errors import InputError

BATCH = [{"image_id": 7, "file_name": "a.jpg"}, {"image_id": 9, "file_name": "b.jpg"}]


def scalars(value):
    return {"loss_cls": torch.tensor(value), "loss_box": torch.tensor(0.5)}


def test_losses_keep_their_iterations(tmp_path):
    log = LossLog(tmp_path)
    with EventStorage(5) as storage:
        for iteration, value in ((3, 1.0), (4, 2.0)):
            log.add(iteration, scalars(value), 0.1 * iteration, [])
        assert not storage.latest()  # nothing was read from the device yet
        log.flush()
        histories = {name: storage.history(name).values() for name in storage.latest()}
    assert histories["total_loss"] == [(1.5, 3), (2.5, 4)]
    assert histories["loss_cls"] == [(1.0, 3), (2.0, 4)]
    assert [round(v, 6) for v, _ in histories["data_time"]] == [0.3, 0.4]
    log.flush()  # nothing is told twice
    assert len(histories["total_loss"]) == 2


def test_images_of_batches():
    assert images_of([{**BATCH[0], "image": 1}]) == [BATCH[0]]
    assert images_of({"image": torch.zeros(2), "label": torch.zeros(2)}) == []
    assert images_of([torch.zeros(2)]) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_spoiled_loss_names_its_images(tmp_path, value):
    log = LossLog(tmp_path)
    with EventStorage(0) as storage, pytest.raises(InputError) as caught:
        log.add(11, scalars(1.0), 0.0, [])
        log.add(12, scalars(value), 0.0, BATCH)
        log.flush()
    message = str(caught.value)
    assert "loss_cls became infinite or no number at iteration 12" in message
    assert "id 7, 9" in message and "SOLVER.CLIP_GRADIENTS.ENABLED True" in message
    kept = json.loads((tmp_path / "nonfinite_loss.json").read_text())
    assert kept["iteration"] == 12 and kept["images"] == BATCH
    assert kept["losses"] == [{"loss_cls": str(value), "loss_box": "0.5"}]
    assert storage.latest()["total_loss"] == (1.5, 11)


class Network(nn.Module):
    """Its loss is spoiled by one image."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, batch):
        spoiled = any(x["image_id"] == 5 for x in batch)
        return {"loss": (self.weight * (float("nan") if spoiled else 1.0)).sum()}


def config(folder, iterations=8, **solver):
    cfg = get_cfg()
    cfg.OUTPUT_DIR, cfg.SEED, cfg.MODEL.DEVICE = str(folder), 0, "cpu"
    cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD = 0.1, iterations, 2
    cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.STEPS = 0, ()
    for key, value in solver.items():
        cfg.SOLVER[key] = value
    return cfg


def batches(start):
    return ([{"image_id": i, "file_name": f"{i}.jpg"}] for i in range(start, 100))


def test_training_stops_before_spoiled_weights_are_saved(tmp_path, caplog):
    with (
        caplog.at_level(logging.ERROR, logger="detectron2"),
        pytest.raises(InputError, match="images with id 5"),
    ):
        Trainer(config(tmp_path), Network(), batches).fit(resume=False)
    assert not caplog.records  # no traceback
    for path in tmp_path.glob("model_*.pth"):
        saved = torch.load(path, weights_only=True)["model"]["weight"]
        assert torch.isfinite(saved).all()
    assert json.loads((tmp_path / "nonfinite_loss.json").read_text())["iteration"] == 5


def test_clipping_bounds_what_an_update_changes(tmp_path):
    free = Network()
    Trainer(config(tmp_path / "a", iterations=1, BASE_LR=10.0), free, batches).fit(resume=False)
    bounded, cfg = Network(), config(tmp_path / "b", iterations=1, BASE_LR=10.0)
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED, cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = True, 0.01
    Trainer(cfg, bounded, batches).fit(resume=False)
    assert float(free.weight) == pytest.approx(1 - 10.0, abs=0.01)
    assert float(bounded.weight) == pytest.approx(1 - 0.1, abs=0.01)
