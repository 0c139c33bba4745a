"""Guard the promise for tar shards: the same items as class folders, and no archive does harm."""

import gzip
import io
import logging
import pickle
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from resnext_det.config import get_cfg
from resnext_det.data import sets, shards
from resnext_det.data.augment import collate
from resnext_det.data.shards import ShardSet, read_index, read_shard, shards_of
from resnext_det.errors import InputError

RNG = np.random.default_rng(0)
BLOCK = tarfile.BLOCKSIZE


def png():
    content = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(content, "PNG")
    return content.getvalue()


def member(name, content=b"", **fields):
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    for key, value in fields.items():
        setattr(entry, key, value)
    return entry, content


def write(path, *members, form=tarfile.PAX_FORMAT):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for entry, content in members:
            tar.addfile(entry, io.BytesIO(content))
    return path


def sample(key, label, content=None):
    image = png() if content is None else content
    return member(f"{key}.png", image), member(f"{key}.cls", b"%d" % label)


def samples(*labels):
    return [part for key, label in enumerate(labels) for part in sample(f"{key:04}", label)]


def refusal(call, *words):
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600, message
    for word in words:
        assert str(word) in message, message


@pytest.fixture(autouse=True)
def nothing_remembered():
    shards._read_index.cache_clear()


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg()
    cfg.DATA.ROOT = str(tmp_path)
    cfg.DATA.CROP_SIZE, cfg.DATA.RESIZE_SIZE = 8, 10
    return cfg


@pytest.fixture
def both(tmp_path):
    """A training split of two shards and a validation split of one, classes 0 and 1."""
    write(tmp_path / "train" / "0.tar", *samples(0, 1))
    write(tmp_path / "train" / "1.tar", *samples(1))
    write(tmp_path / "val" / "0.tar", *samples(1))
    return tmp_path


# ---- the items ----


def test_the_same_items_as_class_folders(cfg, tmp_path):
    """One set stored twice: an item is the same to the bit, augmentation included."""
    contents = [(name, png()) for name in ("ant", "ant", "bee", "cow")]
    names = ["ant", "bee", "cow"]
    for split in ("train", "val"):
        members = []
        for number, (name, content) in enumerate(contents):
            file = tmp_path / "folders" / split / name / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
            members += sample(f"{name}/{number}", names.index(name), content)
        write(tmp_path / "shards" / split / "0.tar", *members[:4])
        write(tmp_path / "shards" / split / "1.tar", *members[4:])
    (tmp_path / "shards" / "classes.txt").write_text("ant\nbee\ncow\n")
    stored = {}
    for kind in ("folders", "shards"):
        cfg.DATA.ROOT = str(tmp_path / kind)
        stored[kind] = sets.open_both(cfg)
    for ours, theirs in zip(stored["shards"], stored["folders"], strict=True):
        assert type(ours) is ShardSet and ours.classes == theirs.classes
        assert len(ours) == len(theirs) == 4
        for index in range(4):
            torch.manual_seed(index)
            image, label = ours[index]
            torch.manual_seed(index)
            expected, expected_label = theirs[index]
            assert torch.equal(image, expected) and label == expected_label


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_data_workers(cfg, both, start):
    """Each opens the shards itself, also where this process has opened them before."""
    data = sets.open_split(cfg, "val" if start == "spawn" else "train")
    data.transform = torch.nn.Identity()
    expected = [np.asarray(data[index][0]) for index in range(len(data))]
    loader = torch.utils.data.DataLoader(
        data, None, num_workers=1 + (start == "fork"), multiprocessing_context=start
    )
    found = [np.asarray(image) for image, _ in loader]
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_pickled_set_has_no_open_file(cfg, both):
    data = sets.open_split(cfg, "train")
    before = data[2]
    again = pickle.loads(pickle.dumps(data))
    assert not again._open and again[2][1] == before[1] == 1


def test_files_of_the_parent_process_are_not_used(cfg, both, monkeypatch):
    """Parent and child would move one position, and read each other's images."""
    data = sets.open_split(cfg, "train")
    first = data._file(0)
    assert data._file(0) is first
    monkeypatch.setattr(shards.os, "getpid", lambda: -1)
    assert data._file(0) is not first and not first.closed


def test_few_shards_are_held_open(cfg, both, monkeypatch):
    monkeypatch.setattr(shards, "_MOST_OPEN", 1)
    data = sets.open_split(cfg, "train")
    first = data._file(0)
    assert [data[index][1] for index in (0, 2, 1, 2)] == [0, 1, 1, 1]
    assert len(data._open) == 1 and first.closed


