"""Guard the README's promise of the demo set: one seed, equal bytes, valid and varied COCO data."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from resnext_det.data.demo import CATEGORIES, DemoSpec, write_demo
from resnext_det.errors import InputError

SPEC = DemoSpec(num_train=60, num_val=8, crops_per_class_train=4, crops_per_class_val=2)
TINY = DemoSpec(num_train=2, num_val=1, crops_per_class_train=2, crops_per_class_val=1)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    write_demo(folder, SPEC)
    return folder


@pytest.fixture(scope="module")
def train(root):
    return COCO(str(root / "annotations" / "train.json"))


def read_files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }


def plain_annotations(coco):
    return [a for a in coco.dataset["annotations"] if not a["iscrowd"]]


def test_same_seed_gives_equal_bytes(tmp_path):
    """The tutorial's numbers can be compared only if everybody trains on the same pictures."""
    write_demo(tmp_path / "a", TINY)
    write_demo(tmp_path / "b", TINY)
    write_demo(tmp_path / "c", replace(TINY, seed=1))
    first, second, other = (read_files(tmp_path / name) for name in "abc")
    assert first == second
    assert all(first[name] != other[name] for name in first if name.endswith(".jpg"))


def test_pictures_do_not_depend_on_the_counts(root, tmp_path):
    write_demo(tmp_path, TINY)
    small, large = read_files(tmp_path), read_files(root)
    pictures = [name for name in small if name.endswith(".jpg")]
    assert len(pictures) == 2 + 1 + 6 * (2 + 1)
    assert all(small[name] == large[name] for name in pictures)
    few = json.loads(small["annotations/train.json"])["annotations"]
    many = json.loads(large["annotations/train.json"])["annotations"]
    assert few == many[: len(few)]


def test_no_two_pictures_are_equal(root):
    pictures = [data for name, data in read_files(root).items() if name.endswith(".jpg")]
    assert len(set(pictures)) == len(pictures) == 68 + 6 * (4 + 2)


@pytest.mark.parametrize("split, count", [("train", 60), ("val", 8)])
def test_images_are_as_declared(root, split, count):
    coco = COCO(str(root / "annotations" / f"{split}.json"))
    assert len(coco.imgs) == count == len(list((root / split).iterdir()))
    for image in coco.imgs.values():
        picture = cv2.imread(str(root / split / image["file_name"]))
        assert picture.shape == (image["height"], image["width"], 3) == (*SPEC.image_size, 3)


def test_boxes_are_tight_about_the_masks(train):
    """A box, an area and an outline of one object tell the same story, crowds included."""
    for annotation in train.dataset["annotations"]:
        x, y, width, height = annotation["bbox"]
        assert x >= 0 and y >= 0 and width > 0 and height > 0
        assert x + width <= SPEC.image_size[1] and y + height <= SPEC.image_size[0]
        mask = train.annToMask(annotation)
        found = cv2.boundingRect(mask)
        # outlines are rounded to half a pixel, run lengths are exact
        slack = 0 if annotation["iscrowd"] else 1
        assert np.abs(np.array(found) - annotation["bbox"]).max() <= 2 * slack
        assert abs(int(mask.sum()) - annotation["area"]) <= slack * 0.06 * annotation["area"]


def test_crowd_is_an_exact_run_length_mask(train):
    crowds = [a for a in train.dataset["annotations"] if a["iscrowd"]]
    assert crowds
    for crowd in crowds:
        runs = crowd["segmentation"]
        assert runs["size"] == list(SPEC.image_size)
        assert sum(runs["counts"]) == SPEC.image_size[0] * SPEC.image_size[1]
        packed = coco_mask.frPyObjects(runs, *runs["size"])
        assert coco_mask.area(packed) == crowd["area"]
        assert coco_mask.toBbox(packed).tolist() == crowd["bbox"]


def test_sizes_cover_cocos_bands(train):
    """About 20 % small, 50 % medium, 30 % large at COCO's limits 32^2 and 96^2."""
    areas = np.array([a["area"] for a in plain_annotations(train)])
    small, large = (areas < 32**2).mean(), (areas > 96**2).mean()
    assert 0.1 < small < 0.3
    assert 0.2 < large < 0.4
    sides = np.array([a["bbox"][2:] for a in plain_annotations(train)]).min(1)
    assert np.percentile(sides, 2) >= 18


