"""Guard proposals from elsewhere: other files, made while training, Detectron2's pickles.

Whatever way they come, the same boxes train the same network, to the last bit.
"""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data.transforms import HFlipTransform
from detectron2.structures import BoxMode

from resnext_det.config import load_cfg
from resnext_det.data import coco
from resnext_det.data.proposals import ProposalFile, write_proposals
from resnext_det.detection import pipeline, report, stage_files, stages
from resnext_det.detection.loaders import build_train_loader
from resnext_det.detection.online import OnlineLoader
from resnext_det.detection.proposal_exchange import convert, read_pickled
from resnext_det.detection.proposals import choose_sets, dump_from_weights, rpn_config
from resnext_det.errors import InputError
from resnext_det.weights import fingerprint, read_weights, save_weights

CONFIG = Path(__file__).parents[2] / "configs" / "demo" / "detection.yaml"
RPN, STORED, FAST = (
    "rpn/model_final.safetensors",
    "proposals/train.safetensors",
    "fast_rcnn/model_final.safetensors",
)
TINY = {
    "MODEL.WEIGHTS": "",
    "MODEL.DEVICE": "cpu",
    "MODEL.PRECISION": "fp32",
    "MODEL.RESNETS.NUM_GROUPS": 4,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.RESNETS.WIDTH_MULTIPLIER": 0.125,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.001,
    # Other scales than in test mode: what is made there has to be resized, not only flipped.
    "INPUT.MIN_SIZE_TRAIN": "(80, 112)",
    "INPUT.MIN_SIZE_TEST": 96,
    "TEST.IMS_PER_BATCH": 1,
    "PROPOSALS.POST_NMS_TOPK": 60,
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.WARMUP_ITERS": 1,
    "SOLVER.RPN.MAX_ITER": 4,
    "SOLVER.RPN.IMS_PER_BATCH": 2,
    "SOLVER.RPN.REFERENCE_BATCH": 0,
    "SOLVER.FAST_RCNN.MAX_ITER": 5,
    "SOLVER.FAST_RCNN.IMS_PER_BATCH": 2,
    "SOLVER.FAST_RCNN.REFERENCE_BATCH": 0,
}


def make_cfg(data, folder, **others):
    sets = [
        [f"exchange_{split}", f"{data}/annotations/{split}.json", f"{data}/{split}"]
        for split in ("train", "val")
    ]
    values = {
        "DATASETS.COCO_JSON": sets,
        "DATASETS.TRAIN": "('exchange_train',)",
        "DATASETS.TEST": "('exchange_val',)",
        "OUTPUT_DIR": folder,
        **TINY,
        **others,
    }
    return load_cfg(CONFIG, [str(word) for pair in values.items() for word in pair])


@pytest.fixture
def cfg_for(demo_set):
    def cfg_for(folder, **others):
        folder.mkdir(exist_ok=True, parents=True)
        return make_cfg(demo_set, folder, **others)

    return cfg_for


