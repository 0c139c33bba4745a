"""Guard the paper's order as one command: every stage leaves its file, none runs twice, all resume.

RPN, stored proposals, Fast R-CNN, joining, scores: at a size that trains in seconds.
"""

import json
import shutil

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from PIL import Image
from tiny import ITERATIONS, make_cfg, write_start_weights

from resnext_det.data.proposals import ProposalFile, ProposalWriter, join_parts
from resnext_det.detection import pipeline, stage_files, stages
from resnext_det.detection.detector import load_detector
from resnext_det.detection.loaders import build_test_loader, build_train_loader
from resnext_det.detection.proposals import proposal_cfg
from resnext_det.engine.trainer import Trainer
from resnext_det.errors import InputError
from resnext_det.weights import load_all, read_record, read_weights, save_weights

CLASSES = ["mug", "leaf", "star", "ring", "cube", "cross"]
STAGE_FILES = (
    "rpn/model_final.safetensors",
    "proposals/train.safetensors",
    "fast_rcnn/model_final.safetensors",
)


@pytest.fixture(scope="module")
def start_weights(tmp_path_factory):
    return write_start_weights(tmp_path_factory.mktemp("classification"))


@pytest.fixture
def cfg_for(demo_set, start_weights):
    def cfg_for(folder, **others):
        folder.mkdir(exist_ok=True, parents=True)
        return make_cfg(demo_set, folder, start_weights, **others)

    return cfg_for


@pytest.fixture(scope="module")
def whole(demo_set, start_weights, tmp_path_factory):
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    pipeline.run(make_cfg(demo_set, folder, start_weights), resume=False)
    return folder


