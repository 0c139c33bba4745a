"""Guard what people meet while a detector trains: batches, norms, empty images, memory, ports.

docs/field_reports.md lists what the other folders test of it.
"""

import argparse
import gc
import logging

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model, build_proposal_generator
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from tiny_sets import CONFIG, TINY, make_cfg, plain_set
from torch import nn

from resnext_det.config import get_cfg, load_cfg, stage_cfg
from resnext_det.data.coco import register_from_config
from resnext_det.detection import pipeline
from resnext_det.detection.loaders import build_train_loader
from resnext_det.detection.stage_files import network_cfg
from resnext_det.engine.launch import add_launch_arguments
from resnext_det.engine.trainer import Trainer

PAPER = CONFIG.parents[1] / "faster_rcnn_X50_32x4d.yaml"


# ---- batch, rate, epochs ----


def solver_for(config, batch):
    cfg = load_cfg(config, ["SOLVER.RPN.IMS_PER_BATCH", str(batch)])
    solver = network_cfg(cfg, "rpn").SOLVER
    return solver.BASE_LR, solver.MAX_ITER


@pytest.mark.parametrize(
    "config",
    [PAPER, CONFIG],
    ids=lambda path: path.name,
)
def test_a_quarter_of_the_batch(config):
    """A quarter of the rate and four times the steps: as many images are seen."""
    batch = load_cfg(config).SOLVER.RPN.IMS_PER_BATCH
    (rate, steps), (slower, more) = solver_for(config, batch), solver_for(config, batch // 4)
    assert (slower, more) == (pytest.approx(rate / 4), 4 * steps)


@pytest.fixture
def own_set(tmp_path, request):
    return [(f"field_{request.node.name}", plain_set(tmp_path), tmp_path)]


def test_epochs_are_printed(own_set, tmp_path, caplog):
    """9 iterations of 2 images, 4 images: 4.5 epochs."""
    with caplog.at_level(logging.INFO, logger="resnext_det"):
        pipeline.run(make_cfg(tmp_path / "run", own_set), resume=False, only="rpn")
    assert [r for r in caplog.records if "4 training images, 4.5 epochs" in r.message]


# ---- batch norm ----


def test_batch_norm_of_few_images_is_warned_of(own_set, tmp_path, caplog):
    cfg = make_cfg(tmp_path / "run", own_set, **{"SOLVER.RPN.IMS_PER_BATCH": 1})
    assert cfg.MODEL.RESNETS.NORM == "BN"
    with caplog.at_level(logging.WARNING, logger="resnext_det"):
        pipeline.run(cfg, resume=False, only="rpn")
    assert [r for r in caplog.records if "NORM" in r.message and "FrozenBN" in r.message]


def test_the_papers_norms_are_frozen():
    """Their statistics do not move, whatever the batch."""
    assert load_cfg(PAPER).MODEL.RESNETS.NORM == "FrozenBN"


# ---- images without objects, images with many ----


def background(height, width, seed):
    torch.manual_seed(seed)
    nothing = Instances((height, width))
    nothing.gt_boxes, nothing.gt_classes = Boxes(torch.zeros(0, 4)), torch.zeros(0).long()
    best = Instances((height, width), proposal_boxes=Boxes(torch.tensor([[5.0, 5, 60, 50]])))
    best.objectness_logits = torch.zeros(1)
    return {
        "image": torch.randint(0, 256, (3, height, width), dtype=torch.uint8),
        "instances": nothing,
        "proposals": best,
    }


@pytest.mark.parametrize("stage", ["rpn", "fast_rcnn", "joint"])
def test_a_batch_of_background_alone(stage):
    """Losses are numbers, and every parameter takes part: no process waits for a gradient."""
    values = {**TINY, "MODEL.META_ARCHITECTURE": "SharedRCNN" if stage == "joint" else None}
    opts = [str(w) for pair in values.items() if pair[1] is not None for w in pair]
    torch.manual_seed(0)
    model = build_model(stage_cfg(load_cfg(CONFIG, opts), stage)).train()
    with EventStorage():
        losses = model([background(64, 96, 0), background(96, 64, 1)])
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


def test_memory_of_an_image_with_a_thousand_boxes():
    """At the paper's size no single tensor of the matching has more than 64 MB."""
    cfg = load_cfg(PAPER, ["MODEL.DEVICE", "cpu"])
    spec = {"res4": ShapeSpec(channels=64, stride=16)}
    rpn = build_proposal_generator(stage_cfg(cfg, "rpn"), spec)
    corners = 300 * torch.rand(1000, 2)
    truth = Instances((600, 1000), gt_boxes=Boxes(torch.cat([corners, corners + 50], 1)))
    anchors = rpn.anchor_generator([torch.zeros(1, 64, 38, 63)])
    with torch.profiler.profile(profile_memory=True) as profile, EventStorage():
        labels, _ = rpn.label_and_sample_anchors(anchors, [truth])
    assert (labels[0] == 1).any()
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert largest < 64 * 2**20


def test_records_are_packed(own_set, tmp_path):
    """Data workers share pages, which a list of dicts would copy one by one."""
    cfg = make_cfg(tmp_path / "run", own_set)
    register_from_config(cfg)
    own = str(tmp_path)
    loader = build_train_loader(network_cfg(cfg, "rpn"), 0)
    gc.collect()
    dicts = [x for x in gc.get_objects() if type(x) is dict and type(x.get("file_name")) is str]
    assert not [x for x in dicts if x["file_name"].startswith(own)]
    assert {x["file_name"].startswith(own) for x in next(iter(loader))} == {True}


# ---- half precision ----


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_scores_boxes_and_losses_stay_fp32(precision):
    """Only the convolutions are in half precision; both heads' outputs have fp32's range."""
    opts = [str(w) for pair in {**TINY, "MODEL.PRECISION": precision}.items() for w in pair]
    model = build_model(load_cfg(CONFIG, opts)).train()
    heads = [model.rpn.proposal_generator.rpn_head, model.fast_rcnn.roi_heads.box_predictor]
    inside, outside = [], []
    heads[0].conv.register_forward_hook(lambda _m, _i, output: inside.append(output.dtype))
    for head in heads:
        head.register_forward_hook(lambda _m, _i, output: outside.extend(flat(output)))
    with EventStorage():
        losses = model([background(64, 96, 0)])
    assert inside == [{"bf16": torch.bfloat16, "fp16": torch.float16}[precision]]
    assert len(outside) == 4 and len(losses) == 4
    for value in (*outside, *losses.values()):
        assert value.dtype == torch.float32 and torch.isfinite(value).all()


def flat(outputs):
    """The tensors of nested lists."""
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    return [tensor for output in outputs for tensor in flat(output)]


class Overflowing(nn.Module):
    """Its second gradient is infinite in a scaled loss, as fp16's overflows are."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.calls = 0

    def forward(self, batch):
        self.calls += 1
        return {"loss": self.weight.sum() * (1e38 if self.calls == 2 else 1.0)}


def half_precision_run(folder):
    cfg = get_cfg()
    cfg.MODEL.DEVICE, cfg.MODEL.PRECISION, cfg.SEED = "cpu", "fp16", 0
    cfg.OUTPUT_DIR, cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS = str(folder), 4, ()
    model = Overflowing()
    Trainer(cfg, model, lambda start: [0] * 4).fit(resume=False)
    return model


def test_an_overflow_of_half_precision_spoils_nothing(tmp_path):
    """The step is left out; the others are made."""
    weight = half_precision_run(tmp_path).weight
    assert torch.isfinite(weight).all() and weight.item() < 1


def test_overflows_are_counted(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="resnext_det"):
        half_precision_run(tmp_path)
    assert [r for r in caplog.records if "fp16" in r.message and "1" in r.message]


# ---- several processes ----


def test_a_free_port_is_chosen_unless_one_is_named():
    """Detectron2's launcher looks for one under "auto"."""
    add_launch_arguments(parser := argparse.ArgumentParser())
    assert parser.parse_args([]).dist_url == "auto"
