"""Guard CIFAR's two forms: an .npz file or the authors' archive, whole and checked, or refused."""

import hashlib
import os
import pickle
import zipfile

import numpy as np
import pytest
from torch import nn

from resnext_det.data.arrays import ARCHIVES, archive_in, read_archive, read_npz
from resnext_det.errors import InputError

RNG = np.random.default_rng(0)
KEEP = nn.Identity()
NAMES = np.array(["cat", "dog", "emu"])


def fields(**others):
    """Six training and three test images of three classes; None leaves a field out."""
    whole = {
        "train_images": RNG.integers(0, 256, (6, 5, 4, 3), dtype=np.uint8),
        "train_labels": np.array([0, 1, 2, 0, 1, 2], np.uint8),
        "test_images": RNG.integers(0, 256, (3, 5, 4, 3), dtype=np.uint8),
        "test_labels": np.array([2, 1, 0], np.uint8),
        "class_names": NAMES,
        **others,
    }
    return {name: value for name, value in whole.items() if value is not None}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "images.npz"


def refusal(call, *words):
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500, message
    for word in words:
        assert str(word) in message, message


# ---- .npz ----


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("split, word", [("train", "train"), ("val", "test")])
def test_read_npz(path, save, split, word):
    given = fields()
    save(path, **given)
    data = read_npz(path, split, KEEP)
    assert (len(data), data.classes, data.root) == (
        len(given[f"{word}_labels"]),
        [*NAMES],
        str(path),
    )
    for index, (image, label) in enumerate(data):
        np.testing.assert_array_equal(image, given[f"{word}_images"][index])
        assert type(label) is int and label == given[f"{word}_labels"][index]
        if index == len(data) - 1:
            break


def test_items_are_pictures_to_the_transforms(path):
    """An array would pass through torchvision's resize and crop as it is."""
    np.savez(path, **fields())
    image, _ = read_npz(path, "train", KEEP)[0]
    assert (image.mode, image.size) == ("RGB", (4, 5))


def test_classes_without_names_are_numbers_of_both_splits(path):
    """A split that lacks the last class has it all the same."""
    np.savez(path, **fields(class_names=None, test_labels=np.array([0, 1, 1])))
    for split in ("train", "val"):
        assert read_npz(path, split, KEEP).classes == ["0", "1", "2"]


@pytest.mark.parametrize("missing", ["test_images", "test_labels"])
def test_the_other_split_may_be_missing(path, missing):
    np.savez(path, **fields(class_names=None, **{missing: None}))
    assert len(read_npz(path, "train", KEEP)) == 6
    refusal(lambda: read_npz(path, "val", KEEP), f"{path}: has no {missing}", "train_labels")


FAULTY = {
    "images of floats": ({"train_images": np.zeros((6, 5, 4, 3))}, "train_images is float64"),
    "images of int8": ({"train_images": np.zeros((6, 5, 4, 3), np.int8)}, "train_images is int8"),
    "channels first": (
        {"train_images": np.zeros((6, 3, 5, 4), np.uint8)},
        "train_images is uint8 of shape (6, 3, 5, 4)",
    ),
    "grey images": ({"train_images": np.zeros((6, 5, 4), np.uint8)}, "shape (6, 5, 4)"),
    "no images": ({"train_images": np.zeros((0, 5, 4, 3), np.uint8)}, "train_images is empty"),
    "images without pixels": (
        {"train_images": np.zeros((6, 0, 0, 3), np.uint8)},
        "train_images is empty",
    ),
    "fewer labels": (
        {"train_labels": np.array([0, 1])},
        "train_labels is int64 of shape (2,) for 6 images",
    ),
    "labels of floats": ({"train_labels": np.zeros(6)}, "train_labels is float64"),
    "labels of text": ({"train_labels": np.array(["0"] * 6)}, "train_labels is <U1"),
    "one-hot labels": ({"train_labels": np.eye(6, dtype=int)}, "train_labels is int64 of shape"),
    "label above": (
        {"train_labels": np.array([0, 1, 2, 3, 0, 0])},
        "run from 0 to 3 for 3 classes",
    ),
    "label below": ({"train_labels": np.array([0, 1, -1, 0, 0, 0])}, "run from -1 to 1"),
    "stray label": (
        {"train_labels": np.array([0, 1, 2, 10**15, 0, 0]), "class_names": None},
        f"run from 0 to {10**15}",
    ),
    "all labels below": ({"train_labels": np.full(6, -2), "class_names": None}, "from -2 to -2"),
    "names of bytes": ({"class_names": np.array([b"a", b"b", b"c"])}, "class_names is |S1"),
    "names in a table": ({"class_names": NAMES[None]}, "class_names is <U3 of shape (1, 3)"),
    "no labels": ({"train_labels": None}, "has no train_labels"),
    "nothing": (dict.fromkeys(fields()), "read: nothing"),
}


