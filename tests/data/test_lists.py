"""Guard the promise for image lists: any list is read whole or refused by its line."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image

from resnext_det.config import get_cfg
from resnext_det.data import sets
from resnext_det.data.lists import ListSet, read_list, write_list
from resnext_det.errors import InputError

HEADER = "# class: cat\n# class: guinea pig\n"


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refusal(call, *words):
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500, message
    for word in words:
        assert str(word) in message, message


def items(entries):
    return [(entries.path(i), int(entries.labels[i])) for i in range(len(entries))]


# ---- reading ----

PLAIN = HEADER + "cat/1.jpg\t0\na b/ä..ö#.jpg\t1\n...\t1\n"


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        "# images: 3\n" + PLAIN,
        HEADER + "# images: 3\n" + PLAIN.removeprefix(HEADER),
        PLAIN.removesuffix("\n"),
        PLAIN + "\n\n",
        PLAIN.replace("\n", "\r\n"),
        b"\xef\xbb\xbf" + PLAIN.encode(),
    ],
    ids=["plain", "count", "count last", "no last break", "empty end", "CRLF", "BOM"],
)
def test_read_list(tmp_path, text):
    entries, classes = read_list(write(tmp_path / "list.txt", text))
    assert classes == ["cat", "guinea pig"]
    assert items(entries) == [("cat/1.jpg", 0), ("a b/ä..ö#.jpg", 1), ("...", 1)]


def test_written_and_read(tmp_path):
    """Five thousand classes, labels of every length, a name that is not UTF-8."""
    classes = [f"n{number:08}" for number in range(5000)]
    paths = [b"n%08d/\xff%d.JPEG" % (label, label) for label in range(5000)]
    write_list(tmp_path / "list.txt", classes, zip(paths, range(5000), strict=True), 5000)
    entries, found = read_list(tmp_path / "list.txt")
    assert found == classes and entries.labels.tolist() == list(range(5000))
    assert [entries.path(i).encode("utf-8", "surrogateescape") for i in range(5000)] == paths


def test_entries_are_packed(tmp_path):
    """A few bytes a line beside the file's own, and no Python object a line."""
    write_list(tmp_path / "list.txt", ["a"], ((b"a/%d.jpg" % i, 0) for i in range(20_000)), 20_000)
    entries, _ = read_list(tmp_path / "list.txt")
    arrays = [value for value in vars(entries).values() if isinstance(value, np.ndarray)]
    assert all(array.dtype != object for array in arrays)
    size = (tmp_path / "list.txt").stat().st_size
    assert sum(array.nbytes for array in arrays) < size + 24 * len(entries)


@pytest.mark.parametrize(
    "text, words",
    [
        ("", ["names no class", "# class: <name>"]),
        ("cat/1.jpg\t0\n", ["names no class", "# class: <name>"]),
        (HEADER, ["names no image", "<path><tab><label>"]),
        (HEADER + "# clas: dog\na\t0\n", ['line 3 is "# clas: dog"', "# class: <name>"]),
        ("# class: \na\t0\n", ['line 1 is "# class:"']),
        (HEADER + "# class: cat\na\t0\n", ['line 3 is "# class: cat" (so is line 1)']),
        (HEADER.encode() + b"# class: \xff\na\t0\n", ["line 3 is", "# class: <name>"]),
        (HEADER + "# images: many\na\t0\n", ['line 3 is "# images: many"']),
        (HEADER + "# images: 1\n# images: 1\na\t0\n", ['line 4 is "# images: 1"']),
        (HEADER + "a\t0\n# class: dog\n", ['line 4 is "# class: dog"']),
        (HEADER + "a\t0\nb 1\n", ['line 4 is "b 1"', "<path><tab><label>"]),
        (HEADER + "a\t0\n\nb\t1\n", ['line 4 is ""']),
        (HEADER + "a\t0\nb\t1\t2\nc 1\n", ['line 4 is "b\t1\t2"']),
        (HEADER + "a\t0\nb\t\n", ['line 4 is "b\t"']),
        (HEADER + "a\t0\nb\tcat\n", ['line 4 is "b\tcat"']),
        (HEADER + "a\t0\nb\t-1\n", ['line 4 is "b\t-1"']),
        (HEADER + "a\t0\nb\t0.5\n", ['line 4 is "b\t0.5"']),
        (HEADER + "a\t0\nb\t" + 30 * "1", ["line 4 is"]),
        (HEADER + "\t0\n", ['line 3 is "\t0"']),
        (HEADER + "a\t1\nb\t2\n", ['line 4 is "b\t2"', "labels of 2 classes are 0 to 1"]),
        (HEADER + "a\t0\n" + 200 * "x" + "\t2\n", ['line 4 is "xxx', "..."]),
        ("# images: 2\n" + HEADER + "a\t0\n", ['says "# images: 2"', "it holds 1", "again"]),
        ("# images: 1\n" + HEADER + "a\t1", ["it holds 1 and ends inside a line"]),
    ],
)
def test_refused_list(tmp_path, text, words):
    path = write(tmp_path / "list.txt", text)
    refusal(lambda: read_list(path), f"{path}: ", *words)