@pytest.fixture(scope="module", autouse=True)
def no_pictures():
    """They take most of a tiny run's time and have tests of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "draw", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def whole(demo_set, tmp_path_factory):
    """A run with its proposals stored between the steps."""
    folder = tmp_path_factory.mktemp("whole")
    pipeline.run(make_cfg(demo_set, folder), resume=False)
    return folder


@pytest.fixture
def begun(whole, tmp_path):
    """A run that has trained its RPN."""
    shutil.copytree(whole / "rpn", tmp_path / "run" / "rpn")
    return tmp_path / "run"


def refusal(call, *words):
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400, message
    for word in words:
        assert str(word) in message, message


def assert_same_weights(first, second):
    ours, theirs = read_weights(first)[0], read_weights(second)[0]
    assert ours.keys() == theirs.keys()
    for key in ours:
        assert torch.equal(ours[key], theirs[key]), key


# ---- made while training ----


def online_loader(cfg, start=0):
    own = stage_files.network_cfg(cfg, "fast_rcnn")
    rpn, rpn_cfg = stages._trained_rpn(cfg)
    return OnlineLoader(own, start, rpn=rpn, rpn_cfg=rpn_cfg)


@pytest.mark.parametrize("workers", [0, 1])
def test_online_equals_stored(cfg_for, whole, workers):
    """Exactly, flipped and resized as the stored ones are."""
    cfg = cfg_for(whole, **{"DATALOADER.NUM_WORKERS": workers})
    pipeline.prepare(cfg)
    stored = build_train_loader(
        stage_files.network_cfg(cfg, "fast_rcnn"), 0, ProposalFile(whole / STORED)
    )
    flips, sizes = 0, set()
    batches = online_loader(cfg), stored, online_loader(cfg).loader
    for ours, theirs, raw, _ in zip(*batches, range(8), strict=False):
        for x, y, z in zip(ours, theirs, raw, strict=True):
            assert x.keys() == y.keys() and x["image_id"] == y["image_id"]
            assert torch.equal(x["image"], y["image"])
            assert torch.equal(x["instances"].gt_boxes.tensor, y["instances"].gt_boxes.tensor)
            found, expected = x["proposals"], y["proposals"]
            assert found.image_size == expected.image_size and 0 < len(found) == len(expected)
            assert torch.equal(found.proposal_boxes.tensor, expected.proposal_boxes.tensor)
            assert torch.equal(found.objectness_logits, expected.objectness_logits)
            flips += any(isinstance(t, HFlipTransform) for t in z["transforms"].transforms)
            sizes.add(min(found.image_size))
    assert 0 < flips < 16 and sizes == {80, 112}


def test_online_goes_on_where_it_stopped(cfg_for, whole):
    cfg = cfg_for(whole)
    pipeline.prepare(cfg)
    _, _, third = (batch for batch, _ in zip(online_loader(cfg), range(3), strict=False))
    again = next(iter(online_loader(cfg, start=2)))
    for x, y in zip(again, third, strict=True):
        assert torch.equal(x["image"], y["image"])
        assert torch.equal(
            x["proposals"].proposal_boxes.tensor, y["proposals"].proposal_boxes.tensor
        )


def test_a_whole_run_online(cfg_for, begun, whole):
    """The same weights and figures as with stored proposals, and no stage for them."""
    pipeline.run(cfg_for(begun, **{"PROPOSALS.ONLINE": True}), resume=True)
    assert_same_weights(begun / FAST, whole / FAST)
    assert (begun / "results.json").read_bytes() == (whole / "results.json").read_bytes()
    assert not (begun / "proposals").exists()
    record = json.loads((begun / "fast_rcnn" / "proposals.json").read_text())
    assert record["rpn_sha256"] == fingerprint(read_weights(begun / RPN)[0])
    pipeline.run(cfg_for(begun, **{"PROPOSALS.ONLINE": True}), resume=True)  # nothing to refuse


@pytest.mark.parametrize("change", ["rpn", "limits"])
def test_online_beside_another_rpn(cfg_for, begun, whole, change):
    """A finished Fast R-CNN does not pass for one of the RPN that is there now."""
    shutil.copytree(whole / "fast_rcnn", begun / "fast_rcnn")
    cfg = cfg_for(begun, **{"PROPOSALS.ONLINE": True})
    tensors, record = read_weights(begun / FAST)
    pipeline.prepare(cfg)
    record = stages.record_of(
        stage_files.network_cfg(cfg, "fast_rcnn"), "fast_rcnn", cfg.DATASETS.TRAIN[0]
    )
    save_weights(begun / FAST, tensors, record)
    made_with = stage_files.proposals_made_with(cfg)
    key = "rpn_sha256" if change == "rpn" else "PROPOSALS.PRE_NMS_TOPK"
    path = begun / "fast_rcnn" / "proposals.json"
    path.write_text(json.dumps({**made_with, key: "before"}))
    refusal(lambda: pipeline.run(cfg, resume=True), f"{path}: ", f"{key} before", "remove")


def test_online_needs_the_rpn(cfg_for, tmp_path):
    cfg = cfg_for(tmp_path, **{"PROPOSALS.ONLINE": True})
    refusal(
        lambda: pipeline.run(cfg, resume=False, only="fast_rcnn"), f"{tmp_path / RPN}: ", "--stage"
    )


# ---- other files ----


@pytest.fixture
def files(whole, tmp_path):
    """The stored proposals in two files, each with images that are in no data set too."""
    stored, paths = ProposalFile(whole / STORED), []
    for part in (0, 1):
        extra = (10**6 + part, np.ones((1, 4), np.float32), np.ones(1, np.float32))
        images = [(i, *stored[i]) for i in stored.image_ids[part::2]]
        paths.append(str(tmp_path / f"part{part}.safetensors"))
        write_proposals(paths[-1], [*images, extra], "mine")
    return paths


def test_a_whole_run_on_given_files(cfg_for, begun, whole, files):
    """Matched by id; the RPN is still trained, for the joined detector, its proposals not made."""
    shutil.rmtree(begun / "rpn")
    pipeline.run(cfg_for(begun, **{"PROPOSALS.FILES": tuple(files)}), resume=False)
    assert_same_weights(begun / RPN, whole / RPN)
    assert_same_weights(begun / FAST, whole / FAST)
    assert (begun / "results.json").read_bytes() == (whole / "results.json").read_bytes()
    assert not (begun / "proposals").exists()
    for path in files:
        Path(path).unlink()  # a finished step asks for them no more
    pipeline.run(cfg_for(begun, **{"PROPOSALS.FILES": tuple(files)}), resume=True)


def test_one_file_is_a_plain_word(cfg_for, whole, tmp_path):
    """And the Fast R-CNN step alone needs no RPN."""
    cfg = cfg_for(tmp_path / "run", **{"PROPOSALS.FILES": whole / STORED})
    pipeline.run(cfg, resume=False, only="fast_rcnn")
    assert_same_weights(tmp_path / "run" / FAST, whole / FAST)
    assert not (tmp_path / "run" / "rpn").exists()


def test_files_are_checked_before_the_rpn_is_trained(cfg_for, tmp_path, files):
    cfg = cfg_for(tmp_path / "run", **{"PROPOSALS.FILES": files[0]})
    refusal(lambda: pipeline.run(cfg, resume=False), f"{files[0]}: holds ", "(for instance image")
    cfg = cfg_for(tmp_path / "run", **{"PROPOSALS.FILES": (*files, "missing.safetensors")})
    refusal(lambda: pipeline.run(cfg, resume=False), "missing.safetensors: ", "does not exist")
    assert not any((tmp_path / "run").iterdir())


def test_a_pickle_is_named_with_the_way_to_convert_it(cfg_for, tmp_path):
    (tmp_path / "p.pkl").write_bytes(pickle.dumps({"ids": []}))
    cfg = cfg_for(tmp_path / "run", **{"PROPOSALS.FILES": tmp_path / "p.pkl"})
    refusal(lambda: pipeline.run(cfg, resume=False), tmp_path / "p.pkl", "dump_proposals.py --from")


@pytest.mark.parametrize(
    "key, value", [("PROPOSALS.FILES", "a.safetensors"), ("PROPOSALS.ONLINE", True)]
)
def test_the_stage_that_a_key_replaces(cfg_for, begun, key, value):
    cfg = cfg_for(begun, **{key: value})
    refusal(lambda: pipeline.run(cfg, resume=False, only="proposals"), f"{key} is set")
    both = {"PROPOSALS.FILES": "('a', 'b')", "PROPOSALS.ONLINE": True}
    refusal(lambda: pipeline.run(cfg_for(begun, **both), resume=True), "FILES names 2", "set one")


# ---- from any RPN, for any data set ----


def dump(weights, output, *names, form="resnext_det", **others):
    cfg = rpn_config(weights, None)
    cfg.MODEL.DEVICE = "cpu"
    for key, value in others.items():
        cfg.PROPOSALS[key] = value
    choose_sets(cfg, list(names), None, None)
    return dump_from_weights(cfg, weights, output, form)


@pytest.mark.parametrize("weights", [RPN, "model_final.safetensors"])
def test_the_dumped_file_is_the_runs_own(whole, tmp_path, weights):
    """From the RPN's file or the detector, by the config that it carries."""
    made = tmp_path / "deep" / "made.safetensors"
    dump(whole / weights, made, "exchange_train")
    ours, theirs = ProposalFile(made), ProposalFile(whole / STORED)
    assert ours.metadata == theirs.metadata and ours.image_ids == theirs.image_ids
    for image_id in ours.image_ids:
        for mine, stored in zip(ours[image_id], theirs[image_id], strict=True):
            np.testing.assert_array_equal(mine, stored)
    assert [path.name for path in made.parent.iterdir()] == [made.name]