@pytest.fixture
def copied(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copied")


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def refusal(call, *words):
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message, message


def test_every_stage_leaves_its_file(whole):
    for name in (
        *STAGE_FILES,
        "model_final.safetensors",
        "results.json",
        "config.yaml",
        "run.json",
    ):
        assert (whole / name).is_file(), name
    assert read_record(whole / "rpn" / "model_final.safetensors").kind == "rpn"
    assert read_record(whole / "fast_rcnn" / "model_final.safetensors").kind == "fast_rcnn"
    pictures = {path.stem for path in (whole / "pictures").glob("*.png")}
    shown = {"curves", "detections", "proposals", "precision_recall", "confusion"}
    assert shown <= pictures <= shown | {"worst"}


def test_results_have_the_papers_figures(whole):
    results = results_of(whole)
    ap = {"AP", "AP50", "AP75", "APs", "APm", "APl"}
    assert set(results) == {"bbox", "proposals"}
    assert set(results["bbox"]) == ap | {f"AP-{name}" for name in CLASSES}
    assert list(results["proposals"])[:3] == ["AR@100", "AR@300", "AR@1000"]
    assert results["proposals"]["AR@1000"] > 0  # or two runs would be equal for nothing


def test_class_count_comes_from_the_file(whole):
    """The config said 80."""
    tensors, record = read_weights(whole / "model_final.safetensors")
    assert (record.class_names, record.class_ids) == (CLASSES, [2, 3, 5, 7, 11, 13])
    assert tensors["fast_rcnn.roi_heads.box_predictor.cls_score.weight"].shape[0] == 6 + 1
    assert "NUM_CLASSES: 6" in record.config


def test_pixel_statistics_come_from_the_weights(whole):
    for part in ("rpn", "fast_rcnn"):
        assert read_record(whole / part / "model_final.safetensors").pixel_mean == [120, 110, 100]
    _, cfg = load_detector(whole / "model_final.safetensors")
    assert list(cfg.MODEL.PIXEL_STD) == [58, 57, 56]


def test_both_trunks_start_from_the_classification_weights(cfg_for, start_weights, tmp_path):
    cfg = cfg_for(tmp_path)
    pipeline.prepare(cfg)
    given, _ = read_weights(start_weights)
    for stage in ("rpn", "fast_rcnn"):
        state = stages._initial_model(stage_files.network_cfg(cfg, stage), stage).state_dict()
        for name in ("stem.conv1.weight", "res4.0.conv2.weight"):
            assert torch.equal(state[f"backbone.{name}"], given[name])
    assert torch.equal(state["roi_heads.res5.0.conv2.weight"], given["res5.0.conv2.weight"])


def test_joined_file_holds_both_networks(whole):
    joined, _ = read_weights(whole / "model_final.safetensors")
    count = 0
    for part in ("rpn", "fast_rcnn"):
        tensors, _ = read_weights(whole / part / "model_final.safetensors")
        count += len(tensors)
        assert all(torch.equal(joined[f"{part}.{key}"], tensors[key]) for key in tensors)
    assert len(joined) == count
    # Trained apart from one start, the two trunks have gone different ways.
    first, second = (
        joined[f"{part}.backbone.res4.0.conv2.weight"] for part in ("rpn", "fast_rcnn")
    )
    assert not torch.equal(first, second)


def test_second_call_runs_no_stage_again(cfg_for, whole, monkeypatch):
    before = {name: (whole / name).stat().st_mtime_ns for name in STAGE_FILES}
    results = (whole / "results.json").read_text()
    monkeypatch.setattr(Trainer, "run_step", lambda self: pytest.fail("it trains again"))
    monkeypatch.setattr(stages, "dump_proposals", lambda *_: pytest.fail("it proposes again"))
    pipeline.run(cfg_for(whole), resume=True)
    assert {name: (whole / name).stat().st_mtime_ns for name in STAGE_FILES} == before
    assert (whole / "results.json").read_text() == results


def test_missing_stages_alone_are_run(cfg_for, copied, whole, monkeypatch):
    """A proposal file that was removed is made again, and equal; nothing is trained."""
    (copied / "proposals" / "train.safetensors").unlink()
    monkeypatch.setattr(Trainer, "run_step", lambda self: pytest.fail("it trains again"))
    pipeline.run(cfg_for(copied), resume=True, only="proposals")
    name = "proposals/train.safetensors"
    assert (copied / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize(
    "stage, missing",
    [
        ("proposals", "rpn/model_final"),
        ("fast_rcnn", "proposals/train"),
        ("eval", "rpn/model_final"),
    ],
)
def test_stage_before_its_turn(cfg_for, tmp_path, stage, missing):
    refusal(
        lambda: pipeline.run(cfg_for(tmp_path), resume=False, only=stage),
        f"{tmp_path / missing}.safetensors: ",
        f"stage {stage} needs this file",
        f"--stage {missing.split('/')[0]}",
    )
    assert not (tmp_path / "run.json").exists()


def test_evaluation_needs_no_proposal_file(cfg_for, copied, whole):
    shutil.rmtree(copied / "proposals")
    (copied / "results.json").unlink()
    pipeline.run(cfg_for(copied), resume=False, only="eval")
    assert (copied / "results.json").read_bytes() == (whole / "results.json").read_bytes()


def test_fast_rcnn_on_proposals_of_the_users_own(cfg_for, whole, tmp_path):
    """They say nothing of an RPN, and none is needed."""
    cfg = cfg_for(tmp_path)
    stored = ProposalFile(whole / STAGE_FILES[1])
    writer = ProposalWriter(tmp_path / STAGE_FILES[1])
    pipeline.prepare(cfg)
    for record in DatasetCatalog.get("demo_train"):
        writer.add(record["image_id"], *stored[record["image_id"]])
    writer.close()
    join_parts(tmp_path / STAGE_FILES[1], 1, "mine")
    pipeline.run(cfg_for(tmp_path), resume=False, only="fast_rcnn")
    assert (tmp_path / STAGE_FILES[2]).exists()


@pytest.mark.parametrize("stage", ["rpn", "proposals", "fast_rcnn"])
@pytest.mark.parametrize("left", ["finished", "begun"])
def test_a_used_stage_does_not_start_anew(cfg_for, copied, stage, left):
    """Without --resume nothing of an earlier run is trained over."""
    (copied / "run.json").unlink()
    if left == "begun" and stage != "proposals":
        (copied / stage / "model_final.safetensors").unlink()
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*")}
    refusal(
        lambda: pipeline.run(cfg_for(copied), resume=False, only=stage),
        f"{copied / stage}/",
        f"stage {stage}",
        "--resume",
    )
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*")} == before


@pytest.mark.parametrize("change", ["limits", "rpn"])
def test_proposals_of_another_rpn(cfg_for, copied, change):
    """Kept files of a run whose RPN or limits changed do not pass for the new ones."""
    cfg = cfg_for(copied, **{"PROPOSALS.POST_NMS_TOPK": 50} if change == "limits" else {})
    if change == "rpn":
        tensors, record = read_weights(copied / STAGE_FILES[0])
        save_weights(copied / STAGE_FILES[0], {k: v + 1 for k, v in tensors.items()}, record)
    word = "PROPOSALS.POST_NMS_TOPK 60" if change == "limits" else "rpn_sha256"
    refusal(
        lambda: pipeline.run(cfg, resume=True),
        f"{copied / STAGE_FILES[1]}: ",
        word,
        copied / "fast_rcnn",
    )


def test_missing_weights_that_the_config_allows(cfg_for, start_weights, tmp_path):
    tensors, record = read_weights(start_weights)
    del tensors["res4.0.conv2.weight"]
    path = tmp_path / "part.safetensors"
    save_weights(path, tensors, record)
    allowed = {"MODEL.WEIGHTS": path, "MODEL.WEIGHTS_ALLOW_MISSING": "('*res4.0.conv2*',)"}
    for given, refused in (({"MODEL.WEIGHTS": path}, True), (allowed, False)):
        cfg = cfg_for(tmp_path / "run", **given)
        pipeline.prepare(cfg)
        own = stage_files.network_cfg(cfg, "rpn")
        if refused:
            refusal(lambda own=own: stages._initial_model(own, "rpn"), "res4.0.conv2.weight")
        else:
            state = stages._initial_model(own, "rpn").state_dict()
            assert torch.equal(
                state["backbone.res3.0.conv2.weight"], tensors["res3.0.conv2.weight"]
            )


def test_evaluation_alone_leaves_the_run_as_it_is(whole):
    weights = whole / "model_final.safetensors"
    assert pipeline.evaluation_cfg(None, str(weights)).OUTPUT_DIR == str(whole / "eval")


@pytest.mark.parametrize(
    "key, value, stage, folders",
    [
        ("SOLVER.RPN.MAX_ITER", 9, "rpn", ("rpn", "proposals", "fast_rcnn")),
        ("MODEL.RPN.BATCH_SIZE_PER_IMAGE", 48, "rpn", ("rpn", "proposals", "fast_rcnn")),
        ("SOLVER.FAST_RCNN.BASE_LR", 0.5, "fast_rcnn", ("fast_rcnn",)),
        ("SEED", 7, "rpn", ()),
    ],
)
def test_changed_setting_of_a_finished_stage(cfg_for, whole, key, value, stage, folders):
    """A detector trained half with the old and half with the new setting would be nobody's."""
    refusal(
        lambda: pipeline.run(cfg_for(whole, **{key: value}), resume=True),
        f"{whole / stage / 'model_final.safetensors'}: ",
        key.replace("RPN.MAX", "MAX").replace("FAST_RCNN.BASE", "BASE"),
        repr(value),
        *(whole / folder for folder in folders),
    )


def test_test_settings_may_change(cfg_for, copied):
    cfg = cfg_for(copied, **{"TEST.DETECTIONS_PER_IMAGE": 1, "INPUT.MIN_SIZE_TEST": 96})
    pipeline.run(cfg, resume=True)
    assert results_of(copied)["bbox"]["AP"] is not None


@pytest.mark.parametrize("stage, after", [("rpn", 3), ("fast_rcnn", 4)])
def test_killed_in_the_middle_and_resumed(cfg_for, copied, whole, monkeypatch, stage, after):
    """Bit for bit what the undisturbed run gave; the other stages are not touched."""
    shutil.rmtree(copied / stage)
    step, steps = Trainer.run_step, []

    def killed_step(self):
        if self.iter == after and len(steps) == after:
            raise MemoryError
        steps.append(self.iter)
        step(self)

    monkeypatch.setattr(Trainer, "run_step", killed_step)
    with pytest.raises(MemoryError):
        pipeline.run(cfg_for(copied), resume=True, only=stage)
    assert not (copied / stage / "model_final.safetensors").exists()
    steps.append("killed")
    pipeline.run(cfg_for(copied), resume=True, only=stage)
    resumed = steps[steps.index("killed") + 1 :]
    assert resumed == list(range(resumed[0], ITERATIONS[stage])) and 0 < resumed[0] <= after
    ours, _ = read_weights(copied / stage / "model_final.safetensors")
    theirs, _ = read_weights(whole / stage / "model_final.safetensors")
    assert ours.keys() == theirs.keys()
    for key in ours:
        assert torch.equal(ours[key], theirs[key]), key


def test_stages_one_by_one_give_the_same(cfg_for, whole, tmp_path):
    """``--stage`` four times is the one command, to the last bit of results.json."""
    for stage in stage_files.stages_of(cfg_for(tmp_path / "parts")):
        pipeline.run(cfg_for(tmp_path / "parts"), resume=False, only=stage)
    for name in (STAGE_FILES[1], "results.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (whole / name).read_bytes()


def test_evaluation_from_the_file_alone(whole, tmp_path):
    """One file is enough for the same figures: config, classes, both networks are in it."""
    alone = tmp_path / "sent" / "detector.safetensors"
    alone.parent.mkdir()
    shutil.copy(whole / "model_final.safetensors", alone)
    cfg = pipeline.evaluation_cfg(None, str(alone))
    cfg.OUTPUT_DIR = str(tmp_path)
    pipeline.evaluate_only(cfg, str(alone))
    assert (tmp_path / "results.json").read_text() == (whole / "results.json").read_text()


def test_evaluation_with_the_config(cfg_for, whole, tmp_path):
    """With the file's own pixel statistics and class count, whatever the config says."""
    weights = str(whole / "model_final.safetensors")
    cfg = pipeline.evaluation_cfg(cfg_for(tmp_path), weights)
    pipeline.evaluate_only(cfg, weights)
    assert (tmp_path / "results.json").read_text() == (whole / "results.json").read_text()


def test_evaluation_needs_a_detector(cfg_for, whole, tmp_path):
    refusal(lambda: pipeline.evaluation_cfg(None, ""), "MODEL.WEIGHTS", "--eval-only")
    part = whole / "rpn" / "model_final.safetensors"
    refusal(lambda: pipeline.evaluation_cfg(None, str(part)), f"{part}: ", "rpn weights")


def test_training_does_not_start_from_a_detector(cfg_for, whole, tmp_path):
    weights = whole / "model_final.safetensors"
    cfg = cfg_for(tmp_path, **{"MODEL.WEIGHTS": weights})
    refusal(lambda: pipeline.run(cfg, resume=False), f"{weights}: ", "detector weights")
    assert not (tmp_path / "run.json").exists()  # nothing is in the way of the next try


def with_renamed_class(demo_set, folder):
    content = json.loads((demo_set / "annotations" / "val.json").read_text())
    content["categories"][1]["name"] = "bottle"
    path = folder / "renamed.json"
    path.write_text(json.dumps(content))
    return path


def test_class_lists_that_differ(cfg_for, demo_set, tmp_path):
    other = with_renamed_class(demo_set, tmp_path)
    cfg = cfg_for(tmp_path / "run")
    cfg.DATASETS.COCO_JSON[1][1] = str(other)
    refusal(
        lambda: pipeline.run(cfg, resume=False),
        f"{other}: ",
        "bottle",
        "leaf",
        demo_set / "annotations" / "train.json",
    )


def test_evaluation_on_other_classes(demo_set, whole, tmp_path):
    other = with_renamed_class(demo_set, tmp_path)
    weights = str(whole / "model_final.safetensors")
    cfg = pipeline.evaluation_cfg(None, weights)
    cfg.DATASETS.COCO_JSON = [["renamed", str(other), str(demo_set / "val")]]
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST, cfg.OUTPUT_DIR = (), ("renamed",), str(tmp_path)
    refusal(lambda: pipeline.evaluate_only(cfg, weights), f"{other}: ", "bottle", weights)
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize("key", ["TRAIN", "TEST"])
def test_no_data_set_named(cfg_for, tmp_path, key):
    cfg = cfg_for(tmp_path, **{f"DATASETS.{key}": "()"})
    refusal(lambda: pipeline.run(cfg, resume=False), f"DATASETS.{key} is empty", "-json")


def damaged_copy(demo_set, folder, damage):
    """The demo set with one training image cut off in the middle, or of another size."""
    shutil.copytree(demo_set, folder)
    path = sorted((folder / "train").glob("*.jpg"))[0]
    if damage == "cut off":
        path.write_bytes(path.read_bytes()[:700])
    else:
        Image.new("RGB", (33, 44)).save(path)
    return path


@pytest.mark.parametrize("stage", ["rpn", "proposals"])
@pytest.mark.parametrize("damage, word", [("cut off", "truncated"), ("resized", "(33, 44)")])
def test_damaged_image_is_named(
    cfg_for, demo_set, start_weights, copied, tmp_path, stage, damage, word
):
    path = damaged_copy(demo_set, tmp_path / "data", damage)
    shutil.rmtree(copied / stage)
    cfg = make_cfg(tmp_path / "data", copied, start_weights)
    refusal(lambda: pipeline.run(cfg, resume=False, only=stage), f"{path}: ", word)


def rpn_of(cfg, whole):
    own = proposal_cfg(stage_files.network_cfg(cfg, "rpn"))
    model = build_model(own)
    load_all(model, read_weights(whole / STAGE_FILES[0])[0], "rpn")
    return own, model.eval()


def test_proposals_in_the_file_equal_those_in_memory(cfg_for, whole):
    cfg = cfg_for(whole)
    pipeline.prepare(cfg)
    own, model = rpn_of(cfg, whole)
    stored = ProposalFile(whole / STAGE_FILES[1])
    images = 0
    for batch in build_test_loader(own, "demo_train"):
        with torch.no_grad():
            outputs = model(batch)
        for x, output in zip(batch, outputs, strict=True):
            found = output["proposals"]
            boxes, logits = stored[x["image_id"]]
            assert 0 < len(boxes) == len(found) <= 60
            torch.testing.assert_close(torch.from_numpy(boxes), found.proposal_boxes.tensor)
            torch.testing.assert_close(torch.from_numpy(logits), found.objectness_logits)
            images += 1
    assert images == len(stored) == len(DatasetCatalog.get("demo_train"))


def test_proposals_reach_fast_rcnn_in_the_resized_frame(cfg_for, whole):
    """Stored in the image's own pixels, handed over in those of the training image."""
    cfg = cfg_for(whole, **{"INPUT.RANDOM_FLIP": "none"})
    pipeline.prepare(cfg)
    _, model = rpn_of(cfg, whole)
    loader = build_train_loader(
        stage_files.network_cfg(cfg, "fast_rcnn"), 0, ProposalFile(whole / STAGE_FILES[1])
    )
    for x, _ in zip(next(iter(loader)), range(2), strict=True):
        with torch.no_grad():
            (output,) = model([{"image": x["image"]}])  # no height, width: the resized frame
        found, expected = x["proposals"], output["proposals"]
        assert found.image_size == expected.image_size == tuple(x["image"].shape[1:])
        assert found.image_size != (x["height"], x["width"])
        assert len(found) == len(expected)
        torch.testing.assert_close(
            found.proposal_boxes.tensor, expected.proposal_boxes.tensor, rtol=0, atol=1e-3
        )
        torch.testing.assert_close(found.objectness_logits, expected.objectness_logits)


def test_proposals_of_another_data_set(cfg_for, copied):
    """Matched by id: a file of other images is refused, not joined by order."""
    path = copied / STAGE_FILES[1]
    cfg = cfg_for(copied, **{"DATASETS.TRAIN": "('demo_val',)"})
    shutil.rmtree(copied / "fast_rcnn")
    refusal(lambda: pipeline.run(cfg, resume=False, only="fast_rcnn"), f"{path}: ", "not")
