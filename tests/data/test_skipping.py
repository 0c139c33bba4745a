"""Guard DATA.SKIP_UNREADABLE: training goes on past damaged images, named, counted, repeatable."""

import io
import logging
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from resnext_det.config import get_cfg
from resnext_det.data import sets, skipping
from resnext_det.data.skipping import SkippingSet
from resnext_det.engine.sampler import ResumableBatches, training_loader
from resnext_det.errors import InputError

IMAGES, BROKEN = 8, (2, 3, 7)  # 7 is the last: image 0 takes its place


def content(index):
    """A picture of one colour that says which image it is; cut short, or no image at all."""
    file = io.BytesIO()
    Image.new("RGB", (12, 12), (index, index, index)).save(file, "PNG")
    cut = {2: 20, 3: 0, 7: 50}
    return file.getvalue()[: cut.get(index)]


def folders(root):
    for split in ("train", "val"):
        for index in range(IMAGES):
            path = root / split / f"class{index // 4}" / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content(index))


def image_lists(root):
    folders(root / "all")
    head = "# class: class0\n# class: class1\n"
    lines = [f"train/class{i // 4}/{i}.png\t{i // 4}\n" for i in range(IMAGES)]
    (root / "list.txt").write_text(head + "".join(lines))
    path = str(root / "list.txt")
    return {"ROOT": str(root / "all"), "TRAIN_LIST": path, "VAL_LIST": path}


def tar_shards(root):
    for split in ("train", "val"):
        with tarfile.open(root / f"{split}.tar", "w") as tar:
            for index in range(IMAGES):
                for name, data in (("png", content(index)), ("cls", b"%d" % (index // 4))):
                    entry = tarfile.TarInfo(f"{index}.{name}")
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))


@pytest.fixture(params=[folders, image_lists, tar_shards], ids=lambda store: store.__name__)
def cfg(request, tmp_path):
    cfg = get_cfg()
    cfg.DATA.ROOT = str(tmp_path)
    cfg.DATA.CROP_SIZE, cfg.DATA.RESIZE_SIZE = 8, 8
    for key, value in (request.param(tmp_path) or {}).items():
        cfg.DATA[key] = value
    cfg.DATA.SKIP_UNREADABLE = True
    return cfg


@pytest.fixture
def plain(tmp_path):
    """Class folders whose images are only decoded, not augmented."""
    folders(tmp_path)
    cfg = get_cfg()
    cfg.DATA.ROOT, cfg.DATA.SKIP_UNREADABLE = str(tmp_path), True
    data = sets.open_split(cfg, "train")
    data.data.transform = lambda image: np.asarray(image)[0, 0, 0].item()
    return data


def test_the_next_readable_image_takes_the_place(cfg):
    data = sets.open_split(cfg, "train")
    data.data.transform = lambda image: np.asarray(image)[0, 0, 0].item()
    expected = [0, 1, 4, 4, 4, 5, 6, 0]
    for _ in range(2):  # also once they are known
        assert [data[i] for i in range(IMAGES)] == [(image, image // 4) for image in expected]
    assert data.is_unreadable.nonzero().flatten().tolist() == list(BROKEN)


def test_without_the_key_it_is_an_error(cfg):
    cfg.DATA.SKIP_UNREADABLE = False
    with pytest.raises(InputError, match="2.png: cannot be read as an image"):
        sets.open_split(cfg, "train")[2]


def test_in_validation_it_is_an_error(cfg):
    """Another set of images would have another error."""
    train, val = sets.open_both(cfg)
    assert type(train) is SkippingSet and train.classes == val.classes and len(train) == IMAGES
    with pytest.raises(InputError, match="2.png: cannot be read as an image"):
        val[2]


def test_each_is_named_once_and_counted(plain, caplog):
    with caplog.at_level(logging.WARNING):
        for index in (2, 2, 3, 7):
            plain[index]
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 3
    for message, name, count in zip(messages, BROKEN, (1, 2, 3), strict=True):
        assert f"{name}.png: cannot be read as an image" in message
        assert f"({count} so far)" in message


def test_the_total_at_the_end_of_an_epoch(plain, caplog):
    with caplog.at_level(logging.WARNING):
        for index in (0, 1, 2, 3, 4, 5, 6):
            plain[index]
        assert "of 8 images" not in caplog.text
        plain[0]  # the eighth
        plain[0]
    totals = [r.getMessage() for r in caplog.records if "of 8 images" in r.getMessage()]
    assert totals == [f"{plain.root}: 2 of 8 images cannot be read and are replaced"]


def test_a_readable_set_is_not_spoken_of(plain, caplog):
    with caplog.at_level(logging.INFO):
        for _ in range(3 * IMAGES):
            assert plain[0] == (0, 0)
    assert not caplog.records


def loaded(data, workers, epochs=2):
    """(images, labels) of some epochs, as the trainer loads them."""
    batches = ResumableBatches(len(data), 2, seed=0)
    loader = training_loader(
        data.__getitem__, batches, num_workers=workers, collate=lambda items: items
    )
    stream = iter(loader)
    found = [item for _ in range(epochs * IMAGES // 2) for item in next(stream)]
    if workers:
        stream._shutdown_workers()
    return found


def test_workers_know_of_each_other_and_tell(tmp_path, plain, caplog):
    """The count is of all workers, their warnings reach the log's file, the stream is the same."""
    handler = logging.FileHandler(tmp_path / "log.txt")
    logging.getLogger("resnext_det").addHandler(handler)
    try:
        by_workers = loaded(plain, workers=2, epochs=4)
    finally:
        logging.getLogger("resnext_det").removeHandler(handler)
        handler.close()
    assert plain.is_unreadable.nonzero().flatten().tolist() == list(BROKEN)  # seen from here
    log = (tmp_path / "log.txt").read_text()
    for index in BROKEN:
        # Two, if both workers met it at the same moment.
        assert log.count(f"{index}.png: cannot be read as an image") in (1, 2)
    assert "3 so far" in log and "3 of 8 images cannot be read and are replaced" in log
    plain.is_unreadable.zero_()
    assert loaded(plain, workers=0, epochs=4) == by_workers


def test_a_stream_is_repeated(cfg):
    """Augmentation included: what stood before it in the row does not matter."""
    cfg.DATA.CROP_SIZE = 6
    first, second = (loaded(sets.open_split(cfg, "train"), workers=0) for _ in range(2))
    known = loaded(sets.open_split(cfg, "train"), workers=0, epochs=3)
    for found in (second, known):
        for (ours, label), (theirs, other) in zip(first, found[: len(first)], strict=True):
            assert torch.equal(ours, theirs) and label == other


@pytest.mark.parametrize("most, tried", [(3, 3), (100, 8)])
def test_a_folder_that_is_gone(plain, tmp_path, monkeypatch, most, tried):
    """Nothing readable far and wide is no matter of single files."""
    monkeypatch.setattr(skipping, "MOST_IN_A_ROW", most)
    for path in tmp_path.glob("train/*/*.png"):
        path.unlink()
    for _ in range(2):
        with pytest.raises(InputError) as caught:
            plain[6]
        message = str(caught.value)
        assert message.startswith(f"{tmp_path / 'train'}: {tried} images in a row, from image 6")
        assert "DATA.SKIP_UNREADABLE" in message
    assert int(plain.is_unreadable.sum()) == tried