def test_recall_is_that_of_the_evaluation(whole, tmp_path):
    found = dump(whole / RPN, tmp_path / "v.safetensors", "exchange_val", POST_NMS_TOPK=1000)
    expected = json.loads((whole / "results.json").read_text())["proposals"]
    assert list(found) == ["exchange_val"]
    assert found["exchange_val"] == pytest.approx(expected, abs=1e-3, nan_ok=True)
    assert expected["AR@1000"] > 0


def test_several_sets_in_one_file(whole, tmp_path):
    made = tmp_path / "made.safetensors"
    found = dump(whole / RPN, made, "exchange_train", "exchange_val")
    assert list(found) == ["exchange_train", "exchange_val"]
    counts = [len(coco.load(name)) for name in found]
    assert len(ProposalFile(made)) == sum(counts)


def test_a_set_of_ones_own_without_objects(whole, demo_set, tmp_path):
    """Proposals need no annotation; recall is then said to be unknown, not 0."""
    content = json.loads((demo_set / "annotations" / "val.json").read_text())
    content.update(annotations=[], images=content["images"][:2])
    (tmp_path / "bare.json").write_text(json.dumps(content))
    cfg = rpn_config(whole / RPN, None)
    cfg.MODEL.DEVICE = "cpu"
    choose_sets(cfg, None, str(tmp_path / "bare.json"), str(demo_set / "val"))
    found = dump_from_weights(cfg, whole / RPN, tmp_path / "made.safetensors")
    assert np.isnan(found["custom"]["AR@100"])
    assert len(ProposalFile(tmp_path / "made.safetensors")) == 2


