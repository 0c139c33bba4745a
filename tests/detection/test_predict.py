"""Guard prediction: the boxes of an evaluation, whatever the images come as and go together in."""

import json

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from PIL import Image
from pycocotools.coco import COCO
from test_pipeline import refusal
from tiny import make_cfg, write_start_weights

from resnext_det.data.coco import class_names
from resnext_det.detection import pipeline
from resnext_det.detection.detector import load_detector
from resnext_det.detection.loaders import build_test_loader
from resnext_det.detection.predict import Predictor
from resnext_det.detection.predict_files import (
    Entry,
    draw,
    entries_of,
    entries_of_coco,
    new_folder,
    predict_images,
    predict_video,
)


@pytest.fixture(scope="module")
def run(demo_set, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    weights = write_start_weights(tmp_path_factory.mktemp("classification"))
    pipeline.run(make_cfg(demo_set, folder, weights), resume=False)
    return folder


@pytest.fixture(scope="module")
def predictor(run):
    return Predictor(run / "model_final.safetensors", "cpu")


@pytest.fixture(scope="module")
def evaluated(run):
    """Record and instances of every validation image, as an evaluation makes them."""
    model, cfg = load_detector(run / "model_final.safetensors")
    cfg.TEST.IMS_PER_BATCH = 1
    with torch.no_grad():
        return [(x, model([x])[0]["instances"]) for (x,) in build_test_loader(cfg, "demo_val")]


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("as_array", [False, True])
def test_the_boxes_of_an_evaluation(run, evaluated, batch_size, as_array):
    predictor = Predictor(run / "model_final.safetensors", "cpu", batch_size=batch_size)
    names = [x["file_name"] for x, _ in evaluated]
    images = [np.asarray(Image.open(n).convert("RGB")) for n in names] if as_array else names
    found = predictor(images)
    assert sum(map(len, found)) > 50
    for ours, (x, theirs) in zip(found, evaluated, strict=True):
        assert ours.path is None if as_array else str(ours.path) == x["file_name"]
        np.testing.assert_allclose(ours.boxes, theirs.pred_boxes.tensor, atol=1e-4, rtol=1e-5)
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-5)
        assert ours.instances.pred_classes.tolist() == theirs.pred_classes.tolist()


def test_names_come_from_the_weights(predictor, evaluated):
    names, ids = class_names("demo_val")
    assert predictor.class_names == tuple(names) and predictor.class_ids == tuple(ids)
    found = predictor(evaluated[0][0]["file_name"])
    assert found.names == [names[i] for i in found.instances.pred_classes.tolist()]


def test_images_of_several_sizes_stay_in_order(predictor):
    random = np.random.default_rng(0)
    sizes = [(60, 80), (60, 80), (90, 60), (60, 80), (50, 50)]
    images = [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    together, alone = predictor(images), [predictor(image) for image in images]
    for first, second, size in zip(together, alone, sizes, strict=True):
        assert first.image.shape[:2] == size == first.instances.image_size
        np.testing.assert_allclose(first.boxes, second.boxes, atol=1e-4, rtol=1e-5)


def test_bgr_networks_get_bgr(run):
    image = np.zeros((60, 80, 3), np.uint8)
    image[..., 0] = 255
    seen = []
    for pixel_format in ("RGB", "BGR"):
        predictor = Predictor(run / "model_final.safetensors", "cpu")
        predictor.cfg.INPUT.FORMAT = pixel_format
        seen.append(predictor._prepare(image)[1].float().mean((1, 2)).tolist())
    assert seen == [[255, 0, 0], [0, 0, 255]]


def test_a_score_of_ones_own(run, evaluated):
    predictor = Predictor(run / "model_final.safetensors", "cpu", score=0.3)
    found = predictor([x["file_name"] for x, _ in evaluated])
    assert min(min(f.scores, default=1.0) for f in found) >= 0.3


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((4, 4), np.uint8), "shape (4, 4)"),
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.zeros((0, 4, 3), np.uint8), "shape (0, 4, 3)"),
        (np.zeros((4, 4, 4), np.uint8), "shape (4, 4, 4)"),
    ],
)
def test_arrays_that_are_no_images(predictor, image, words):
    refusal(lambda: predictor(image), words, "RGB")


# ---- files ----


def images_in(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((40, 50, 3), 90, np.uint8)).save(path)


def test_what_is_looked_at(tmp_path):
    images_in(tmp_path, "a/2.png", "a/b/1.jpg", "one.bmp")
    (tmp_path / "a" / "notes.txt").write_text("no image")
    found = entries_of([tmp_path / "a", tmp_path / "one.bmp"])
    assert [(e.id, e.name) for e in found] == [(1, "2.png"), (2, "b/1.jpg"), (3, "one.bmp")]


