"""Guard the paper's Appendix B: RPN and Fast R-CNN share nothing and meet only in the proposals."""

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from resnext_det.config import load_cfg, stage_cfg

CONFIG = Path(__file__).parents[2] / "configs" / "demo" / "detection.yaml"
TOPK = 20
TINY = {
    "MODEL.DEVICE": "cpu",
    "MODEL.PRECISION": "fp32",
    "MODEL.RESNETS.NUM_GROUPS": 4,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.RESNETS.WIDTH_MULTIPLIER": 0.125,
    "MODEL.ROI_HEADS.NUM_CLASSES": 3,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.01,
    "MODEL.RPN.POST_NMS_TOPK_TEST": TOPK,
    "TEST.PROPOSALS_TOPK": 50,
}


def make_cfg(**others):
    values = {**TINY, **others}
    return load_cfg(CONFIG, [str(word) for pair in values.items() for word in pair])


@pytest.fixture(scope="module")
def detector():
    """Random weights whose scores are spread: the heads' own start is nearly constant."""
    torch.manual_seed(0)
    model = build_model(make_cfg())
    heads = (
        model.rpn.proposal_generator.rpn_head.objectness_logits,
        model.rpn.proposal_generator.rpn_head.anchor_deltas,
        model.fast_rcnn.roi_heads.box_predictor.cls_score,
        model.fast_rcnn.roi_heads.box_predictor.bbox_pred,
    )
    for layer in heads:
        torch.nn.init.normal_(layer.weight, std=0.3 / layer.weight[0].numel() ** 0.5)
    return model


def make_input(rows, columns, seed=0, **others):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, rows, columns), generator=generator, dtype=torch.uint8)
    return {"image": image, **others}


def infer(model, inputs):
    model.eval()
    with torch.no_grad():
        return model(inputs)


def assert_same_boxes(first, second, kind):
    """Two Instances: equal sizes, boxes to 1e-5 of a pixel, scores to 1e-6, classes exactly."""
    assert first.image_size == second.image_size and len(first) == len(second)
    ours, theirs = first.get(f"{kind}_boxes").tensor, second.get(f"{kind}_boxes").tensor
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    for name in ("scores", "objectness_logits", "pred_classes"):
        assert first.has(name) == second.has(name)
        if first.has(name):
            torch.testing.assert_close(first.get(name), second.get(name), rtol=0, atol=1e-6)


def test_no_parameter_is_in_both_networks(detector):
    storages = [
        {tensor.untyped_storage().data_ptr() for tensor in (*part.parameters(), *part.buffers())}
        for part in (detector.rpn, detector.fast_rcnn)
    ]
    assert all(storages) and not storages[0] & storages[1]
    names = {name.split(".")[0] for name in detector.state_dict()}
    assert names == {"rpn", "fast_rcnn"}


def test_rpn_has_no_res5(detector):
    """Its trunk ends with res4; res5 would be trained by nothing and carried in every file."""
    assert not [name for name in detector.rpn.state_dict() if "res5" in name]
    assert not [name for name in detector.fast_rcnn.backbone.state_dict() if "res5" in name]
    assert [name for name in detector.fast_rcnn.state_dict() if name.startswith("roi_heads.res5.")]


def training_input(height, width, seed=0):
    boxes = torch.tensor([[10.0, 10, 60, 50], [40, 20, 110, 90]])
    near = boxes + torch.tensor([2.0, -3, 4, 1])
    truth = Instances((height, width), gt_boxes=Boxes(boxes), gt_classes=torch.tensor([0, 2]))
    proposals = Instances((height, width), proposal_boxes=Boxes(near))
    proposals.objectness_logits = torch.tensor([2.0, 1.0])
    return make_input(height, width, seed, instances=truth, proposals=proposals)


def losses_of(model, inputs):
    with EventStorage():  # Detectron2's heads count samples in it
        return model.train()(inputs)


