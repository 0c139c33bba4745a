"""Guard MODEL.WEIGHTS of a classifier: loaded where it fits, refused by name where it does not."""

import dataclasses
from pathlib import Path

import pytest
import torch
from tiny_classifier import TINY_CLASSIFIER

from resnext_det.classification import trainer
from resnext_det.classification.classifier import build_classifier
from resnext_det.classification.weights_setup import (
    check_initial,
    initial_weights,
    load_initial,
    set_as_recorded,
)
from resnext_det.config import architecture_arguments, load_cfg
from resnext_det.engine.checkpoint import RunCheckpointer
from resnext_det.errors import InputError
from resnext_det.models import Architecture
from resnext_det.weights import read_weights, save_weights

CONFIG = Path(__file__).parents[2] / "configs" / "demo" / "classification.yaml"
NAMES = ["cross", "cube", "leaf", "mug", "ring", "star"]  # conftest's demo set
TINY = {
    "MODEL.DEVICE": "cpu",
    **TINY_CLASSIFIER,
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 8,
    "SOLVER.MAX_EPOCHS": 0.0,
    "SOLVER.MAX_ITER": 1,
    "TEST.EVAL_PERIOD": 0,
}


def config(**others):
    """A key's dots are written as two underscores."""
    values = TINY | {key.replace("__", "."): value for key, value in others.items()}
    return load_cfg(CONFIG, [str(word) for pair in values.items() for word in pair])


def model_for(cfg, classes=6, seed=1):
    torch.manual_seed(seed)
    model = build_classifier(cfg, classes)
    torch.nn.init.normal_(model.trunk.linear.weight)
    return model


@pytest.fixture
def saved(tmp_path):
    """Weights of a network for the demo's classes, as training leaves them."""
    return save(tmp_path / "m.safetensors")


def save(path, **changes):
    cfg = config()
    model = model_for(cfg)
    record = dataclasses.replace(trainer.record_of(cfg, model, NAMES, None), **changes)
    save_weights(path, model.trunk.state_dict(), record)
    return path


def refusal(call, *words):
    with pytest.raises(InputError) as caught:
        call()
    for word in words:
        assert word in str(caught.value), str(caught.value)


def load(path, names, **others):
    """The state of a network of another seed after loading, and the file's."""
    cfg = config(**others)
    model = model_for(cfg, len(names), seed=2)
    before = {name: t.clone() for name, t in model.trunk.state_dict().items()}
    load_initial(cfg, model, str(path), names)
    return before, model.trunk.state_dict(), read_weights(path)[0]


def test_all_of_it_for_the_same_classes(saved, caplog):
    with caplog.at_level("INFO", logger="resnext_det"):
        _, after, theirs = load(saved, NAMES)
    for name, tensor in theirs.items():
        assert torch.equal(after[name], tensor), name
    assert "loaded" in caplog.text and "fresh" not in caplog.text


HEADS = {
    "of another number": (NAMES[:3], "the file's is for 6 classes, the data have 3"),
    "of other names": (
        ["a", *NAMES[1:]],
        "the file's is for other classes (cross, cube, leaf, ...)",
    ),
}


@pytest.mark.parametrize("names, reason", HEADS.values(), ids=HEADS)
def test_a_head_for_other_classes_starts_fresh(saved, caplog, names, reason):
    with caplog.at_level("INFO", logger="resnext_det"):
        before, after, theirs = load(saved, names)
    assert f"; the head starts fresh: {reason}" in caplog.text
    for name, tensor in after.items():
        expected = before[name] if name.startswith("linear.") else theirs[name]
        assert torch.equal(tensor, expected), name


def test_a_file_that_names_no_classes(tmp_path):
    """As other programs' do: the number decides."""
    _, after, theirs = load(save(tmp_path / "a.safetensors", class_names=[]), list("abcdef"))
    assert torch.equal(after["linear.weight"], theirs["linear.weight"])


