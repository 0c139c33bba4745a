"""Guard decoding at a reduced scale: only in training, never too small, boxes in their places."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets.folder import default_loader

from resnext_det.config import get_cfg
from resnext_det.data import sets
from resnext_det.data.images import read_array, read_rgb
from resnext_det.data.reduced import crop_side, detector_side, is_reduced
from resnext_det.detection.loaders import NamingMapper
from resnext_det.detection.online import TwiceMapper
from resnext_det.errors import InputError

WIDTH, HEIGHT = 1601, 1203
BOX = [400.0, 300.0, 800.0, 600.0]  # XYWH of the bright part


@pytest.fixture(scope="module")
def photograph(tmp_path_factory):
    """A large JPEG with a bright box on a ramp."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[:] = np.linspace(0, 100, WIDTH).astype(np.uint8)[None, :, None]
    pixels[300:900, 400:1200] += 120
    path = tmp_path_factory.mktemp("photograph") / "a.jpg"
    Image.fromarray(pixels).save(path, quality=95)
    return path


@pytest.mark.parametrize(
    ("short_side", "size"),
    [(0, (WIDTH, HEIGHT)), (700, (WIDTH, HEIGHT)), (600, (801, 602)), (150, (201, 151))],
)
def test_what_is_left_is_large_enough(photograph, short_side, size):
    found = read_rgb(photograph, short_side=short_side)
    assert found.size == size and min(size) >= short_side
    whole = (HEIGHT, WIDTH)
    assert is_reduced(found.size[::-1], whole) == (found.size[::-1] != whole)
    expected = default_loader(str(photograph)).resize(size, Image.BOX)
    difference = np.abs(np.asarray(found).astype(int) - np.asarray(expected))
    assert difference.mean() < 1.5


def test_other_kinds_stay(tmp_path):
    Image.new("RGB", (800, 600)).save(tmp_path / "a.png")
    assert read_rgb(tmp_path / "a.png", short_side=50).size == (800, 600)


def test_a_turned_photograph(tmp_path, photograph):
    image = Image.open(photograph)
    exif = image.getexif()
    exif[0x0112] = 6  # a quarter turn
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert read_rgb(tmp_path / "turned.jpg", short_side=600).size == (602, 801)
    assert read_array(tmp_path / "turned.jpg", short_side=600).shape == (801, 602, 3)


# ---- detection ----


def detector(**keys):
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (300,), 1000
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.DATALOADER.REDUCED_DECODE = True
    for key, value in keys.items():
        cfg.INPUT.CROP[key] = value
    return cfg


def record(path, **others):
    entry = {"bbox": list(BOX), "bbox_mode": 1, "category_id": 0, "iscrowd": 0}
    own = {"file_name": str(path), "image_id": 1, "height": HEIGHT, "width": WIDTH}
    return {**own, "annotations": [entry], **others}


def test_boxes_keep_their_places(photograph, monkeypatch):
    cfg = detector()
    assert detector_side(cfg) == 600
    reduced = NamingMapper(cfg, is_train=True)(record(photograph))
    cfg.DATALOADER.REDUCED_DECODE = False
    whole = NamingMapper(cfg, is_train=True)(record(photograph))
    assert reduced["image"].shape == whole["image"].shape == (3, 300, 399)
    boxes = [x["instances"].gt_boxes.tensor for x in (reduced, whole)]
    assert torch.allclose(*boxes, atol=1e-3) and boxes[0].shape == (1, 4)
    difference = (reduced["image"].float() - whole["image"].float()).abs()
    assert 0 < difference.mean() < 1
    x0, y0, x1, y1 = boxes[0][0].round().int().tolist()
    assert reduced["image"][:, y0 + 3 : y1 - 3, x0 + 3 : x1 - 3].min() > 110
    assert reduced["image"][:, : y0 - 3].max() < 110


def test_a_record_without_sizes_is_read_whole(photograph):
    plain = record(photograph)
    del plain["height"], plain["width"]
    found = NamingMapper(detector(), is_train=True)(plain)
    assert (found["height"], found["width"]) == (HEIGHT, WIDTH)
    assert found["image"].shape == (3, 300, 399)


def test_a_wrong_size_is_told_all_the_same(photograph):
    for size in ({"width": 2000}, {"height": WIDTH, "width": HEIGHT}):
        with pytest.raises(InputError, match="has \\(width, height\\)"):
            NamingMapper(detector(), is_train=True)(record(photograph, **size))


def test_evaluation_reads_all(photograph):
    cfg = detector()
    found = NamingMapper(cfg, is_train=False)(record(photograph))
    cfg.DATALOADER.REDUCED_DECODE = False
    assert torch.equal(
        found["image"], NamingMapper(cfg, is_train=False)(record(photograph))["image"]
    )


def test_crops_in_pixels_do_not_go_with_it():
    with pytest.raises(InputError, match="INPUT.CROP.TYPE is absolute"):
        detector_side(detector(ENABLED=True, TYPE="absolute", SIZE=[300, 300]))
    assert detector_side(detector(ENABLED=True, TYPE="relative_range", SIZE=[0.5, 0.5])) == 1200


# ---- classification ----


@pytest.fixture
def classifier(tmp_path, photograph):
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
        (tmp_path / split / "a" / "0.jpg").write_bytes(photograph.read_bytes())
    cfg = get_cfg()
    cfg.DATA.ROOT, cfg.DATA.CROP_SIZE, cfg.DATA.RESIZE_SIZE = str(tmp_path), 64, 72
    return cfg


@pytest.mark.parametrize(
    ("split", "on", "size"), [("train", True, (401, 301)), ("train", False, 0), ("val", True, 0)]
)
def test_training_images_alone_are_reduced(classifier, monkeypatch, split, on, size):
    classifier.DATALOADER.REDUCED_DECODE = on
    assert crop_side(classifier) == 227
    seen = []
    monkeypatch.setattr(
        sets.augment,
        f"{'training' if split == 'train' else 'test'}_transform",
        lambda cfg: lambda image: seen.append(image.size),
    )
    sets.open_split(classifier, split)[0]
    assert seen == [size or (WIDTH, HEIGHT)]


def test_lists_too(classifier, tmp_path):
    (tmp_path / "train.txt").write_text("# class: a\ntrain/a/0.jpg\t0\n")
    classifier.DATA.TRAIN_LIST = str(tmp_path / "train.txt")
    classifier.DATALOADER.REDUCED_DECODE = True
    data = sets.open_split(classifier, "train")
    assert data.read(data.folder / data.entries.path(0)).size == (401, 301)


# ---- proposals that are made online ----


def test_proposals_follow_the_reduction(photograph):
    """They are in pixels of the whole image, as the boxes of the record."""
    cfg = detector()
    x = TwiceMapper(cfg, cfg)(record(photograph))
    x0, y0, width, height = BOX
    box = x["transforms"].apply_box(np.array([[x0, y0, x0 + width, y0 + height]]))
    np.testing.assert_allclose(box, x["instances"].gt_boxes.tensor, atol=1e-3)
