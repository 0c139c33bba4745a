"""Guard the batch and what hangs on it: shares, the linear rule, the recipes' optimisers."""

import logging
from pathlib import Path

import pytest
import torch
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.utils import comm

from resnext_det.classification.classifier import build_classifier
from resnext_det.classification.trainer import with_epochs
from resnext_det.config import cfg_from_text, flatten, get_cfg, load_cfg
from resnext_det.engine.batch import follow_batch, images_per_process
from resnext_det.errors import InputError

CONFIGS = Path(__file__).parents[2] / "configs"


def solver_cfg(**values):
    cfg = get_cfg()
    for key, value in values.items():
        cfg.SOLVER[key] = value
    return cfg


# ---- shares ----


@pytest.mark.parametrize(
    "images, processes, parts, share",
    [(256, 8, 1, 32), (256, 1, 8, 32), (256, 2, 4, 32), (7, 1, 1, 7)],
)
def test_images_per_process(monkeypatch, images, processes, parts, share):
    monkeypatch.setattr(comm, "get_world_size", lambda: processes)
    assert images_per_process(solver_cfg(IMS_PER_BATCH=images, ACCUMULATE=parts)) == share


@pytest.mark.parametrize(
    "images, processes, parts, words",
    [
        (10, 4, 1, ["10 images do not divide among 4 processes", "multiple of 4"]),
        (10, 1, 4, ["10 images", "1 processes x 4 (ACCUMULATE)", "multiple of 4"]),
        (12, 2, 4, ["12 images", "2 processes x 4 (ACCUMULATE)", "multiple of 8"]),
        (2, 1, 4, ["2 images", "multiple of 4"]),
    ],
)
def test_a_batch_that_does_not_divide(monkeypatch, images, processes, parts, words):
    monkeypatch.setattr(comm, "get_world_size", lambda: processes)
    with pytest.raises(InputError) as caught:
        images_per_process(solver_cfg(IMS_PER_BATCH=images, ACCUMULATE=parts))
    message = str(caught.value)
    assert message.startswith("SOLVER.IMS_PER_BATCH: ")
    for word in words:
        assert word in message


# ---- the linear rule ----

PLAN = {"BASE_LR": 0.1, "MAX_ITER": 9000, "STEPS": (3000, 6000), "WARMUP_ITERS": 500}


@pytest.mark.parametrize(
    "images, expected",
    [
        (64, (0.025, 36000, (12000, 24000), 2000)),
        (512, (0.2, 4500, (1500, 3000), 250)),
        (8192, (3.2, 281, (94, 188), 16)),  # Goyal et al. 2017: 0.1 * kn / 256
    ],
)
def test_linear_rule(images, expected):
    cfg = solver_cfg(**PLAN, REFERENCE_BATCH=256, IMS_PER_BATCH=images)
    before = cfg.dump()
    found = follow_batch(cfg).SOLVER
    assert found.BASE_LR == pytest.approx(expected[0], rel=1e-12)
    assert (found.MAX_ITER, found.STEPS, found.WARMUP_ITERS) == expected[1:]
    assert cfg.dump() == before  # the given one is left alone


@pytest.mark.parametrize("reference, images", [(0, 32), (256, 256)])
def test_nothing_to_follow(reference, images, caplog):
    cfg = solver_cfg(**PLAN, REFERENCE_BATCH=reference, IMS_PER_BATCH=images)
    with caplog.at_level(logging.INFO):
        assert follow_batch(cfg) is cfg
    assert not caplog.records


def test_nothing_else_changes():
    cfg = solver_cfg(**PLAN, REFERENCE_BATCH=256, IMS_PER_BATCH=64)
    before, after = flatten(cfg), flatten(follow_batch(cfg))
    changed = {key for key in before if before[key] != after[key]}
    assert changed == {f"SOLVER.{key}" for key in (*PLAN, "REFERENCE_BATCH")}


def test_a_run_of_the_written_config_is_the_same_run():
    """A run writes its config down with the rate it used; read again, that may not change twice."""
    once = follow_batch(solver_cfg(**PLAN, REFERENCE_BATCH=256, IMS_PER_BATCH=64))
    again = follow_batch(cfg_from_text(once.dump(), "config.yaml"))
    assert flatten(again.SOLVER) == flatten(once.SOLVER)


def test_the_log_says_what_changed(caplog):
    with caplog.at_level(logging.INFO):
        follow_batch(solver_cfg(**PLAN, REFERENCE_BATCH=256, IMS_PER_BATCH=64))
    (record,) = caplog.records
    assert record.getMessage() == (
        "batch 64 instead of SOLVER.REFERENCE_BATCH 256: BASE_LR 0.1 -> 0.025, "
        "MAX_ITER 9000 -> 36000, STEPS [3000, 6000] -> [12000, 24000], WARMUP_ITERS 500 -> 2000"
    )


