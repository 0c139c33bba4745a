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
from resnext_det.detection import pipeline, predict, predict_inputs
from resnext_det.detection.detector import load_detector, stored_cfg
from resnext_det.detection.loaders import build_test_loader
from resnext_det.detection.predict import HELD, Prediction, Predictor
from resnext_det.detection.predict_files import (
    Results,
    draw,
    output_folder,
    picture_names,
    predict_images,
    predict_video,
)
from resnext_det.detection.predict_inputs import Entry
from resnext_det.engine.folders import new_folder
from resnext_det.errors import InputError


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


def test_only_chosen_classes_are_kept(run, evaluated):
    weights, paths = run / "model_final.safetensors", [x["file_name"] for x, _ in evaluated]
    some = Predictor(weights, "cpu", opts=["TEST.CLASSES", "('mug', 'ring')"])
    every = Predictor(weights, "cpu")
    for chosen, found in zip(some(paths), every(paths), strict=True):
        wanted = [place for place, name in enumerate(found.names) if name in ("mug", "ring")]
        assert chosen.names == [found.names[place] for place in wanted]
        np.testing.assert_array_equal(chosen.boxes, found.boxes[wanted])
    assert 0 < sum(map(len, some(paths))) < sum(map(len, every(paths)))


def test_classes_that_the_detector_does_not_know(run):
    call = lambda: Predictor(run / "model_final.safetensors", opts=["TEST.CLASSES", "zebra"])  # noqa: E731
    refusal(call, "TEST.CLASSES: holds 'zebra', no class of", "choose from mug, leaf")


def test_classes_of_the_runs_evaluations_do_not_count(run, evaluated, monkeypatch):
    """They may be those of a data set with classes that the detector does not know."""
    weights, path = run / "model_final.safetensors", evaluated[0][0]["file_name"]
    every = Predictor(weights, "cpu")(path)
    cfg = stored_cfg(weights)
    cfg.TEST.CLASSES = ("zebra",)
    monkeypatch.setattr(predict, "stored_cfg", lambda _: cfg)
    assert Predictor(weights, "cpu")(path).names == every.names


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


def test_json_and_pictures(predictor, demo_set, tmp_path):
    json_file = demo_set / "annotations" / "val.json"
    entries = predict_inputs.entries_of_coco(json_file, demo_set / "val")
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
    entries = predict_inputs.entries_of([tmp_path / "in"])
    out = tmp_path / "a"
    refusal(lambda: predict_images(predictor, entries, out, least=0.5), "2.png", "--skip-unr")
    assert not out.exists()  # the first image is whole, yet nothing is written
    results, skipped = predict_images(
        predictor, entries, tmp_path / "b", least=0.5, skip_unreadable=True
    )
    assert [(error.file, error.found) for error in skipped] == [
        (str(tmp_path / "in" / "2.png"), "is of no image format that Pillow knows")
    ]
    assert [image["id"] for image in results.images] == [1, 3]


def damaged_inside(path):
    """A PNG whose header and end are whole, and whose pixels are not."""
    random = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(random).save(path)
    content = bytearray(path.read_bytes())
    content[200:400] = bytes(200)
    path.write_bytes(content)


@pytest.mark.parametrize("skip", [False, True])
def test_what_only_decoding_shows(predictor, tmp_path, caplog, skip):
    images_in(tmp_path, "in/1.png")
    damaged_inside(tmp_path / "in" / "2.png")
    entries = predict_inputs.entries_of([tmp_path / "in"])
    good, bad = predict_inputs.readable(entries)
    assert good == entries and not bad
    call = lambda: predict_images(predictor, entries, tmp_path, least=0.5, skip_unreadable=skip)  # noqa: E731
    if not skip:
        refusal(call, "2.png", "cannot be read as an image")
        return
    results, skipped = call()
    assert len(results.images) == len(skipped) == 1
    assert f"left out: {tmp_path / 'in' / '2.png'}: cannot be read as an image (" in caplog.text


def test_nothing_that_can_be_read(predictor, tmp_path, caplog):
    for name in ("1.png", "2.png"):
        (tmp_path / name).write_bytes(b"")
    entries, out = predict_inputs.entries_of([tmp_path]), tmp_path / "out"
    call = lambda: predict_images(predictor, entries, out, least=0.5, skip_unreadable=True)  # noqa: E731
    refusal(call, "1.png: cannot be used, nor any other of the 2 images: is empty (0 bytes)")
    assert caplog.text.count("is empty (0 bytes)") == 2 and not out.exists()


def test_skipping_keeps_the_limit_on_pixels(run, tmp_path):
    """An image that is too large is left out as well, not met later as an error."""
    images_in(tmp_path, "in/1.png")
    Image.fromarray(np.zeros((300, 300, 3), np.uint8)).save(tmp_path / "in" / "2.png")
    small = Predictor(run / "model_final.safetensors", "cpu")
    small.cfg.DATASETS.MAX_IMAGE_PIXELS = 20_000
    limit = Image.MAX_IMAGE_PIXELS
    try:
        _, skipped = predict_images(
            small,
            predict_inputs.entries_of([tmp_path / "in"]),
            tmp_path / "out",
            least=0.5,
            skip_unreadable=True,
        )
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    (error,) = skipped
    assert error.file.endswith("2.png") and "too many pixels" in error.found
    assert "DATASETS.MAX_IMAGE_PIXELS" in error.mend


def test_nothing_is_written_over(tmp_path):
    (tmp_path / "old.json").write_text("")
    refusal(lambda: new_folder(tmp_path), "is there already")
    refusal(lambda: new_folder(tmp_path / "old.json"), "is there already")
    assert new_folder(tmp_path / "a" / "b").is_dir()


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_folder_that_is_not_filled_is_removed(tmp_path, there, error):
    """With the folders above that were made for it; a second try finds what the first did."""
    folder = tmp_path / "a" / "b"
    if there:
        folder.mkdir(parents=True)
    with pytest.raises(error), output_folder(folder) as given:
        (given / "pictures" / "sub").mkdir(parents=True)
        (given / "pictures" / "sub" / "1.jpg").write_text("")
        (given / "film.mp4").write_text("")
        raise error
    assert list(tmp_path.rglob("*")) == ([tmp_path / "a", folder] if there else [])
    with output_folder(folder) as given:
        (given / "images.json").write_text("")
    assert list(folder.iterdir()) == [folder / "images.json"]


def test_a_folder_of_others_is_left_alone(tmp_path):
    (tmp_path / "theirs.txt").write_text("")
    with pytest.raises(InputError, match="is there already"), output_folder(tmp_path):
        raise AssertionError("not reached")
    assert (tmp_path / "theirs.txt").is_file()


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
    sides = [drawn.get(side) for side in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)]
    assert sides == [96, 64]  # boxes of the JSON fit it


def test_no_video(predictor, tmp_path):
    path = tmp_path / "film.mp4"
    path.write_bytes(b"no film")
    refusal(lambda: predict_video(predictor, path, tmp_path, least=0.5), "film.mp4", "no frame")


def test_only_good_detections_are_drawn(predictor, evaluated):
    found = predictor(evaluated[0][0]["file_name"])
    nothing, everything = draw(found, 1.1), draw(found, 0.0)
    assert nothing.shape == everything.shape and (nothing != everything).any()
