"""Guard the test protocols: single, ten-crop and dense multi-scale testing as they are defined."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from resnext_det.classification import evaluation, trainer
from resnext_det.classification.classifier import Classifier, build_classifier
from resnext_det.classification.evaluator import ErrorEvaluator
from resnext_det.classification.protocols import dense_logits, last_stage, logits_of
from resnext_det.config import load_cfg
from resnext_det.data import sets
from resnext_det.models import build_resnext
from resnext_det.weights import save_weights

CONFIG = Path(__file__).parents[2] / "configs" / "demo" / "classification.yaml"
CLASSES = 7
# depth, C, d, width, training crop, cells of the last map
NETWORKS = {"ImageNet": (14, 4, 8, 0.125, 64, 2), "CIFAR": (11, 2, 8, 0.25, 32, 8)}


def wake(trunk):
    """Statistics and head as after some training, so that logits differ from image to image."""
    torch.manual_seed(1)
    for name, buffer in trunk.named_buffers():
        if name.endswith("running_mean"):
            torch.nn.init.normal_(buffer, std=0.1)
        elif name.endswith("running_var"):
            torch.nn.init.uniform_(buffer, 0.5, 1.5)
    torch.nn.init.normal_(trunk.linear.weight, std=1.0)
    torch.nn.init.normal_(trunk.linear.bias, std=1.0)
    return trunk


@pytest.fixture(params=NETWORKS)
def network(request):
    """(trunk in float64 that also gives its last map, training crop, cells of the map)."""
    depth, cardinality, d, width, crop, window = NETWORKS[request.param]
    torch.manual_seed(0)
    trunk = build_resnext(
        depth,
        cardinality,
        d,
        width_multiplier=width,
        num_classes=CLASSES,
        out_features=["res4" if request.param == "CIFAR" else "res5", "linear"],
    )
    return wake(trunk).double().eval(), crop, window


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def images(*shape):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_the_logits_tell_images_apart(network):
    """Or the comparisons below would say little."""
    trunk, crop, window = network
    logits = logits_of(trunk, images(6, 3, crop, crop), window)
    assert logits.shape == (6, CLASSES) and logits.std(0).min() > 0.01


def test_last_stage(network):
    trunk, crop, window = network
    name = last_stage(trunk)
    assert name == ("res4" if trunk.architecture.is_cifar else "res5")
    assert trunk(images(1, 3, crop, crop))[name].shape[2:] == (window, window)


def test_ten_crop_sums_the_logits_of_ten_singles(network):
    """Logits and not probabilities (facebookresearch/ResNeXt, train.lua)."""
    trunk, crop, window = network
    views = images(2, 10, 3, crop, crop)
    singles = [logits_of(trunk, views[:, i], window) for i in range(10)]
    close(logits_of(trunk, views, window), torch.stack(singles).sum(0))


def test_dense_at_the_training_size_is_the_single_test(network):
    """There the head fits one place only."""
    trunk, crop, window = network
    x = images(3, 3, crop, crop)
    close(logits_of(trunk, [x], window), logits_of(trunk, x, window))


def test_dense_averages_the_scales(network):
    trunk, crop, window = network
    scales = [images(2, 3, crop + more, crop + 2 * more) for more in (0, 32, 64)]
    singles = [logits_of(trunk, [scale], window) for scale in scales]
    close(logits_of(trunk, scales, window), torch.stack(singles).mean(0))


@pytest.mark.parametrize("height, width", [(160, 160), (96, 224), (100, 131)])
def test_dense_is_a_convolutional_head(network, height, width):
    """Average pooling and classifier as one convolution, its scores averaged over the places."""
    trunk, _, window = network
    x = images(2, 3, height, width)
    features = trunk(x)[last_stage(trunk)]
    assert min(features.shape[2:]) > window
    weight = trunk.linear.weight[:, :, None, None].expand(-1, -1, window, window) / window**2
    scores = F.conv2d(features, weight, trunk.linear.bias)
    assert scores.shape[2:] == tuple(side - window + 1 for side in features.shape[2:])
    close(dense_logits(trunk, x, window), scores.mean((2, 3)))
    # The mean over the whole map, which weights the border as much as the middle, is another.
    assert (dense_logits(trunk, x, window) - trunk(x)["linear"]).abs().max() > 1e-3


def test_a_map_smaller_than_the_window_is_pooled_whole(network):
    trunk, crop, window = network
    x = images(2, 3, crop // 2, 2 * crop)
    features = trunk(x)[last_stage(trunk)]
    assert features.shape[2] == window // 2
    pooled = F.avg_pool2d(features, (window // 2, window), stride=1).mean((2, 3))
    close(dense_logits(trunk, x, window), trunk.linear(pooled))


# ---- the classifier of a config ----


def config(data, folder, **others):
    values = {
        "DATA.ROOT": data / "classification",
        "OUTPUT_DIR": folder,
        "MODEL.PRECISION": "fp32",
        "MODEL.RESNETS.NUM_GROUPS": 4,
        "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
        "MODEL.RESNETS.WIDTH_MULTIPLIER": 0.125,
        "DATA.CROP_SIZE": 32,
        "DATA.RESIZE_SIZE": 40,
        "DATA.TEST_SCALES": "(32, 48)",
        "DATALOADER.NUM_WORKERS": 0,
        **others,
    }
    return load_cfg(CONFIG, [str(word) for pair in values.items() for word in pair])


@pytest.mark.parametrize(
    "depth, crop, window", [(14, 224, 7), (14, 32, 1), (14, 48, 2), (14, 320, 10), (11, 32, 8)]
)
def test_the_window_is_the_map_of_a_training_crop(tmp_path, depth, crop, window):
    keys = {"MODEL.RESNETS.DEPTH": depth, "DATA.CROP_SIZE": crop, "DATA.RESIZE_SIZE": crop}
    model = build_classifier(
        config(tmp_path, tmp_path, **keys, **{"DATA.TEST_PROTOCOL": "dense"}), 3
    )
    assert model.window == window
    features = model.eval().trunk(torch.zeros(1, 3, crop, crop))
    assert set(features) == {last_stage(model.trunk), "linear"}
    assert features[last_stage(model.trunk)].shape[2:] == (window, window)


def test_only_the_dense_protocol_keeps_the_map(tmp_path):
    for protocol in ("single", "ten_crop"):
        model = build_classifier(config(tmp_path, tmp_path, **{"DATA.TEST_PROTOCOL": protocol}), 3)
        assert set(model.eval().trunk(torch.zeros(1, 3, 32, 32))) == {"linear"}


def test_training_takes_the_same_loss_under_every_protocol(tmp_path):
    batch = {"image": images(4, 3, 32, 32).float(), "label": torch.tensor([0, 1, 2, 0])}
    losses = []
    for protocol in ("single", "ten_crop", "dense"):
        torch.manual_seed(0)
        model = build_classifier(config(tmp_path, tmp_path, **{"DATA.TEST_PROTOCOL": protocol}), 3)
        losses.append(model.train()(batch)["loss_cls"].item())
    assert losses[0] == losses[1] == losses[2]


@pytest.fixture(scope="module")
def trained(demo_set, tmp_path_factory):
    """A weights file of the demo's classes; no training, only numbers that tell images apart."""
    folder = tmp_path_factory.mktemp("trained")
    cfg = config(demo_set, folder)
    names = sets.open_split(cfg, "val").classes
    model = build_classifier(cfg, len(names))
    with torch.no_grad():
        wake(model.trunk)
    record = trainer.record_of(cfg, model, names, None)
    save_weights(folder / "model.safetensors", model.trunk.state_dict(), record)
    return folder / "model.safetensors", model.trunk.eval()