@pytest.mark.parametrize("path", ["/etc/a.jpg", "../a.jpg", "..", "a/../../b.jpg", "a/.."])
@pytest.mark.parametrize("before", ["", "a..b/..c/d../....jpg\t1\n"])
def test_a_path_that_leaves_the_folder(tmp_path, before, path):
    text = HEADER + before + f"{path}\t0\na\t0\n"
    place = write(tmp_path / "list.txt", text)
    line = 4 if before else 3
    refusal(lambda: read_list(place), f'line {line} is "{path}\t0"', "below DATA.ROOT")


def test_missing_list(tmp_path):
    path = tmp_path / "none.txt"
    refusal(lambda: read_list(path), f"{path}: ", "DATA.TRAIN_LIST", "make_imagenet5k.py")


def test_repeated_images_are_counted(tmp_path, caplog):
    text = HEADER + "a\t0\nb\t1\na\t0\nb\t0\na\t0\nab\t1\n"
    with caplog.at_level(logging.WARNING):
        entries, _ = read_list(write(tmp_path / "list.txt", text))
    assert len(entries) == 6
    (record,) = caplog.records
    assert "3 lines name an image that another line has named, 1 of them with another label" in (
        record.getMessage()
    )


def test_repeated_images_are_found_across_blocks(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("resnext_det.data.lists._BLOCK", 2)
    text = HEADER + "".join(f"{name}\t0\n" for name in "abcde")
    read_list(write(tmp_path / "list.txt", text))
    assert not caplog.records
    read_list(write(tmp_path / "list.txt", text + "a\t0\n"))
    assert "1 lines name" in caplog.text and "0 of them with another" in caplog.text


# ---- the two splits ----

COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255)}


@pytest.fixture
def cfg(tmp_path):
    """Training images of two classes under one folder, validation images of one under another."""
    for place in ("all/red/0.png", "all/blue/0.png", "all/blue/1.png", "other/val/red.png"):
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        colour = next(COLOURS[name] for name in COLOURS if name in place)
        Image.new("RGB", (12, 12), colour).save(path)
    header = "# class: red\n# class: blue\n"
    write(tmp_path / "train.txt", header + "red/0.png\t0\nblue/1.png\t1\nblue/0.png\t1\n")
    write(tmp_path / "val.txt", header + "val/red.png\t0\n")
    cfg = get_cfg()
    cfg.DATA.CROP_SIZE, cfg.DATA.RESIZE_SIZE = 8, 8
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]
    cfg.DATA.ROOT, cfg.DATA.VAL_ROOT = str(tmp_path / "all"), str(tmp_path / "other")
    cfg.DATA.TRAIN_LIST, cfg.DATA.VAL_LIST = (
        str(tmp_path / name) for name in ("train.txt", "val.txt")
    )
    return cfg


def colour_of(item):
    return tuple(item[0].mean((1, 2)).round().int().tolist()), item[1]


def test_both_splits(cfg):
    train, val = sets.open_both(cfg)
    assert isinstance(train, ListSet) and train.root == cfg.DATA.TRAIN_LIST
    assert [colour_of(train[i]) for i in range(len(train))] == [
        (COLOURS["red"], 0),
        (COLOURS["blue"], 1),
        (COLOURS["blue"], 1),
    ]
    assert len(val) == 1 and colour_of(val[0]) == (COLOURS["red"], 0)
    assert train.classes == val.classes == ["red", "blue"]  # no image of the second in val
    assert train[0][0].dtype == torch.float32 and type(train[0][1]) is int