@pytest.mark.parametrize("others, words", FAULTY.values(), ids=FAULTY)
def test_a_faulty_field_is_named(path, others, words):
    np.savez(path, **fields(**others))
    refusal(lambda: read_npz(path, "train", KEEP), f"{path}: ", words)


class Bomb:
    """Its pickle makes a folder when it is read."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("name", ["train_images", "train_labels", "class_names", "extra"])
def test_pickles_inside_are_refused_unread(path, tmp_path, name):
    made = tmp_path / "made"
    objects = np.empty(6, object)
    objects[:] = [Bomb(made)] * 6
    np.savez(path, **fields(**{name: objects}))
    refusal(lambda: read_npz(path, "train", KEEP), f"{path}: ", f"field {name}", "allow_pickle")
    assert not made.exists()


def test_a_pickle_that_is_called_npz(path, tmp_path):
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "made")))
    refusal(lambda: read_npz(path, "train", KEEP), f"{path}: ", "no zip file", "numpy.savez")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9, 0.999])
def test_a_file_cut_short(path, save, kept):
    save(path, **fields())
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    refusal(lambda: read_npz(path, "train", KEEP), f"{path}: ", "not a whole .npz", "numpy.savez")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_overwritten_bytes_never_end_in_a_traceback(path, save):
    """Wherever they are: each file is read as before, or refused in one line."""
    save(path, **fields())
    content = path.read_bytes()
    refused = 0
    for place in range(0, len(content), 7):
        path.write_bytes(content[:place] + b"\xff\x00\xfe" + content[place + 3 :])
        try:
            read_npz(path, "train", KEEP)
        except InputError as error:
            refused += 1
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
    assert refused > 20


def test_an_array_file_is_no_npz(path):
    with open(path, "wb") as file:
        np.save(file, np.zeros(3))
    refusal(lambda: read_npz(path, "train", KEEP), f"{path}: ", "no zip file")


def test_members_that_are_no_arrays(path):
    with zipfile.ZipFile(path, "w") as file:
        for name in fields():
            file.writestr(name, "text")
    refusal(lambda: read_npz(path, "train", KEEP), f"{path}: ", "train_images is |S4")


def test_the_other_splits_images_are_not_read(path):
    """Half the memory; a fault there shows when they are wanted."""
    np.savez(path, **fields(test_images=np.array([{}] * 3)))
    assert len(read_npz(path, "train", KEEP)) == 6
    refusal(lambda: read_npz(path, "val", KEEP), "field test_images")


def test_cifar10_subset(shared_data):
    path = shared_data / "cifar10_subset.npz"
    if not path.is_file():
        pytest.skip(f"no {path}")
    train, val = (read_npz(path, split, KEEP) for split in ("train", "val"))
    assert (len(train), len(val)) == (10_000, 2_000)
    assert train.classes == val.classes and train.classes[3] == "cat" and len(val.classes) == 10
    image, label = val[1999]
    assert image.size == (32, 32) and label == 9
    assert np.bincount(val.labels).tolist() == [200] * 10


# ---- the authors' archives ----

FILES = {
    "cifar-10-batches-py": [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"],
    "cifar-100-python": ["train", "test"],
}
META = {"cifar-10-batches-py": "batches.meta", "cifar-100-python": "meta"}
LABELS = {"cifar-10-batches-py": "labels", "cifar-100-python": "fine_labels"}
KEYS = {"cifar-10-batches-py": "label_names", "cifar-100-python": "fine_label_names"}


@pytest.fixture(params=ARCHIVES)
def name(request):
    return request.param


@pytest.fixture
def pixels(name, tmp_path, monkeypatch):
    """An archive of two images a file, whose MD5s pass for the published ones; its pixels."""
    folder, rows = tmp_path / "data" / name, {}
    folder.mkdir(parents=True)
    contents = {}
    for number, file in enumerate(FILES[name]):
        rows[file] = RNG.integers(0, 256, (2, 3072), dtype=np.uint8)
        contents[file] = {"data": rows[file], LABELS[name]: [number % 2, 1]}
    contents[META[name]] = {KEYS[name]: ["apple", "bee"]}
    sums = {}
    for file, content in contents.items():
        data = pickle.dumps(content, protocol=2)
        (folder / file).write_bytes(data)
        sums[file] = hashlib.md5(data).hexdigest()
    archive = ARCHIVES[name]
    listed = [[file, sums[file]] for file in FILES[name]]
    monkeypatch.setattr(archive, "train_list", listed[:-1])
    monkeypatch.setattr(archive, "test_list", listed[-1:])
    meta = {"filename": META[name], "key": KEYS[name], "md5": sums[META[name]]}
    monkeypatch.setattr(archive, "meta", meta)
    return rows


@pytest.mark.parametrize("named", ["archive", "parent"])
def test_read_archive(tmp_path, name, pixels, named):
    parent = tmp_path / "data"
    root = parent / name if named == "archive" else parent
    assert archive_in(root) == parent
    for split, files in (("train", FILES[name][:-1]), ("val", FILES[name][-1:])):
        data = read_archive(root, split, KEEP)
        assert data.classes == ["apple", "bee"] and data.root == str(parent / name)
        assert len(data) == 2 * len(files)
        expected = np.concatenate([pixels[file] for file in files])
        for index in range(len(data)):
            image, label = data[index]
            planes = expected[index].reshape(3, 32, 32)  # red, green, blue, row by row
            np.testing.assert_array_equal(image, planes.transpose(1, 2, 0))
            assert label == (1 if index % 2 else FILES[name].index(files[index // 2]) % 2)


def test_a_relative_root(tmp_path, name, pixels, monkeypatch):
    monkeypatch.chdir(tmp_path / "data")
    for root in (name, "."):
        root = type(tmp_path)(root)
        assert len(read_archive(root, "val", KEEP)) == 2
    monkeypatch.chdir(name)
    assert archive_in(type(tmp_path)(".")) is None  # a folder is known by its name


@pytest.mark.parametrize("which", [0, -1, "meta"])
def test_a_changed_archive_is_refused_unread(tmp_path, name, pixels, which):
    """One file is another pickle, which would make a folder: it is never opened."""
    file = META[name] if which == "meta" else FILES[name][which]
    made = tmp_path / "made"
    (tmp_path / "data" / name / file).write_bytes(pickle.dumps(Bomb(made)))
    for split in ("train", "val"):
        refusal(
            lambda split=split: read_archive(tmp_path / "data", split, KEEP),
            f"{tmp_path / 'data' / name}: ",
            "MD5",
            "cifar.html",
        )
    assert not made.exists()


def test_an_archive_with_a_file_missing(tmp_path, name, pixels):
    (tmp_path / "data" / name / FILES[name][0]).unlink()
    refusal(lambda: read_archive(tmp_path / "data", "val", KEEP), name, "a file is missing")


def test_an_archive_that_is_not_there(tmp_path, name):
    """The CIFAR recipes name it: the mend is to get it, not to make class folders."""
    root = tmp_path / name
    assert archive_in(root) == tmp_path
    refusal(
        lambda: read_archive(root, "train", KEEP), f"{root}: ", "a file is missing", "DATA.ROOT"
    )


def test_both_archives_side_by_side(tmp_path):
    for folder in ARCHIVES:
        (tmp_path / folder).mkdir()
    refusal(
        lambda: read_archive(tmp_path, "train", KEEP),
        f"{tmp_path}: holds cifar-10-batches-py and cifar-100-python",
        f"DATA.ROOT to {tmp_path / 'cifar-10-batches-py'}",
    )
    refusal(lambda: read_archive(tmp_path / "cifar-100-python", "val", KEEP), "cifar-100-python: ")


@pytest.mark.parametrize("folder", ["plain", "cifar-10-batches-py"])
def test_class_folders_are_no_archive(tmp_path, folder):
    """Nor where somebody gave them the archive's name."""
    (tmp_path / folder / "train" / "cat").mkdir(parents=True)
    assert archive_in(tmp_path / folder) is None