def test_scenes_hold_none_to_seven_objects(train):
    counts = [len(train.getAnnIds(imgIds=[i], iscrowd=False)) for i in train.imgs]
    assert min(counts) == 0 and 5 <= max(counts) <= 7
    empty = [i for i in train.imgs if not train.getAnnIds(imgIds=[i])]
    assert 1 <= len(empty) <= 12


def test_scenes_hold_cut_and_overlapping_objects(train):
    height, width = SPEC.image_size
    boxes = np.array([a["bbox"] for a in plain_annotations(train)])
    cut = (boxes[:, :2].min(1) == 0) | (boxes[:, 0] + boxes[:, 2] == width)
    cut |= boxes[:, 1] + boxes[:, 3] == height
    assert 0.05 < cut.mean() < 0.6
    overlaps = 0
    for image_id in train.imgs:
        found = [a["bbox"] for a in train.loadAnns(train.getAnnIds([image_id], iscrowd=False))]
        if found:
            iou = coco_mask.iou(np.array(found), np.array(found), [0] * len(found))
            overlaps += int(np.triu(iou > 0.02, 1).sum())
    assert overlaps >= 10


def test_category_ids_have_gaps(root, train):
    """A loader that takes ids for contiguous numbers must fail on this set."""
    ids = sorted(train.getCatIds())
    assert len(ids) >= 6 and ids != list(range(ids[0], ids[0] + len(ids))) and ids[0] > 1
    assert train.dataset["categories"] == list(CATEGORIES)
    assert {a["category_id"] for a in train.dataset["annotations"]} == set(ids)


def test_ids_are_unique_over_both_splits(root, train):
    val = COCO(str(root / "annotations" / "val.json"))
    assert not set(train.imgs) & set(val.imgs)
    assert not set(train.anns) & set(val.anns)
    assert len(train.anns) == len(train.dataset["annotations"])


@pytest.mark.parametrize("split, count", [("train", 4), ("val", 2)])
def test_class_folders_hold_the_declared_crops(root, split, count):
    folders = sorted((root / "classification" / split).iterdir())
    assert [f.name for f in folders] == sorted(c["name"] for c in CATEGORIES)
    for folder in folders:
        crops = sorted(folder.iterdir())
        assert [c.name for c in crops] == [f"{i + 1:05d}.jpg" for i in range(count)]
        assert cv2.imread(str(crops[0])).shape == (SPEC.crop_size, SPEC.crop_size, 3)


def test_second_call_does_nothing(tmp_path):
    write_demo(tmp_path, TINY)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    write_demo(str(tmp_path), TINY)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_set_of_another_spec_is_refused(tmp_path):
    write_demo(tmp_path, TINY)
    before = read_files(tmp_path)
    with pytest.raises(InputError) as caught:
        write_demo(tmp_path, replace(TINY, num_train=3))
    assert str(tmp_path) in str(caught.value) and "num_train" in str(caught.value)
    assert read_files(tmp_path) == before


def test_incomplete_set_is_drawn_anew(tmp_path):
    """demo.json is written last: without it the rest is what an interrupted run left."""
    write_demo(tmp_path, TINY)
    whole = read_files(tmp_path)
    (tmp_path / "demo.json").unlink()
    (tmp_path / "train" / "000001.jpg").write_bytes(b"half a picture")
    (tmp_path / "train" / "000007.jpg").write_bytes(b"of a longer run")
    write_demo(tmp_path, TINY)
    assert read_files(tmp_path) == whole


def test_foreign_files_are_kept(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="notes.txt"):
        write_demo(tmp_path, TINY)
    assert read_files(tmp_path) == {"notes.txt": b"mine"}


@pytest.mark.parametrize(
    "field, value",
    [("seed", -1), ("image_size", (64, 64)), ("num_train", 0), ("crop_size", 8)],
)
def test_impossible_spec_is_refused(tmp_path, field, value):
    with pytest.raises(InputError, match=field):
        write_demo(tmp_path / "set", replace(TINY, **{field: value}))
    assert not (tmp_path / "set").exists()
