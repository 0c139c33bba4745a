"""Guard the detectors' mapper: one reader for all stages, Detectron2's mapping, faults named."""

import copy
import io
import multiprocessing
import os

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog, DatasetMapper
from detectron2.structures import BoxMode, Instances, PolygonMasks
from PIL import Image

from resnext_det.config import get_cfg
from resnext_det.data.images import read_array
from resnext_det.detection.loaders import (
    NamingMapper,
    ProposalMapper,
    build_test_loader,
    of_one_size,
)
from resnext_det.errors import InputError

SIZE = (60, 40)  # width, height
POLYGON = [[10, 10, 30, 10, 30, 25, 10, 25]]


def picture(size=SIZE):
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)


def run_lengths():
    return mask_util.encode(np.asfortranarray(np.eye(40, 60, dtype=np.uint8)))


def record_of(path, segmentation=POLYGON, size=SIZE):
    kept = {"bbox": [10.0, 10.0, 20.0, 15.0], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 2}
    kept |= {"iscrowd": 0, "segmentation": segmentation}
    crowd = {**kept, "iscrowd": 1, "segmentation": run_lengths()}
    return {
        "file_name": str(path),
        "image_id": 7,
        "width": size[0],
        "height": size[1],
        "annotations": [kept, crowd],
    }


@pytest.fixture
def cfg():
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (50, 70), 50
    return cfg


@pytest.fixture
def path(tmp_path):
    picture().save(tmp_path / "a.jpg")
    return tmp_path / "a.jpg"


def refusal(call, *words):
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


# ---- Detectron2's mapping ----


def mapped(mapper, record, seed):
    np.random.seed(seed)
    return mapper(copy.deepcopy(record))


def plain(value):
    """What can be compared: tensors of boxes and bit masks, arrays of polygons, else the value."""
    if isinstance(value, PolygonMasks):
        return [[part.tolist() for part in polygons] for polygons in value.polygons]
    value = getattr(value, "tensor", value)
    return value.tolist() if isinstance(value, torch.Tensor) else value


def assert_same(ours, theirs):
    assert list(ours) == list(theirs)
    assert ours["image"].dtype == theirs["image"].dtype == torch.uint8
    for key, value in theirs.items():
        if isinstance(value, Instances):
            assert ours[key].image_size == value.image_size
            fields = [{k: plain(v) for k, v in x[key].get_fields().items()} for x in (ours, theirs)]
            assert fields[0] == fields[1] and len(value)
        else:
            assert plain(ours[key]) == plain(value)


@pytest.mark.parametrize("order", ["RGB", "BGR"])
@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize("crop", [True, False])
@pytest.mark.parametrize("mask", [None, "polygon", "bitmask"])
def test_everything_but_reading_is_detectron2s(cfg, path, order, is_train, crop, mask):
    """Sizes, flips, crops, boxes and masks, for any draw."""
    cfg.INPUT.FORMAT, cfg.INPUT.CROP.ENABLED = order, crop
    cfg.INPUT.CROP.SIZE = [0.7, 0.7]
    cfg.MODEL.MASK_ON, cfg.INPUT.MASK_FORMAT = mask is not None, mask or "polygon"
    record = record_of(path, run_lengths() if mask == "bitmask" else POLYGON)
    ours, theirs = NamingMapper(cfg, is_train), DatasetMapper(cfg, is_train)
    for seed in range(4):
        found = mapped(ours, record, seed)
        assert_same(found, mapped(theirs, record, seed))
        assert ("instances" in found) == is_train
    if is_train:
        assert ("gt_masks" in found["instances"].get_fields()) == (mask is not None)


def test_whole_numbers_are_boxes_as_exact_as_others(cfg, path):
    """Many programs write them; Detectron2 would cut the resized boxes to whole pixels."""
    record, mapper = record_of(path), NamingMapper(cfg, is_train=True)
    expected = mapped(mapper, record, 1)["instances"].gt_boxes.tensor
    for entry in record["annotations"]:
        entry["bbox"] = [int(number) for number in entry["bbox"]]
    assert torch.equal(mapped(mapper, record, 1)["instances"].gt_boxes.tensor, expected)
    assert (expected % 1).any()


def test_stored_proposals_are_mapped_as_by_detectron2(cfg, path):
    cfg.MODEL.LOAD_PROPOSALS = True
    boxes = np.array([[1, 2, 30, 20], [5, 5, 5, 9], [0, 0, 60, 40]], np.float32)
    proposals = {7: (boxes, np.array([3, 2, 1], np.float32))}
    record = record_of(path)
    stored = {"proposal_boxes": boxes, "proposal_objectness_logits": proposals[7][1]}
    theirs = {**record, **stored, "proposal_bbox_mode": BoxMode.XYXY_ABS}
    found = mapped(ProposalMapper(cfg, proposals), record, 1)
    assert_same(found, mapped(DatasetMapper(cfg, True), theirs, 1))
    assert len(found["proposals"]) == 2  # the empty box is left out


def test_a_record_stays_as_it_was(cfg, path):
    """Data workers read it again in the next epoch."""
    record = record_of(path)
    before = copy.deepcopy(record)
    NamingMapper(cfg, True)(record)
    assert record == before


def test_sizes_that_a_record_lacks_are_those_of_the_picture(cfg, path):
    found = NamingMapper(cfg, False)({"file_name": str(path)})
    assert (found["width"], found["height"]) == SIZE


# ---- one reader ----