def by_hand(cfg, trunk):
    """Logits of every validation image, one by one, from its views as they are defined."""
    data, rows = sets.open_split(cfg, "val"), []
    for index in range(len(data)):
        views, _ = data[index]
        if cfg.DATA.TEST_PROTOCOL == "single":
            rows.append(trunk(views[None])["linear"][0])
        elif cfg.DATA.TEST_PROTOCOL == "ten_crop":
            rows.append(trunk(views)["linear"].sum(0))
        else:  # one cell is the map of a crop of 32: the mean over all cells
            rows.append(torch.stack([trunk(view[None])["linear"][0] for view in views]).mean(0))
    labels = torch.tensor([label for _, label in data.samples])
    return torch.stack(rows), labels


@pytest.mark.parametrize("protocol", ["single", "ten_crop", "dense"])
def test_evaluate_only(demo_set, trained, tmp_path, monkeypatch, protocol):
    """Through the tool's own path, to results.json, every image once."""
    weights, trunk = trained
    keys = {"DATA.TEST_PROTOCOL": protocol, "MODEL.WEIGHTS": weights, "DATA.TEST_BATCH_SIZE": 7}
    cfg = config(demo_set, tmp_path, **keys)
    seen = []
    process = ErrorEvaluator.process

    def spy(self, inputs, outputs):
        seen.append(outputs["logits"])
        process(self, inputs, outputs)

    monkeypatch.setattr(ErrorEvaluator, "process", spy)
    results = evaluation.evaluate_only(cfg)
    logits, labels = by_hand(cfg, trunk)
    torch.testing.assert_close(torch.cat(seen), logits, rtol=1e-4, atol=1e-4)
    ranked = logits.topk(5).indices
    errors = {
        f"top{k}_error": 100 * (1 - (ranked[:, :k] == labels[:, None]).sum().item() / len(labels))
        for k in (1, 5)
    }
    assert results["classification"] == pytest.approx(errors)
    assert json.loads((tmp_path / "results.json").read_text()) == results


def test_the_protocols_are_not_one(demo_set, trained, tmp_path):
    weights, trunk = trained
    logits = {}
    for protocol in ("single", "ten_crop", "dense"):
        cfg = config(demo_set, tmp_path, **{"DATA.TEST_PROTOCOL": protocol})
        logits[protocol], _ = by_hand(cfg, trunk)
    assert (logits["single"] - logits["dense"]).abs().max() > 0.01
    assert (logits["single"] - logits["ten_crop"] / 10).abs().max() > 0.01


def test_another_window_is_another_dense_test(network):
    trunk, crop, window = network
    x = images(1, 3, 2 * crop, 3 * crop)
    batch = {"image": [x.float()], "label": torch.tensor([0])}
    model = Classifier(trunk.float(), window).eval()
    wider = Classifier(trunk.float(), window + 1).eval()
    assert (model(batch)["logits"] - wider(batch)["logits"]).abs().max() > 1e-4