def test_a_negative_reference():
    with pytest.raises(InputError, match="SOLVER.REFERENCE_BATCH: is -256; "):
        follow_batch(solver_cfg(**PLAN, REFERENCE_BATCH=-256))


@pytest.mark.parametrize("images, rate", [(128, 0.1), (64, 0.05), (32, 0.025)])
def test_cifars_published_pairs(images, rate):
    """facebookresearch/ResNeXt, README: 8 GPUs, or 4, or 2. Epochs stay epochs."""
    opts = ["SOLVER.IMS_PER_BATCH", str(images)]
    cfg = with_epochs(load_cfg(CONFIGS / "cifar" / "X29_8x64d_cifar10.yaml", opts), 50_000)
    per_epoch = -(-50_000 // images)
    assert pytest.approx(rate) == cfg.SOLVER.BASE_LR
    assert cfg.SOLVER.MAX_ITER == 300 * per_epoch
    assert cfg.SOLVER.STEPS == (150 * per_epoch, 225 * per_epoch)


# ---- the recipes' optimisers ----

RECIPES = {
    "imagenet/X50_32x4d.yaml": (1e-4, 1_281_167, 5005, 100, (30, 60, 90)),
    "imagenet/R200_1x64d.yaml": (1e-4, 1_281_167, 5005, 100, (30, 60, 90)),
    "cifar/X29_8x64d_cifar10.yaml": (5e-4, 50_000, 391, 300, (150, 225)),
    "cifar/X29_16x64d_cifar100.yaml": (5e-4, 50_000, 391, 300, (150, 225)),
}
NARROW = ["MODEL.RESNETS.WIDTH_MULTIPLIER", "0.25", "MODEL.DEVICE", "cpu"]


@pytest.fixture(params=RECIPES)
def recipe(request):
    decay, images, per_epoch, epochs, drops = RECIPES[request.param]
    cfg = with_epochs(load_cfg(CONFIGS / request.param, NARROW), images)
    return cfg, decay, per_epoch, epochs, drops


def test_every_parameter_decays_by_nesterovs_rule(recipe):
    """One flat vector in the Lua code: convolutions, norms' scale and shift, classifier alike."""
    cfg, decay, *_ = recipe
    model = build_classifier(cfg, num_classes=10)
    optimizer = build_optimizer(cfg, model)
    assert isinstance(optimizer, torch.optim.SGD)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len({id(p) for p in held}) == len(list(model.parameters()))
    for group in optimizer.param_groups:
        found = (group["lr"], group["momentum"], group["dampening"], group["nesterov"])
        assert found == (0.1, 0.9, 0, True) and group["weight_decay"] == decay


def test_the_update_is_torch7s():
    """optim.sgd: v = 0.9 v + (g + wd w), starting as the first; w = w - lr (g + wd w + 0.9 v)."""
    cfg = load_cfg(CONFIGS / "imagenet" / "X50_32x4d.yaml")
    layer = torch.nn.Linear(1, 1, bias=False).double()
    torch.nn.init.constant_(layer.weight, 3.0)
    optimizer = build_optimizer(cfg, layer)
    w, v = 3.0, None
    for gradient in (0.5, -2.0, 0.25):
        layer.weight.grad = torch.full_like(layer.weight, gradient)
        optimizer.step()
        g = gradient + 1e-4 * w
        v = g if v is None else 0.9 * v + g
        w -= 0.1 * (g + 0.9 * v)
        assert layer.weight.item() == pytest.approx(w, abs=1e-12)


def test_the_rate_drops_where_epochs_end(recipe):
    """The first iteration of epoch 31, 61, 91 (151, 226 on CIFAR) has the lower rate."""
    cfg, _, per_epoch, epochs, drops = recipe
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=cfg.SOLVER.BASE_LR)
    scheduler = build_lr_scheduler(cfg, optimizer)

    def rate(iteration):
        scheduler.last_epoch = iteration
        return scheduler.get_lr()[0]

    assert cfg.SOLVER.MAX_ITER == epochs * per_epoch
    assert rate(0) == rate(1) == pytest.approx(0.1)
    for number, epoch in enumerate(drops):
        first = epoch * per_epoch
        assert rate(first - 1) == pytest.approx(0.1 * 0.1**number)
        assert rate(first) == pytest.approx(0.1 * 0.1 ** (number + 1))
    assert rate(epochs * per_epoch - 1) == pytest.approx(0.1 * 0.1 ** len(drops))
