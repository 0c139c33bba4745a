"""Guard which weights are kept as the best ones, and when a run without progress ends."""

import pytest
import torch
from torch import nn

from resnext_det.config import get_cfg
from resnext_det.engine.trainer import Trainer


class Network(nn.Module):
    """Its one parameter falls by a tenth of the learning rate at every step."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, batch):
        return {"loss": self.weight.sum()}


def batches(start, ends):
    yield from [0] * (ends - start)
    raise KeyboardInterrupt


def train(folder, figures, resume=False, iterations=10, metric="bbox/AP", patience=0, ends=100):
    """Evaluated every second iteration; ``figures``: by iteration."""
    cfg, network, seen = get_cfg(), Network(), []
    cfg.OUTPUT_DIR, cfg.SEED, cfg.MODEL.DEVICE = str(folder), 0, "cpu"
    cfg.SOLVER.BASE_LR, cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.STEPS = 1.0, 0, ()
    cfg.SOLVER.MOMENTUM, cfg.SOLVER.WEIGHT_DECAY = 0.0, 0.0
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD = iterations, 3
    cfg.SOLVER.EARLY_STOP = patience
    group, name = metric.split("/")

    def evaluate():
        step = round(-float(network.weight.detach()))
        seen.append(step)
        return {group: {name: figures[step]}}

    trainer = Trainer(
        cfg,
        network,
        lambda start: batches(start, ends),
        evaluate=evaluate,
        eval_period=2,
        best=metric,
    )
    trainer.fit(resume)
    return trainer, seen


def best_step(folder):
    return round(
        -float(torch.load(folder / "model_best.pth", weights_only=True)["model"]["weight"])
    )


@pytest.mark.parametrize(
    ("metric", "figures", "best"),
    [
        ("bbox/AP", {2: 1, 4: 3, 6: 2, 8: 3, 10: 1}, 4),  # the first of equals
        ("bbox/AP", {2: 1, 4: 3, 6: 2, 8: 3, 10: 5}, 10),  # the last evaluation counts
        ("bbox/AP", {2: float("nan"), 4: float("nan"), 6: 0.5, 8: 0, 10: 0}, 6),
        ("classification/top1_error", {2: 9, 4: 3, 6: 5, 8: 4, 10: 8}, 4),  # lower is better
        ("validation/total_loss", {2: 9, 4: 3, 6: 1, 8: 4, 10: 8}, 6),
    ],
)
def test_the_best_is_kept(tmp_path, metric, figures, best):
    _, seen = train(tmp_path, figures, metric=metric)
    assert seen == [2, 4, 6, 8, 10]
    assert best_step(tmp_path) == best


def test_no_figure_keeps_no_weights(tmp_path):
    train(tmp_path, dict.fromkeys((2, 4, 6, 8, 10), float("nan")))
    assert not (tmp_path / "model_best.pth").exists()


def test_it_goes_on_with_the_same_best_after_a_resume(tmp_path):
    """Detectron2's hook would begin anew and call the first figure after a resume the best."""
    figures = {2: 9, 4: 5, 6: 6, 8: 7, 10: 8}
    train(tmp_path, figures, iterations=6)
    trainer, seen = train(tmp_path, figures, resume=True)
    assert seen == [8, 10]
    assert (trainer.best.best, trainer.best.iteration) == (9, 1)
    assert best_step(tmp_path) == 2


@pytest.mark.parametrize(("patience", "last"), [(1, 6), (2, 8), (3, 10), (0, 10)])
def test_early_stop(tmp_path, patience, last):
    figures = {2: 1, 4: 3, 6: 2, 8: 3, 10: 1}
    trainer, seen = train(tmp_path, figures, patience=patience)
    assert seen[-1] == last and best_step(tmp_path) == 4


def test_an_interrupted_run_stops_where_the_undisturbed_one_does(tmp_path):
    figures = {2: 1, 4: 3, 6: 2, 8: 3, 10: 1}
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, figures, patience=2, ends=7)  # saved at 6, one evaluation behind
    _, seen = train(tmp_path, figures, resume=True, patience=2)
    assert seen == [8]
