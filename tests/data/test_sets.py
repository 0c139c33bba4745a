"""Guard the one door to classification data: DATA's keys choose the reader, both splits agree."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from resnext_det.config import get_cfg
from resnext_det.data import arrays, augment, sets
from resnext_det.data.arrays import ArraySet
from resnext_det.data.lists import ListSet
from resnext_det.errors import InputError

RNG = np.random.default_rng(0)


def pixels(number, size=12):
    return RNG.integers(0, 256, (number, size, size, 3), dtype=np.uint8)


def write_npz(path, **others):
    labels = np.array([0, 1, 0, 1])
    whole = {"train_images": pixels(4), "train_labels": labels}
    whole |= {"test_images": pixels(4), "test_labels": labels, "class_names": ["cat", "dog"]}
    np.savez(path, **{**whole, **others})
    return path


@pytest.fixture
def cfg(tmp_path):
    """Class folders train/ and val/ with cats and dogs, which the tests then pass over."""
    cfg = get_cfg()
    cfg.DATA.ROOT = str(tmp_path)
    cfg.DATA.CROP_SIZE, cfg.DATA.RESIZE_SIZE = 8, 10
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            Image.fromarray(pixels(1)[0]).save(folder / "0.png")
    return cfg


def refusal(call, *words):
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message, message
    for word in words:
        assert str(word) in message, message


@pytest.fixture(params=["folders", "npz", "archive", "list"])
def stored(request, cfg, tmp_path, monkeypatch):
    """(config, class of the set): the same classes, stored in each of the four ways."""
    if request.param == "npz":
        cfg.DATA.ROOT = str(write_npz(tmp_path / "images.npz"))
    elif request.param == "archive":
        (tmp_path / "cifar-10-batches-py").mkdir()
        cfg.DATA.ROOT = str(tmp_path / "cifar-10-batches-py")

        class Archive:
            def __init__(self, root, train, download):
                assert root == str(tmp_path) and not download
                self.data, self.targets, self.classes = pixels(4), [0, 1, 0, 1], ["cat", "dog"]

        monkeypatch.setitem(arrays.ARCHIVES, "cifar-10-batches-py", Archive)
    elif request.param == "list":
        text = "# class: cat\n# class: dog\ntrain/cat/0.png\t0\ntrain/dog/0.png\t1\n"
        (tmp_path / "list.txt").write_text(text)
        cfg.DATA.TRAIN_LIST = cfg.DATA.VAL_LIST = str(tmp_path / "list.txt")
    kinds = {"folders": ImageFolder, "npz": ArraySet, "archive": ArraySet, "list": ListSet}
    return cfg, kinds[request.param]


@pytest.mark.parametrize("pad", [0, 2], ids=["ImageNet's recipe", "CIFAR's recipe"])
def test_every_store_gives_the_same_items(stored, pad):
    """Also those that hold arrays and not image files are resized and cropped."""
    cfg, kind = stored
    cfg.DATA.PAD, cfg.DATA.CROP_ASPECT = pad, "uniform"
    cfg.DATA.COLOR_JITTER, cfg.DATA.LIGHTING = 0.4, 0.1
    for data, side in zip(sets.open_both(cfg), (8, 12 if pad else 8), strict=True):
        assert isinstance(data, kind) and list(data.classes) == ["cat", "dog"] and data.root
        batch = augment.collate([data[0], data[1]])
        assert batch["image"].shape == (2, 3, side, side)
        assert batch["image"].dtype == torch.float32 and batch["label"].tolist() == [0, 1]


def test_dense_views_of_every_store(stored):
    cfg, _ = stored
    cfg.DATA.TEST_PROTOCOL, cfg.DATA.TEST_SCALES = "dense", (6, 14)
    image, _ = sets.open_split(cfg, "val")[1]
    assert [tuple(view.shape) for view in image] == [(3, 6, 6), (3, 14, 14)]


def test_training_is_augmented_and_testing_is_not(stored):
    cfg, _ = stored
    train, val = sets.open_both(cfg)
    assert not torch.equal(train[0][0], train[0][0])
    assert torch.equal(val[0][0], val[0][0])


def test_a_missing_npz(cfg, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg.DATA.ROOT = "none.npz"
    refusal(lambda: sets.open_split(cfg, "val"), f"{tmp_path}/none.npz: ", "exist", "DATA.ROOT")


def test_a_missing_archive(cfg, tmp_path):
    cfg.DATA.ROOT = str(tmp_path / "cifar-10-batches-py")
    refusal(lambda: sets.open_split(cfg, "train"), f"{cfg.DATA.ROOT}: ", "cifar.html")


@pytest.mark.parametrize("split", ["train", "val"])
def test_keys_are_checked_before_data_is_looked_for(cfg, split):
    cfg.DATA.ROOT = "nowhere"
    cfg.DATA.TEST_PROTOCOL = "eleven_crop"
    refusal(lambda: sets.open_split(cfg, split), "DATA.TEST_PROTOCOL", "eleven_crop")
    cfg.DATA.TEST_PROTOCOL, cfg.DATA.VAL_ROOT = "single", "elsewhere"
    refusal(lambda: sets.open_split(cfg, split), "DATA.VAL_ROOT", "DATA.VAL_LIST")


def test_splits_of_other_classes(cfg, tmp_path):
    (tmp_path / "val" / "dog").rename(tmp_path / "val" / "cow")
    refusal(lambda: sets.open_both(cfg), f"{tmp_path / 'val'}: ", "['dog']", "['cow']")


def test_splits_of_another_order(cfg, tmp_path):
    for key, names in (("TRAIN_LIST", "cat dog"), ("VAL_LIST", "dog cat")):
        path = tmp_path / f"{key}.txt"
        head = "".join(f"# class: {name}\n" for name in names.split())
        path.write_text(head + "train/cat/0.png\t0\n")
        cfg.DATA[key] = str(path)
    refusal(lambda: sets.open_both(cfg), 'label 0 is "dog", but "cat"', "VAL_LIST.txt")


def test_imagenet_sample(shared_data):
    """Photographs of ImageNet in small, some of them grey, by the paper's own recipe."""
    root = shared_data / "imagenet_sample"
    if not root.is_dir():
        pytest.skip(f"no {root}")
    cfg = get_cfg()
    cfg.DATA.ROOT, cfg.DATA.CROP_ASPECT = str(root), "uniform"
    cfg.DATA.COLOR_JITTER, cfg.DATA.LIGHTING = 0.4, 0.1
    train, val = sets.open_both(cfg)
    assert (len(train), len(val), len(train.classes)) == (1600, 400, 40)
    for data in (train, val):
        batch = augment.collate([data[0], data[len(data) - 1]])
        assert batch["image"].shape == (2, 3, 224, 224) and batch["label"].tolist() == [0, 39]
        assert 0.3 < batch["image"].std() < 3  # normalised


def test_imagenet_in_full_size(shared_data):
    """The single crop of an image of 500 x 375 is the centre of its short side's square."""
    folder = shared_data / "imagenet_fullsize"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    cfg = get_cfg()
    cfg.DATA.ROOT = str(folder)
    data = sets.open_split(cfg, "val")
    assert len(data) == 20 and {tuple(data[i][0].shape) for i in range(20)} == {(3, 224, 224)}


@pytest.mark.parametrize("named", [".", "set/train"])
def test_a_root_one_level_off(cfg, tmp_path, named):
    """DATA.ROOT is the folder that holds the data set, or the folder of the training images."""
    root = tmp_path / "set"
    root.mkdir()
    for split in ("train", "val"):
        (tmp_path / split).rename(root / split)
    cfg.DATA.ROOT = str(tmp_path / named)
    refusal(lambda: sets.open_split(cfg, "val"), f"set DATA.ROOT to {root}, which has val/")


def test_what_else_could_be_there_is_named(cfg, tmp_path):
    cfg.DATA.ROOT = str(tmp_path / "nothing" / "here")
    refusal(lambda: sets.open_split(cfg, "val"), "<class>", "CIFAR archive", ".npz", "make demo")