def test_an_image_that_cannot_be_read(cfg, tmp_path):
    path = write(tmp_path / "val" / "0.tar", *samples(0), *sample("a/broken", 0, png()[:60]))
    data = sets.open_split(cfg, "val")
    assert data[0][1] == 0
    refusal(lambda: data[1], f"{path}, member a/broken.png: ", "cannot be read", "in the shard")


def test_a_shard_cut_short_while_it_is_read(cfg, both):
    data = sets.open_split(cfg, "val")
    path = both / "val" / "0.tar"
    path.write_bytes(path.read_bytes()[: BLOCK + 10])
    refusal(lambda: data[0], f"{path}: ", "shorter than when this run began")


# ---- which files are shards ----


@pytest.mark.parametrize(
    "split, names",
    [
        ("train", ["train/10.tar", "train/a.tar"]),
        ("train", ["train-000.tar", "train-001.tar"]),
        ("train", ["imagenet1k-train-0000.tar"]),
        ("val", ["val/a.tar"]),
        ("val", ["validation/a.tar"]),
        ("val", ["val_0.tar", "val_1.tar"]),
        ("val", ["validation.tar"]),
        ("val", ["imagenet1k-validation-00.tar"]),
    ],
)
def test_layouts(tmp_path, split, names):
    for name in [*names, "retrain.tar", "interval.tar", ".train-9.tar", "train.txt"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert shards_of(tmp_path, split) == [tmp_path / name for name in names]
    assert shards_of(tmp_path, "val" if split == "train" else "train") == []


def test_class_folders_come_before_the_archives_they_were_unpacked_from(tmp_path):
    (tmp_path / "train" / "n01440764").mkdir(parents=True)
    for name in ("train/n01440764.tar", "train.tar"):
        (tmp_path / name).touch()
    assert shards_of(tmp_path, "train") == []


def test_shards_in_two_places(tmp_path):
    for name in ("train/0.tar", "train-0.tar"):
        write(tmp_path / name)
    refusal(lambda: shards_of(tmp_path, "train"), f"{tmp_path}: ", "train shards lie in", "one of")


@pytest.mark.parametrize("name", ["train/0.tar.gz", "train-0.tgz"])
def test_compressed_shards(tmp_path, name):
    write(tmp_path / name)
    refusal(lambda: shards_of(tmp_path, "train"), f"{tmp_path / name}: is compressed", ".tar")


# ---- what a shard holds ----


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_samples_of_a_shard(tmp_path, form):
    """In either order, any depth and case; what is neither image nor label is passed over."""
    long = "d" * 90 + "/" + "f" * 90  # beyond the 100 letters of a plain header
    members = [
        member("a", type=tarfile.DIRTYPE),
        member("a/1.JPG", b"jpg"),
        member("a/1.json", b"{}"),
        member("a/1.seg.png", b"mask"),
        member("a/1.cls", b" 7\n"),
        member("./2.cls", b"10"),
        member("._2.jpg", b"AppleDouble"),
        member("./2.jpeg", b""),
        member(f"{long}.webp", b"webp"),
        member(f"{long}.cls", b"0"),
    ]
    path = write(tmp_path / "0.tar", *members, form=form)
    found = list(read_shard(path))
    content = path.read_bytes()
    assert [(content[begin : begin + size], label) for begin, size, label in found] == [
        (b"jpg", 7),
        (b"", 10),
        (b"webp", 0),
    ]


BAD = {
    "symbolic link": ([member("1.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd")], "a link"),
    "hard link": ([*samples(0), member("1.png", type=tarfile.LNKTYPE, linkname="0.png")], "a link"),
    "pipe": ([member("1.jpg", type=tarfile.FIFOTYPE)], "no plain file"),
    "unknown type": ([member("1.jpg", type=b"Z")], "no plain file"),
    "absolute": ([member("/1.jpg", b"x")], "leaves the archive"),
    "above": ([member("a/../../1.jpg", b"x")], "leaves the archive"),
    "two images": ([member("1.jpg", b"x"), member("1.png", b"x")], "is the second image of its"),
    "two labels": ([member("1.cls", b"0"), member("1.cls", b"0")], "is the second label of its"),
    "word": ([member("1.jpg", b"x"), member("1.cls", b"cat")], "holds b'cat'"),
    "negative": ([member("1.jpg", b"x"), member("1.cls", b"-1")], "holds b'-1'"),
    "empty": ([member("1.jpg", b"x"), member("1.cls", b"")], "holds b''"),
    "long": ([member("1.jpg", b"x"), member("1.cls", b"0" + 99 * b" ")], "holds b'0 "),
}


@pytest.mark.parametrize("members, words", BAD.values(), ids=BAD)
def test_refused_member(tmp_path, members, words):
    path = write(tmp_path / "0.tar", *members)
    name = members[-1][0].name
    refusal(lambda: list(read_shard(path)), f"{path}: member {name} ", words)


@pytest.mark.parametrize(
    "members, words",
    [
        ([*samples(0), member("b/1.jpg", b"x")], ["image of key b/1 has no .cls", "of the class"]),
        ([*samples(0), member("1.cls", b"0")], ["label of key 1 has no .jpg|jpeg|png|webp"]),
        ([member("n\n1.jpg", b"x")], [r"key n\n1 "]),
    ],
    ids=["no label", "no image", "a name of two lines"],
)
def test_a_sample_of_one_part(tmp_path, members, words):
    path = write(tmp_path / "0.tar", *members)
    refusal(lambda: list(read_shard(path)), f"{path}: ", *words)


def test_a_shard_without_an_image(tmp_path):
    path = write(tmp_path / "0.tar", member("readme.txt", b"x"))
    refusal(lambda: read_index([path], tmp_path / "x.npz"), f"{path}: holds no image")


def with_size(content, position, size):
    """The archive with another size in the header at a position, its checksum made to fit."""
    header = bytearray(content[position : position + BLOCK])
    header[124:136], header[148:156] = size, b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return content[:position] + bytes(header) + content[position + BLOCK :]


def sparse(content):
    """The first header as that of a sparse file (GNU), with one empty region."""
    header = bytearray(content[:BLOCK])
    header[156:157], header[148:156] = b"S", b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + content[BLOCK:]


DAMAGE = {
    "no byte": lambda content: b"",
    "text": lambda content: b"<html>404</html>" * 99,
    "zeros, one too few": lambda content: bytes(BLOCK - 1),
    "compressed": gzip.compress,
    "cut in a header": lambda content: content[: 4 * BLOCK + 100],
    "cut in an image": lambda content: content[: BLOCK + 10],
    "cut between members": lambda content: content[: content.index(b"0001.png")],
    "damaged header": lambda content: content.replace(b"0001.png", b"0001.pnX"),
    "size beyond": lambda content: with_size(content, 0, b"77777777777\0"),
    "huge size": lambda content: with_size(content, 0, b"\x80" + b"\x7f" * 11),
    "negative size": lambda content: with_size(content, 2 * BLOCK, b"\xff" * 10 + b"\xf0\x00"),
    "sparse": sparse,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_archive(tmp_path, damage):
    """Also the damage at which tarfile itself stops as at the end, or goes round in a circle."""
    small = [part for key in ("0000", "0001") for part in sample(key, 0, b"an image")]
    path = write(tmp_path / "0.tar", *small)
    assert len(list(read_shard(path))) == 2
    path.write_bytes(damage(path.read_bytes()))
    refusal(lambda: list(read_shard(path)), f"{path}: ", "the shard again")


def test_a_missing_shard(tmp_path):
    for call in (lambda: list(read_shard(tmp_path / "0.tar")), lambda: index_of(tmp_path)):
        refusal(call, f"{tmp_path / '0.tar'}: cannot be read (No such file")


# ---- the index and its cache ----


def index_of(folder):
    shards._read_index.cache_clear()
    return read_index([folder / "0.tar"], folder / "index.npz")


def forbid_reading(monkeypatch):
    monkeypatch.setattr(shards, "read_shard", lambda path: pytest.fail("the shard was read"))


def test_the_index_is_packed_and_kept(tmp_path, monkeypatch):
    write(tmp_path / "0.tar", *samples(3, 1, 2))
    first = index_of(tmp_path)
    assert first.table.dtype == np.int64 and first.table.nbytes == 32 * 3
    assert first.table[:, 3].tolist() == [3, 1, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.tar", "index.npz"]
    forbid_reading(monkeypatch)
    np.testing.assert_array_equal(index_of(tmp_path).table, first.table)


def change_time(folder):
    write(folder / "0.tar", *samples(5, 6))
    (folder / "0.tar").touch()


def change_size(folder):
    write(folder / "0.tar", *samples(5, 6), member("padding.bin", bytes(99_999)))


def change_name(folder):
    write(folder / "1.tar", *samples(5, 6)).rename(folder / "0.tar")
    fields = dict(np.load(folder / "index.npz"))
    status = (folder / "0.tar").stat()
    fields |= {"names": np.array(["1.tar"]), "times": np.array([status.st_mtime_ns])}
    np.savez(folder / "index.npz", **{**fields, "sizes": np.array([status.st_size])})


def points_beyond(folder):
    write(folder / "0.tar", *samples(5, 6))
    status = (folder / "0.tar").stat()
    facts = {"times": np.array([status.st_mtime_ns]), "sizes": np.array([status.st_size])}
    table = np.array([[0, BLOCK, status.st_size, 0]])
    np.savez(folder / "index.npz", names=np.array(["0.tar"]), **facts, table=table)


def damaged_cache(folder):
    write(folder / "0.tar", *samples(5, 6))
    content = (folder / "index.npz").read_bytes()
    (folder / "index.npz").write_bytes(content.replace(b"NUMPY", b"NUMPX"))


def pickled_cache(folder):
    write(folder / "0.tar", *samples(5, 6))
    np.savez(folder / "index.npz", names=np.array([{"a": 1}], dtype=object))


@pytest.mark.parametrize(
    "change",
    [change_time, change_size, change_name, points_beyond, damaged_cache, pickled_cache],
)
def test_an_index_of_other_shards_is_not_used(tmp_path, change):
    write(tmp_path / "0.tar", *samples(3, 1, 2))
    index_of(tmp_path)
    change(tmp_path)
    assert index_of(tmp_path).table[:, 3].tolist() == [5, 6]
    with np.load(tmp_path / "index.npz") as file:
        assert file["table"][:, 3].tolist() == [5, 6]


def test_an_index_that_cannot_be_written(tmp_path, caplog):
    write(tmp_path / "0.tar", *samples(3, 1))
    (tmp_path / "index.npz").mkdir()
    with caplog.at_level(logging.INFO):
        assert len(index_of(tmp_path).table) == 2
    assert "index.npz cannot be written" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.tar", "index.npz"]


def test_shards_are_read_once_for_both_splits(cfg, both, monkeypatch):
    read = []
    real = read_shard
    monkeypatch.setattr(shards, "read_shard", lambda path: read.append(path) or real(path))
    sets.open_both(cfg)
    assert sorted(read) == [both / name for name in ("train/0.tar", "train/1.tar", "val/0.tar")]


# ---- classes ----


def test_numbered_classes_are_those_of_both_splits(cfg, tmp_path):
    write(tmp_path / "train-0.tar", *samples(0, 1, 2))
    write(tmp_path / "val-0.tar", *samples(1))
    train, val = sets.open_both(cfg)
    assert train.classes == val.classes == ["0", "1", "2"]
    assert collate([val[0]])["label"].tolist() == [1]


def test_named_classes(cfg, both):
    (both / "classes.txt").write_bytes("\ufeffcat\r\nguinea pig\r\n\n".encode())
    train, val = sets.open_both(cfg)
    assert train.classes == val.classes == ["cat", "guinea pig"]


def test_a_label_without_a_class(cfg, both):
    (both / "classes.txt").write_text("cat\n")
    path = both / "train" / "0.tar"
    words = f"{path}, member 0001.png: has the label 1", "there are 1 classes", "classes.txt"
    refusal(lambda: sets.open_split(cfg, "train"), *words)


def test_a_stray_label(cfg, tmp_path):
    write(tmp_path / "train" / "0.tar", *samples(0, 999_999_999))
    refusal(lambda: sets.open_split(cfg, "train"), "2 images go up to 999999999", "classes.txt")


@pytest.mark.parametrize(
    "content, words",
    [
        (b"cat\n\ndog\n", "line 2 is empty"),
        (b"cat\ndog\n cat\n", 'line 3 is "cat", as is line 1'),
        (b"\n", "names no class"),
        (b"\xff\n", "UTF-8"),
    ],
)
def test_refused_classes(cfg, both, content, words):
    (both / "classes.txt").write_bytes(content)
    refusal(lambda: sets.open_split(cfg, "train"), f"{both / 'classes.txt'}: ", words)