def test_the_given_config_must_fit(cfg_for, whole, tmp_path):
    cfg = rpn_config(whole / RPN, cfg_for(tmp_path))
    assert cfg.DATASETS.TRAIN == ("exchange_train",)
    wider = cfg_for(tmp_path, **{"MODEL.RESNETS.NUM_GROUPS": 8})
    refusal(lambda: rpn_config(whole / RPN, wider), "MODEL.RESNETS.NUM_GROUPS is 8")


def test_weights_that_are_no_rpn(whole, tmp_path):
    refusal(lambda: rpn_config("", None), "MODEL.WEIGHTS: is empty")
    refusal(lambda: rpn_config(whole / FAST, None), f"{whole / FAST}: holds fast_rcnn weights")


def test_an_output_that_is_there_is_kept(whole, tmp_path):
    (tmp_path / "made.safetensors").write_text("mine")
    refusal(lambda: dump(whole / RPN, tmp_path / "made.safetensors", "exchange_val"), "is there")
    assert (tmp_path / "made.safetensors").read_text() == "mine"
    below = tmp_path / "made.safetensors" / "deep"
    refusal(lambda: dump(whole / RPN, below, "exchange_val"), below, "cannot be written")


def test_data_sets_of_a_command_line(whole):
    cfg = rpn_config(whole / RPN, None)
    refusal(lambda: choose_sets(cfg, ["a"], "a.json", "images"), "given twice")
    refusal(lambda: choose_sets(cfg, None, "a.json", None), "--json or --images is given alone")
    choose_sets(cfg, None, None, None)
    assert cfg.DATASETS.TRAIN == ("exchange_train",)
    choose_sets(cfg, ["a", "b"], None, None)
    refusal(lambda: dump_from_weights(cfg, whole / RPN, "made"), "a is not a known data set")


# ---- Detectron2's pickles ----


