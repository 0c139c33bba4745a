"""Guard prediction: the boxes of an evaluation, whatever the images come as and go together in."""

import json

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, Instances
from PIL import Image
from pycocotools import mask as run_lengths
from pycocotools.coco import COCO
from test_pipeline import refusal
from tiny import make_cfg, write_start_weights

from resnext_det.data.coco import class_names
from resnext_det.detection import pipeline
from resnext_det.detection.detector import load_detector
from resnext_det.detection.loaders import build_test_loader
from resnext_det.detection.predict import HELD, Prediction, Predictor
from resnext_det.detection.predict_files import (
    Entry,
    Results,
    draw,
    entries_of,
    entries_of_coco,
    picture_names,
    predict_images,
    predict_video,
    video_of,
)
from resnext_det.engine.folders import new_folder


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


@pytest.mark.parametrize("given", [5, None, [5], b"a.png"])
def test_what_is_no_image(predictor, given):
    refusal(lambda: predictor(given), "image: is", "give a path, or an array")


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
        # A float32 has steps of 1.5e-5 above 128 pixels: one image at a time is exact, four are
        # right to such a step.
        near = {"atol": 0, "rtol": 0} if batch_size == 1 else {"atol": 1e-5, "rtol": 1e-6}
        np.testing.assert_allclose(ours.boxes, theirs.pred_boxes.tensor, **near)
        np.testing.assert_allclose(ours.scores, theirs.scores, **near)
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
        np.testing.assert_allclose(first.boxes, second.boxes, atol=1e-5, rtol=1e-6)


def shapes_of_batches(predictor, monkeypatch, images):
    """The shapes in every batch that the network gets."""
    seen, model = [], predictor.model

    def watched(inputs):
        seen.append([x["image"].shape for x in inputs])
        return model(inputs)

    monkeypatch.setattr(predictor, "model", watched)
    assert [p.image.shape for p in predictor(images)] == [image.shape for image in images]
    return seen


def test_mixed_sizes_fill_batches_without_padding(predictor, monkeypatch):
    lying, standing = np.zeros((60, 80, 3), np.uint8), np.zeros((80, 60, 3), np.uint8)
    seen = shapes_of_batches(predictor, monkeypatch, [lying, standing] * 4)
    assert [len(batch) for batch in seen] == [4, 4]
    assert all(len(set(batch)) == 1 for batch in seen)


def test_a_lone_size_does_not_wait_for_ever(predictor, monkeypatch):
    lone, many = np.zeros((50, 90, 3), np.uint8), np.zeros((60, 80, 3), np.uint8)
    drawn = 0

    def images():
        nonlocal drawn
        for image in (lone, *[many] * 100):
            drawn += 1
            yield image

    assert next(predictor.stream(images())).image.shape == lone.shape
    assert drawn == HELD * predictor.batch_size


def test_bgr_networks_get_bgr(run):
    image = np.zeros((60, 80, 3), np.uint8)
    image[..., 0] = 255
    seen = []
    for pixel_format in ("RGB", "BGR"):
        predictor = Predictor(run / "model_final.safetensors", "cpu")
        predictor.cfg.INPUT.FORMAT = pixel_format
        seen.append(predictor._prepare(image).pixels.float().mean((1, 2)).tolist())
    assert seen == [[255, 0, 0], [0, 0, 255]]


def test_a_score_of_ones_own(run, evaluated):
    predictor = Predictor(run / "model_final.safetensors", "cpu", score=0.3)
    found = predictor([x["file_name"] for x, _ in evaluated])
    assert min(min(f.scores, default=1.0) for f in found) >= 0.3


def test_no_batch_of_nothing(run):
    refusal(lambda: Predictor(run / "model_final.safetensors", batch_size=0), "batch size: is 0")


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


def test_the_json_holds_the_boxes_to_1e_5(predictor, evaluated):
    found = predictor(evaluated[0][0]["file_name"])
    results = Results(predictor.class_names, ())
    results.add(7, "x.png", found)
    boxes = np.array([r["bbox"] for r in results.results])
    boxes[:, 2:] += boxes[:, :2]
    np.testing.assert_allclose(boxes, found.boxes, atol=1e-5, rtol=0)
    # without ids in the weights, classes count from 1
    assert [r["category_id"] for r in results.results] == (found.classes + 1).tolist()


