"""Guard MODEL.COMPILE: the same numbers and names, one graph, and a word where it cannot be.

torch's own "aot_eager" stands in for the compiler, which would take a minute a network.
"""

import copy
import logging
import os
import signal
from pathlib import Path

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from tiny_classifier import TINY_CLASSIFIER

from resnext_det.classification import classifier, trainer
from resnext_det.config import load_cfg
from resnext_det.detection import backbone
from resnext_det.engine.seeding import seed_all
from resnext_det.engine.trainer import Trainer
from resnext_det.errors import InputError, Interrupted
from resnext_det.models import build_resnext, compiled
from resnext_det.models.convolve import Compute
from resnext_det.weights import read_weights

CONFIGS = Path(__file__).parents[2] / "configs" / "demo"
ON = {"MODEL.COMPILE": True, "MODEL.REGROUP": "off"}


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    """Graphs of other tests, and what was said."""
    torch._dynamo.reset()
    compiled._say_once.cache_clear()
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")


@pytest.fixture
def graphs(monkeypatch):
    """The graphs that were made, of a compiler that leaves them as they are; the trial's is not."""
    made = []

    def keep(graph, inputs):
        if len(graph.graph.nodes) > 10:
            made.append(graph)
        return graph.forward

    monkeypatch.setattr(compiled, "BACKEND", keep)
    return made


@pytest.fixture
def no_compiler(monkeypatch):
    def missing(graph, inputs):
        raise RuntimeError("No working C++ compiler found:\n(None, 'g++')")

    monkeypatch.setattr(compiled, "BACKEND", missing)


def network(depth=11, **others):
    torch.manual_seed(0)
    arguments = {"width_multiplier": 0.125, "num_classes": 5, "channels_last": True, **others}
    return build_resnext(depth, 4, 8, **arguments)


def cfg_of(file, **others):
    keys = {"MODEL.DEVICE": "cpu", "MODEL.WEIGHTS": "", **ON, **others}
    return load_cfg(CONFIGS / file, [str(word) for pair in keys.items() for word in pair])


def classifier_cfg(data, folder, **others):
    own = {"DATA.ROOT": data / "classification", "OUTPUT_DIR": folder, **TINY_CLASSIFIER}
    own |= {"DATALOADER.NUM_WORKERS": 0, "SOLVER.IMS_PER_BATCH": 8, "SOLVER.MAX_EPOCHS": 0.0}
    own |= {"SOLVER.CHECKPOINT_PERIOD": 3, "SOLVER.MAX_ITER": 5, **others}
    return cfg_of("classification.yaml", **own)


def detector_cfg(**others):
    network = {key: value for key, value in TINY_CLASSIFIER.items() if key.startswith("MODEL.")}
    return cfg_of("detection.yaml", **network, **others)


def refusal(call, *words):
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in ("MODEL", *words)), message


# ---- the same network ----


@pytest.mark.parametrize(("norm", "fuse"), [("BN", True), ("FrozenBN", True), ("GN", False)])
def test_the_same_numbers(norm, fuse):
    """Outputs, gradients and statistics, in training and in evaluation."""
    wide = {"width_multiplier": 1.0} if norm == "GN" else {}
    plain = network(norm=norm, fuse=fuse, **wide).double()
    fast = copy.deepcopy(plain)
    compiled.compile_in_place(fast, "cpu")
    assert list(fast.state_dict()) == list(plain.state_dict())
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    for train in (True, False):
        results = []
        for model in (plain, fast):
            model.train(train)
            model.zero_grad()
            out = model(x)["linear"]
            out.square().sum().backward()
            with torch.no_grad():
                again = model(x)["linear"]
            results.append([out, again, *(p.grad for p in model.parameters()), *model.buffers()])
        for expected, found in zip(*results, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("depth", "norm"), [(11, "BN"), (14, "FrozenBN"), (20, "BN")])
@pytest.mark.parametrize("train", [True, False])
def test_one_graph(graphs, depth, norm, precision, train):
    """Nothing falls back to Python between the image and the features."""
    model = network(depth, norm=norm, precision=precision, fuse=True).train(train)
    compiled.compile_in_place(model, "cpu")
    with torch.set_grad_enabled(train):
        for _ in range(2):
            model(torch.randn(2, 3, 32, 32))
    assert len(graphs) == 1