@pytest.mark.parametrize("order", ["RGB", "BGR"])
@pytest.mark.parametrize("kind", ["16-bit grey", "transparent", "CMYK"])
def test_unusual_pictures_are_read_by_the_rules(cfg, tmp_path, kind, order):
    """In training and evaluation alike, as in classification."""
    path = tmp_path / ("a.tiff" if kind == "CMYK" else "a.png")
    if kind == "16-bit grey":
        Image.fromarray(np.arange(2400, dtype=np.uint16).reshape(40, 60) * 27).save(path)
    else:
        picture().convert("CMYK" if kind == "CMYK" else "RGB").save(path)
    if kind == "transparent":
        image = picture().convert("RGBA")
        image.putalpha(100)
        image.save(path)
    cfg.INPUT.FORMAT, cfg.INPUT.RANDOM_FLIP = order, "none"
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (40,), 40
    expected = read_array(path, order).transpose(2, 0, 1)
    for is_train in (True, False):
        found = NamingMapper(cfg, is_train)(record_of(path))["image"].numpy()
        np.testing.assert_array_equal(found, expected)
    assert (expected[0] != expected[2]).any() == (kind != "16-bit grey")
    assert len(np.unique(expected)) > 100


# ---- faults ----


def content(kind):
    stream = io.BytesIO()
    picture((300, 200)).save(stream, kind)
    return stream.getvalue()


DAMAGED = {
    "empty.jpg": (b"", "it is empty"),
    "cut.jpg": (content("JPEG")[:5000], "truncated"),
    "cut.png": (content("PNG")[:5000], "truncated"),
    "noise.png": (bytes(range(256)), "of no known type"),
    "page.jpg": (b"<html>404</html>", "begins with b'<html>404"),
}


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("is_train", [True, False])
def test_what_is_no_whole_image_is_named(cfg, tmp_path, name, is_train):
    path = tmp_path / name
    written, reason = DAMAGED[name]
    path.write_bytes(written)
    words = (f"{path}: cannot be read as an image (", reason, "replace the file or leave it out")
    refusal(lambda: NamingMapper(cfg, is_train)(record_of(path)), *words)


@pytest.mark.parametrize("make, reason", [(None, "No such file"), (os.mkdir, "Is a directory")])
def test_what_is_no_file_is_named(cfg, tmp_path, make, reason):
    path = tmp_path / "a.jpg"
    if make:
        make(path)
    refusal(lambda: NamingMapper(cfg, True)(record_of(path)), f"{path}: cannot be read", reason)


def test_another_size_than_the_record_says(cfg, path):
    words = (f"{path}: has (width, height) (60, 40), but its entry says (61, 40)", "correct its")
    refusal(lambda: NamingMapper(cfg, True)(record_of(path, size=(61, 40))), *words)


def test_sizes_before_the_exif_tag_was_applied(cfg, tmp_path):
    """The usual cause of swapped sizes is told."""
    path, exif = tmp_path / "phone.jpg", Image.Exif()
    exif[0x0112] = 6
    picture().save(path, exif=exif)
    words = (f"{path}: has (width, height) (40, 60)", "swapped", "EXIF", "says (60, 40)")
    refusal(lambda: NamingMapper(cfg, True)(record_of(path)), *words)
    assert NamingMapper(cfg, True)(record_of(path, size=(40, 60)))["image"].shape[0] == 3


def test_annotations_that_make_no_mask(cfg, path):
    """The picture is sound, and is not blamed."""
    cfg.MODEL.MASK_ON = True
    words = (f"{path}: its annotations cannot be used", "annotation file", "tools/check_data.py")
    refusal(lambda: NamingMapper(cfg, True)(record_of(path, [[1, 2, 3]])), *words)


@pytest.mark.parametrize("pixels", [2399, 2400])
def test_the_pixel_limit_holds_in_processes_started_afresh(cfg, path, pixels, monkeypatch):
    """A spawned data worker has Pillow's own limit, not the one that this process was given."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    cfg.DATASETS.MAX_IMAGE_PIXELS = pixels
    mapper = NamingMapper(cfg, is_train=True)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        answer = pool.apply_async(mapper, [record_of(path)])
        if pixels < 2400:
            words = (f"{path}: cannot be read", "2400 pixels", "DATASETS.MAX_IMAGE_PIXELS")
            refusal(lambda: answer.get(60), *words)
        else:
            assert answer.get(60)["image"].shape[0] == 3


# ---- batches of an evaluation ----


def test_batches_of_one_size():
    lying, standing = {"height": 40, "width": 60}, {"height": 60, "width": 40}
    records = [lying, standing, lying, lying, standing, {}, {}]
    assert of_one_size(records, range(7), 2) == [[0, 2], [1, 4], [3], [5], [6]]
    assert of_one_size(records, [3, 4, 2], 1) == [[3], [4], [2]]
    assert of_one_size(records, [], 4) == []


def test_an_evaluation_pads_nothing(cfg, tmp_path):
    """Every image comes once, and a batch is of one shape."""
    records = []
    for number, size in enumerate([(60, 40), (40, 60), (60, 40), (50, 50), (40, 60)]):
        picture(size).save(tmp_path / f"{number}.png")
        records.append({**record_of(tmp_path / f"{number}.png", size=size), "image_id": number})
    DatasetCatalog.register("mixed_sizes", lambda: records)
    cfg.TEST.IMS_PER_BATCH, cfg.DATALOADER.NUM_WORKERS = 4, 0
    try:
        batches = list(build_test_loader(cfg, "mixed_sizes"))
    finally:
        DatasetCatalog.remove("mixed_sizes")
    assert [[x["image_id"] for x in batch] for batch in batches] == [[0, 2], [1, 4], [3]]
    assert all(len({x["image"].shape for x in batch}) == 1 for batch in batches)