def test_val_root_is_root_where_none_is_given(cfg, tmp_path):
    cfg.DATA.VAL_ROOT = ""
    write(tmp_path / "val.txt", "# class: red\n# class: blue\nblue/0.png\t1\n")
    assert colour_of(sets.open_split(cfg, "val")[0]) == (COLOURS["blue"], 1)


def test_a_list_beside_class_folders(cfg, tmp_path):
    """The list's labels must be the folders', which are numbered by name."""
    cfg.DATA.VAL_LIST = cfg.DATA.VAL_ROOT = ""
    (tmp_path / "all" / "val").mkdir()
    for name in COLOURS:
        (tmp_path / "all" / name).rename(tmp_path / "all" / "val" / name)
    text = "# class: blue\n# class: red\nval/blue/1.png\t0\n"
    write(tmp_path / "train.txt", text)
    train, val = sets.open_both(cfg)
    assert (len(train), len(val)) == (1, 3) and train.classes == val.classes
    write(tmp_path / "train.txt", "# class: red\n# class: blue\nval/blue/1.png\t1\n")
    refusal(lambda: sets.open_both(cfg), f"{tmp_path / 'all' / 'val'}: ", 'label 0 is "blue"')


def test_another_order_of_the_classes(cfg, tmp_path):
    write(tmp_path / "val.txt", "# class: blue\n# class: red\nval/red.png\t1\n")
    words = (tmp_path / "val.txt", 'label 0 is "blue", but "red" in', tmp_path / "train.txt")
    refusal(lambda: sets.open_both(cfg), *words)


def test_other_classes(cfg, tmp_path):
    write(tmp_path / "val.txt", "# class: red\n# class: green\nval/red.png\t0\n")
    refusal(lambda: sets.open_both(cfg), tmp_path / "val.txt", "['blue']", "['green']")


@pytest.mark.parametrize("split, key", [("train", "DATA.ROOT"), ("val", "DATA.VAL_ROOT")])
def test_a_wrong_folder_shows_before_training(cfg, tmp_path, split, key):
    cfg.DATA.ROOT = cfg.DATA.VAL_ROOT = str(tmp_path)
    image = tmp_path / {"train": "red/0.png", "val": "val/red.png"}[split]
    refusal(
        lambda: sets.open_split(cfg, split),
        f"{tmp_path / split}.txt: line 3: {image} does not exist",
        key,
    )


def test_a_missing_last_image_is_named_with_its_line(cfg, tmp_path):
    (tmp_path / "all" / "blue" / "0.png").unlink()
    refusal(lambda: sets.open_split(cfg, "train"), "line 5: ", tmp_path / "all/blue/0.png")


def test_a_broken_image_is_named(cfg, tmp_path):
    path = write(tmp_path / "all" / "blue" / "1.png", "no image")
    data = sets.open_split(cfg, "train")
    refusal(lambda: data[1], f"{path}: cannot be read as an image")


# ---- the keys ----


@pytest.mark.parametrize("key, value", [("VAL_ROOT", "x"), ("EVAL_CLASSES", 1)])
def test_a_key_of_the_validation_list_alone(cfg, key, value):
    cfg.DATA.VAL_LIST, cfg.DATA.VAL_ROOT = "", ""
    cfg.DATA[key] = value
    refusal(lambda: sets.open_split(cfg, "train"), f"DATA.{key} is {value}", "VAL_LIST is empty")


def test_negative_eval_classes(cfg):
    cfg.DATA.EVAL_CLASSES = -1
    refusal(lambda: sets.open_split(cfg, "val"), "DATA.EVAL_CLASSES is -1", "0")


def test_more_eval_classes_than_classes(cfg):
    cfg.DATA.EVAL_CLASSES = 2
    sets.open_split(cfg, "val")
    cfg.DATA.EVAL_CLASSES = 3
    words = ("DATA.EVAL_CLASSES is 3", f"{cfg.DATA.VAL_LIST} has 2 classes")
    refusal(lambda: sets.open_split(cfg, "val"), *words)


def test_a_validation_image_of_no_eval_class(cfg, tmp_path):
    """Training images may be of any class, the validation images only of the first ones."""
    cfg.DATA.EVAL_CLASSES = 1
    sets.open_both(cfg)
    text = "# class: red\n# class: blue\nval/red.png\t0\nval/red.png\t1\n"
    path = write(tmp_path / "val.txt", text)
    words = (f"{path}: line 4 has the label 1", "DATA.EVAL_CLASSES is 1")
    refusal(lambda: sets.open_split(cfg, "val"), *words)