DIFFERENT = [
    ("MODEL.RESNETS.DEPTH", 26, "26", "14"),
    ("MODEL.RESNETS.NUM_GROUPS", 2, "2", "4"),
    ("MODEL.RESNETS.WIDTH_PER_GROUP", 16, "16", "8"),
    ("MODEL.RESNETS.WIDTH_MULTIPLIER", 0.25, "0.25", "0.125"),
    ("MODEL.RESNETS.STRIDE_IN_1X1", True, "True", "False"),
    ("MODEL.RESNETS.SHORTCUT", False, "False", "True"),
    ("INPUT.FORMAT", "BGR", "'BGR'", "'RGB'"),
    ("MODEL.PIXEL_MEAN", "[1.0, 2.0, 3.0]", "[1.0, 2.0, 3.0]", "[123.675, 116.28, 103.53]"),
    ("MODEL.PIXEL_STD", "[1.0, 1.0, 1.0]", "[1.0, 1.0, 1.0]", "[58.395, 57.12, 57.375]"),
]


@pytest.mark.parametrize("key, value, ours, theirs", DIFFERENT, ids=[row[0] for row in DIFFERENT])
def test_another_network_or_other_pixels(saved, key, value, ours, theirs):
    cfg = config(**{key: value})
    words = f"{key} is {ours}, but {saved} was trained with {theirs}", f"set {key} {theirs} or"
    refusal(lambda: check_initial(cfg, str(saved)), *words)
    set_as_recorded(cfg, read_weights(saved)[1])
    check_initial(cfg, str(saved))


def test_every_field_of_a_network_is_compared():
    keys = {row[0] for row in DIFFERENT}
    assert len([key for key in keys if "RESNETS" in key]) == len(Architecture().as_dict())


def test_a_first_record_has_the_defaults(tmp_path):
    """Those had three fields; a config of another kind does not fill the gap."""
    known = {"depth": 14, "cardinality": 4, "bottleneck_width": 8, "stride_in_1x1": False}
    record = read_weights(save(tmp_path / "a.safetensors"))[1]
    cfg = config(MODEL__RESNETS__SHORTCUT=False)
    set_as_recorded(cfg, dataclasses.replace(record, architecture=known))
    assert architecture_arguments(cfg) == Architecture(**known).as_dict()


def test_weights_of_a_detector(tmp_path):
    path = save(tmp_path / "d.safetensors", kind="detector")
    words = f"{path}: holds detector weights", "give classification weights"
    refusal(lambda: check_initial(config(), str(path)), *words)


def test_resume_takes_a_checkpoint_only_if_it_can_be_read(tmp_path, saved):
    cfg = config(MODEL__WEIGHTS=saved, OUTPUT_DIR=tmp_path / "run")
    assert initial_weights(cfg, resume=True) == str(saved)  # nothing to go on with yet
    (tmp_path / "run").mkdir()
    for bytes_left in (b"", b"half", b"PK\x03\x04", b"\x80\x02}q\x00(X\x05"):
        (tmp_path / "run" / "model_0000003.pth").write_bytes(bytes_left)
        assert initial_weights(cfg, resume=True) == str(saved)
    RunCheckpointer(torch.nn.Linear(1, 1), str(tmp_path / "run")).save("model_0000001", iteration=1)
    assert initial_weights(cfg, resume=True) == ""
    assert initial_weights(cfg, resume=False) == str(saved)
    assert initial_weights(config(OUTPUT_DIR=tmp_path / "run"), resume=True) == ""


def test_training_begins_with_them(demo_set, tmp_path, saved):
    """At a rate of next to nothing the weights stay those of the file, head and all."""
    keys = {"DATA__ROOT": demo_set / "classification", "OUTPUT_DIR": tmp_path / "run"}
    keys |= {"SOLVER__BASE_LR": 1e-30, "SEED": 0, "MODEL__WEIGHTS": saved}
    trainer.train(config(**keys), resume=False)
    ours, theirs = (read_weights(p)[0] for p in (tmp_path / "run/model_final.safetensors", saved))
    for name in theirs:
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-20)


def test_a_refusal_leaves_no_run(demo_set, tmp_path, saved):
    keys = {"DATA__ROOT": demo_set / "classification", "OUTPUT_DIR": tmp_path / "run"}
    cfg = config(**keys, MODEL__WEIGHTS=saved, MODEL__RESNETS__NORM="LN")
    refusal(lambda: trainer.train(cfg, resume=False), "MODEL.RESNETS.NORM", str(saved))
    assert not (tmp_path / "run" / "run.json").exists()