def test_there_and_back(whole, tmp_path):
    """From the network into a pickle, out of it, and into the same file again."""
    dump(whole / RPN, tmp_path / "made.pkl", "exchange_train", form="detectron2")
    assert [path.name for path in tmp_path.iterdir()] == ["made.pkl"]
    images = convert(tmp_path / "made.pkl", tmp_path / "back.safetensors", "resnext_det")
    back, stored = ProposalFile(tmp_path / "back.safetensors"), ProposalFile(whole / STORED)
    assert images == len(back) == len(stored) and back.image_ids == stored.image_ids
    assert back.metadata["source"] == "converted from made.pkl"
    for image_id in stored.image_ids:
        for ours, theirs in zip(back[image_id], stored[image_id], strict=True):
            np.testing.assert_array_equal(ours, theirs)
    convert(tmp_path / "back.safetensors", tmp_path / "again.pkl", "detectron2")
    assert (tmp_path / "again.pkl").read_bytes() == (tmp_path / "made.pkl").read_bytes()


def pickled(path, protocol=4, **others):
    content = {
        "boxes": [np.array([[1, 2, 30, 40]], np.float32), np.zeros((0, 4), np.float32)],
        "objectness_logits": [np.array([0.5], np.float32), np.zeros(0, np.float32)],
        "ids": [3, 8],
        "bbox_mode": BoxMode.XYXY_ABS.value,
        **others,
    }
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_of_every_protocol(tmp_path, protocol):
    (first, boxes, logits), (second, *_) = read_pickled(pickled(tmp_path / "p.pkl", protocol))
    assert (first, second) == (3, 8)
    assert boxes.tolist() == [[1, 2, 30, 40]] and logits.tolist() == [0.5]


def test_a_box_mode_by_its_class(tmp_path):
    """Detectron2's documentation asks for "the BoxMode", so people pickle the enum itself."""
    (_, boxes, _), _ = read_pickled(pickled(tmp_path / "p.pkl", bbox_mode=BoxMode.XYWH_ABS))
    assert boxes.tolist() == [[1, 2, 31, 42]]


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_nothing_in_a_pickle_is_run(tmp_path):
    path = pickled(tmp_path / "p.pkl", extra=Evil(tmp_path / "was_run"))
    refusal(
        lambda: convert(path, tmp_path / "made.safetensors", "resnext_det"),
        f"{path}: asks for ",
        "which a proposal file has no use for; give a dict with ids",
    )
    assert [p.name for p in tmp_path.iterdir()] == ["p.pkl"]


@pytest.mark.parametrize("cut", [0, 20, 150, -1])
def test_a_pickle_that_is_cut_off(tmp_path, cut):
    path = pickled(tmp_path / "p.pkl")
    path.write_bytes(path.read_bytes()[:cut])
    refusal(lambda: convert(path, tmp_path / "made.safetensors", "resnext_det"), f"{path}: ")
    assert [p.name for p in tmp_path.iterdir()] == ["p.pkl"]


def test_a_pickle_with_a_field_at_fault(tmp_path):
    """Found while the file is written, of which nothing is left."""
    path = pickled(tmp_path / "p.pkl", objectness_logits=[np.ones(1), np.ones(2)])
    refusal(
        lambda: convert(path, tmp_path / "made.safetensors", "resnext_det"),
        f"{path}: image 8 has 0 boxes and 2 objectness_logits",
    )
    assert [p.name for p in tmp_path.iterdir()] == ["p.pkl"]


def test_a_pickle_of_many_images(tmp_path):
    """More instructions than a file of weights may have."""
    images, boxes = 24_000, np.ones((12, 4), np.float32)
    path = pickled(
        tmp_path / "p.pkl",
        ids=list(range(images)),
        boxes=[boxes.copy() for _ in range(images)],
        objectness_logits=[boxes[:, 0].copy() for _ in range(images)],
    )
    assert sum(1 for _ in read_pickled(path)) == images


def test_conversions_that_are_none(whole, tmp_path):
    path = pickled(tmp_path / "p.pkl")
    made = tmp_path / "made"
    refusal(lambda: convert(path, made, "detectron2"), path, "already", "give --format resnext_det")
    refusal(lambda: convert(whole / STORED, made, "resnext_det"), "already", "--format detectron2")
    refusal(lambda: convert(tmp_path / "no.pkl", made, "detectron2"), "no.pkl: cannot be read")
    refusal(lambda: convert(path, path, "resnext_det"), f"{path}: is there already")