def test_masks_are_written():
    masks = torch.zeros(2, 6, 8, dtype=torch.bool)
    masks[1, 2:4, 3:7] = True
    instances = Instances((6, 8), pred_boxes=Boxes(torch.tensor([[0.0, 0, 1, 1], [3, 2, 7, 4]])))
    instances.scores, instances.pred_classes = torch.tensor([0.9, 0.8]), torch.tensor([0, 0])
    instances.pred_masks = masks
    results = Results(("cup",), (3,))
    results.add(1, "x.png", Prediction(instances, ("cup",), np.zeros((6, 8, 3), np.uint8)))
    written = json.loads(json.dumps(results.results))
    assert (run_lengths.decode(written[1]["segmentation"]) == masks[1].numpy()).all()
    assert written[1]["bbox"] == [3, 2, 4, 2] and written[1]["category_id"] == 3


def change_val(demo_set, tmp_path, change):
    content = json.loads((demo_set / "annotations" / "val.json").read_text())
    change(content)
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda image: image.pop("file_name"), "images[1] has no file_name"),
        (lambda image: image.update(id="a"), "images[1] has the id 'a'"),
        (lambda image: image.update(file_name="none.png"), "none.png"),
        (lambda image: image.update(file_name="../val.png"), "../val.png"),
    ],
)
def test_a_json_whose_images_are_at_fault(demo_set, tmp_path, change, words):
    path = change_val(demo_set, tmp_path, lambda content: change(content["images"][1]))
    refusal(lambda: entries_of_coco(path, demo_set / "val"), "changed.json", words)


def test_annotations_do_not_matter(demo_set, tmp_path):
    path = change_val(demo_set, tmp_path, lambda content: content["annotations"][0].pop("bbox"))
    assert len(entries_of_coco(path, demo_set / "val")) == 6


def test_no_picture_is_written_over():
    entries = [
        Entry(n, name, None) for n, name in enumerate(["a/1.png", "a/1.jpg", "a/1_2.JPG"], 1)
    ]
    names = [str(name) for name in picture_names(entries).values()]
    assert names == ["a/1.jpg", "a/1_2.jpg", "a/1_2_3.jpg"]


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


def test_skipping_keeps_the_limit_on_pixels(run, tmp_path):
    """An image that is too large is left out as well, not met later as an error."""
    images_in(tmp_path, "in/1.png")
    Image.fromarray(np.zeros((300, 300, 3), np.uint8)).save(tmp_path / "in" / "2.png")
    small = Predictor(run / "model_final.safetensors", "cpu")
    small.cfg.DATASETS.MAX_IMAGE_PIXELS = 20_000
    limit = Image.MAX_IMAGE_PIXELS
    try:
        _, skipped = predict_images(
            small, entries_of([tmp_path / "in"]), tmp_path / "out", least=0.5, skip_unreadable=True
        )
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    assert [path.name for path in skipped] == ["2.png"]


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


def test_which_input_is_a_video(tmp_path):
    (tmp_path / "film.MP4").write_bytes(b"")
    assert video_of([str(tmp_path / "film.MP4")]) == tmp_path / "film.MP4"
    assert video_of([str(tmp_path)]) is None and video_of([]) is None
    refusal(lambda: video_of([str(tmp_path / "none.mp4")]), "none.mp4", "is not there")


def test_no_video(predictor, tmp_path):
    path = tmp_path / "film.mp4"
    path.write_bytes(b"no film")
    refusal(lambda: predict_video(predictor, path, tmp_path, least=0.5), "film.mp4", "no frame")


def test_only_good_detections_are_drawn(predictor, evaluated):
    found = predictor(evaluated[0][0]["file_name"])
    nothing, everything = draw(found, 1.1), draw(found, 0.0)
    assert nothing.shape == everything.shape and (nothing != everything).any()