def test_what_cannot_be_looked_at(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("")
    images_in(tmp_path, "x/1.png", "y/1.png")
    refusal(lambda: entries_of([tmp_path / "none.jpg"]), "none.jpg", "is not there")
    refusal(lambda: entries_of([tmp_path / "empty"]), "holds no image")
    refusal(lambda: entries_of([tmp_path / "notes.txt"]), ".txt")
    refusal(lambda: entries_of([tmp_path / "x", tmp_path / "y"]), "the same name")


def test_json_and_pictures(predictor, demo_set, tmp_path):
    json_file = demo_set / "annotations" / "val.json"
    entries = entries_of_coco(json_file, demo_set / "val")
    results, skipped = predict_images(predictor, entries, tmp_path, least=0.1)
    assert not skipped
    truth = COCO(json_file)
    loaded = truth.loadRes(str(tmp_path / "predictions.json"))  # by pycocotools itself
    assert sorted(loaded.getImgIds()) == sorted(truth.getImgIds())
    assert {a["category_id"] for a in loaded.anns.values()} <= set(truth.getCatIds())
    listed = json.loads((tmp_path / "images.json").read_text())
    assert listed["categories"] == [
        {"id": c["id"], "name": c["name"]} for c in truth.loadCats(truth.getCatIds())
    ]
    for image in listed["images"]:
        assert truth.imgs[image["id"]]["width"] == image["width"]
    for record in DatasetCatalog.get("demo_val"):
        name = record["file_name"].rsplit("/", 1)[1].replace(".png", ".jpg")
        with Image.open(tmp_path / "pictures" / name) as picture:
            assert picture.size[0] >= 480


def test_a_name_that_leads_out_writes_nothing_outside(predictor, demo_set, tmp_path):
    images_in(tmp_path, "images/1.png")
    path = tmp_path / "images" / "1.png"
    entries = [Entry(5, "../../out.png", path), Entry(6, str(tmp_path / "abs.png"), path)]
    folder = tmp_path / "found"
    folder.mkdir()
    predict_images(predictor, entries, folder, least=0.5)
    assert sorted(p.name for p in (folder / "pictures").iterdir()) == ["5_out.jpg", "6_abs.jpg"]
    assert not list(tmp_path.glob("abs*")) and not list(tmp_path.parent.glob("out*"))


def test_unreadable_images_by_switch(predictor, tmp_path):
    images_in(tmp_path, "in/1.png", "in/3.png")
    (tmp_path / "in" / "2.png").write_bytes(b"no image")
    entries = entries_of([tmp_path / "in"])
    refusal(lambda: predict_images(predictor, entries, tmp_path / "a", least=0.5), "2.png")
    results, skipped = predict_images(
        predictor, entries, tmp_path / "b", least=0.5, skip_unreadable=True
    )
    assert [path.name for path in skipped] == ["2.png"]
    assert [image["id"] for image in results.images] == [1, 3]


def test_nothing_is_written_over(tmp_path):
    (tmp_path / "old.json").write_text("")
    refusal(lambda: new_folder(tmp_path), "is there already")
    refusal(lambda: new_folder(tmp_path / "old.json"), "is there already")
    assert new_folder(tmp_path / "a" / "b").is_dir()


def test_video(predictor, tmp_path):
    path = tmp_path / "film.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10.0, (96, 64))
    if not writer.isOpened():
        pytest.skip("this OpenCV has no mp4v encoder")
    for value in (0, 80, 160, 240, 120):
        writer.write(np.full((64, 96, 3), value, np.uint8))
    writer.release()
    results = predict_video(predictor, path, tmp_path / "found", least=0.5)
    assert [image["id"] for image in results.images] == [0, 1, 2, 3, 4]
    assert json.loads((tmp_path / "found" / "images.json").read_text())["images"][0]["width"] == 96
    drawn = cv2.VideoCapture(str(tmp_path / "found" / "film.mp4"))
    assert int(drawn.get(cv2.CAP_PROP_FRAME_COUNT)) == 5
    assert drawn.get(cv2.CAP_PROP_FPS) == pytest.approx(10.0)


def test_no_video(predictor, tmp_path):
    path = tmp_path / "film.mp4"
    path.write_bytes(b"no film")
    refusal(lambda: predict_video(predictor, path, tmp_path, least=0.5), "film.mp4", "no frame")


def test_only_good_detections_are_drawn(predictor, evaluated):
    found = predictor(evaluated[0][0]["file_name"])
    nothing, everything = draw(found, 1.1), draw(found, 0.0)
    assert nothing.shape == everything.shape and (nothing != everything).any()