def test_every_trained_parameter_has_a_gradient():
    torch.manual_seed(0)
    model = build_model(make_cfg())
    losses = losses_of(model, [training_input(96, 128), training_input(128, 96, seed=1)])
    assert set(losses) == {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"}
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad  # FREEZE_AT is 0 in the demo
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_frozen_parameters_have_none():
    """The paper's setting freezes the stem and res2 of both trunks."""
    torch.manual_seed(0)
    model = build_model(make_cfg(**{"MODEL.BACKBONE.FREEZE_AT": 2}))
    sum(losses_of(model, [training_input(96, 128)]).values()).backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    parts = {".".join(name.split(".")[:3]) for name in without}
    assert parts == {f"{n}.backbone.{s}" for n in ("rpn", "fast_rcnn") for s in ("stem", "res2")}


def test_losses_of_one_network_do_not_reach_the_other():
    torch.manual_seed(0)
    model = build_model(make_cfg())
    losses = losses_of(model, [training_input(96, 128)])
    (losses["loss_rpn_cls"] + losses["loss_rpn_loc"]).backward()
    assert all(parameter.grad is None for parameter in model.fast_rcnn.parameters())


@pytest.fixture(scope="module")
def separate(detector):
    """Detectron2's own two models, each alone, with the detector's weights."""
    cfg = make_cfg()
    parts = {}
    for stage in ("rpn", "fast_rcnn"):
        parts[stage] = build_model(stage_cfg(cfg, stage))
        parts[stage].load_state_dict(getattr(detector, stage).state_dict())
    return parts


def test_parts_are_detectron2s_own(separate):
    assert type(separate["rpn"]).__name__ == "ProposalNetwork"
    assert type(separate["fast_rcnn"]).__name__ == "GeneralizedRCNN"


@pytest.mark.parametrize(
    "inputs",
    [
        [make_input(96, 128)],
        [make_input(96, 128, height=480, width=640)],
        [make_input(96, 128, height=201, width=333), make_input(120, 80, seed=1)],
    ],
    ids=["own frame", "original frame", "two sizes"],
)
def test_joint_inference_is_the_two_networks_in_turn(detector, separate, inputs):
    """Proposals stay in the resized frame; only what leaves is in pixels of height and width."""
    frames = [{"image": x["image"]} for x in inputs]
    proposals = [out["proposals"] for out in infer(separate["rpn"], frames)]
    expected = infer(
        separate["fast_rcnn"],
        [{**x, "proposals": p} for x, p in zip(inputs, proposals, strict=True)],
    )
    found = infer(detector, inputs)
    in_pixels = infer(separate["rpn"], inputs)
    for x, ours, theirs, rpn in zip(inputs, found, expected, in_pixels, strict=True):
        assert len(theirs["instances"]) > 5  # or nothing would be compared
        assert_same_boxes(ours["instances"], theirs["instances"], "pred")
        assert ours["instances"].image_size == (x.get("height", 96), x.get("width", 128)) or (
            "height" not in x
        )
        assert_same_boxes(ours["proposals"][:TOPK], rpn["proposals"], "proposal")


def test_more_proposals_are_measured_than_detected_on(detector):
    (output,) = infer(detector, [make_input(96, 128)])
    assert TOPK < len(output["proposals"]) <= 50
    logits = output["proposals"].objectness_logits
    assert (logits[:-1] >= logits[1:]).all()


def test_images_of_a_batch_do_not_touch_each_other(detector):
    """Two sizes in one batch: padding and neighbours may not move a box."""
    inputs = [make_input(96, 128), make_input(112, 96, seed=1, height=224, width=192)]
    together = infer(detector, inputs)
    assert [out["instances"].image_size for out in together] == [(96, 128), (224, 192)]
    for x, out in zip(inputs, together, strict=True):
        boxes = out["proposals"].proposal_boxes.tensor
        height, width = out["proposals"].image_size
        assert (boxes >= 0).all() and (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()
        if x["image"].shape[1:] == (96, 128):
            continue
        again = infer(detector, [x, inputs[0]])[0]
        assert_same_boxes(again["instances"], out["instances"], "pred")


def test_image_without_detections():
    torch.manual_seed(0)
    model = build_model(make_cfg(**{"MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.9999}))
    outputs = infer(model, [make_input(96, 128, height=48, width=64), make_input(96, 96)])
    assert [len(out["instances"]) for out in outputs] == [0, 0]
    assert outputs[0]["instances"].image_size == (48, 64)
    assert outputs[0]["instances"].pred_boxes.tensor.shape == (0, 4)


def test_no_proposals_are_returned_when_none_are_measured():
    torch.manual_seed(0)
    model = build_model(make_cfg(**{"TEST.PROPOSALS_TOPK": 0}))
    (output,) = infer(model, [make_input(96, 128)])
    assert set(output) == {"instances"}


def test_an_image_tensor_may_be_float(detector):
    """A user's script may hand over what it read, whichever of the two types it has."""
    x = make_input(96, 128)
    first, second = (
        infer(detector, [{"image": image}])[0] for image in (x["image"], x["image"].float())
    )
    assert_same_boxes(first["instances"], second["instances"], "pred")