def test_folding_is_left_to_the_compiler():
    model = network(fuse=True)
    compiled.compile_in_place(model, "cpu")
    found = [m.compute for m in model.modules() if isinstance(getattr(m, "compute", None), Compute)]
    assert len(found) == 4 and not any(compute.fuse for compute in found)


def test_a_wrong_image_is_told_as_ever():
    model = network()
    compiled.compile_in_place(model, "cpu")
    with pytest.raises(InputError, match=r"give \(N, 3, height, width\)"):
        model(torch.randn(2, 4, 32, 32))


# ---- what it excludes, and machines without a compiler ----


def test_regrouping_is_refused():
    refusal(lambda: compiled.check_compile("cpu", "auto", False), 'REGROUP is "auto"', '"off"')
    model = network(regroup="auto")
    refusal(lambda: compiled.compile_in_place(model, "cpu"), 'REGROUP is "auto"', '"off"')


def test_recomputation_is_refused():
    refusal(lambda: compiled.check_compile("cpu", "off", True), "RECOMPUTE", "COMPILE")
    model = network(recompute=True)
    refusal(lambda: compiled.compile_in_place(model, "cpu"), "RECOMPUTE", "COMPILE")


def test_no_compiler_is_told_before_a_training(no_compiler, demo_set, tmp_path):
    words = ("COMPILE is True", "on cpu here", "No working C++ compiler", "COMPILE False")
    refusal(lambda: compiled.check_compile("cpu", "off", False), *words)
    cfg = classifier_cfg(demo_set, tmp_path)
    refusal(lambda: trainer.train(cfg, resume=False), *words)
    assert not list(tmp_path.iterdir())
    refusal(lambda: backbone.check_detector(detector_cfg()), *words)


def test_without_a_compiler_weights_still_serve(no_compiler, caplog):
    """Evaluation and prediction take the config that is stored with the weights."""
    with caplog.at_level(logging.WARNING, logger="resnext_det"):
        models = [network(fuse=True), network(fuse=True)]
        for model in models:
            compiled.compile_in_place(model.eval(), "cpu")
    assert len(caplog.records) == 1 and "No working C++ compiler" in caplog.text
    assert models[0].stem.compute.fuse
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(models[0](x)["linear"], network(fuse=True).eval()(x)["linear"])


# ---- by config ----


def test_off_by_default(demo_set, tmp_path, graphs):
    assert load_cfg(None).MODEL.COMPILE is False
    cfg = classifier_cfg(demo_set, tmp_path, **{"MODEL.COMPILE": False})
    model = classifier.build_classifier(cfg, 3).eval()
    model({"image": torch.randn(2, 3, 32, 32)})
    assert not graphs


def test_training_resumes_bit_for_bit(demo_set, tmp_path, monkeypatch, graphs):
    """Stopped by a signal in the middle; the second process has no graphs yet."""

    def train(name, resume=False):
        torch._dynamo.reset()
        (tmp_path / name).mkdir(exist_ok=True)
        cfg = classifier_cfg(demo_set, tmp_path / name)
        seed_all(cfg.SEED, 0)
        trainer.train(cfg, resume)
        return read_weights(tmp_path / name / "model_final.safetensors")[0]

    def stopped_step(self, step=Trainer.run_step):
        step(self)
        if self.iter == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    whole = train("whole")
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="--resume"):
        patch.setattr(Trainer, "run_step", stopped_step)
        train("stopped")
    resumed = train("stopped", resume=True)
    assert graphs and whole.keys() == resumed.keys()
    for key, value in whole.items():
        assert torch.equal(value, resumed[key]), key


def test_the_trunk_of_a_detector(graphs):
    """Images of several sizes, with the features of the plain trunk."""
    plain, fast = (
        build_backbone(detector_cfg(**{"MODEL.COMPILE": on}), ShapeSpec(channels=3)).eval()
        for on in (False, True)
    )
    fast.load_state_dict(plain.state_dict())
    with torch.no_grad():
        for size in ((32, 48), (48, 32), (64, 80), (80, 48)):
            x = torch.randn(1, 3, *size)
            torch.testing.assert_close(fast(x)["res4"], plain(x)["res4"], rtol=1e-4, atol=1e-4)
    assert 1 <= len(graphs) <= 3  # then sizes are no longer part of a graph


def test_a_detector_is_checked_without_memory(graphs):
    backbone.check_detector(detector_cfg())
    assert not graphs  # nothing ran but the trial
