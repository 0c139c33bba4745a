"""Hostile classification sets: .npz, CIFAR's archives, tar shards and their index, text lists."""

import io
import logging
import os
import tarfile
import zipfile
from pathlib import Path
from random import Random

import numpy as np
from fuzz_inputs import (
    CANARY,
    HOSTILE_PICKLES,
    TEXTS,
    Reader,
    changed_bytes,
    changed_entries,
    require,
    zipped,
)
from PIL import Image

from resnext_det.config import get_cfg
from resnext_det.data import shards
from resnext_det.data.arrays import ARCHIVES, read_archive, read_npz
from resnext_det.data.class_folders import class_folder
from resnext_det.data.imagenet5k import read_wnids
from resnext_det.data.lists import read_list
from resnext_det.data.shards import open_shards


def _same(image: Image.Image) -> Image.Image:
    return image


# ---- arrays ----


def _npy(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def _prepare_arrays(folder: Path) -> dict[str, bytes]:
    images = np.arange(4 * 6 * 6 * 3, dtype=np.uint8).reshape(4, 6, 6, 3)
    arrays = {"train_images": images, "test_images": images[:2]}
    arrays |= {"train_labels": np.array([0, 1, 2, 1]), "test_labels": np.array([2, 0])}
    return {f"{k}.npy": _npy(v) for k, v in arrays.items()}


def _lying_array(random: Random, data: bytes) -> bytes:
    """A header of another shape or type before the same numbers."""
    shapes = ("(4, 6, 6, 3)", "(10**3,)", "(1000000000000,)", "(4000000000, 1, 1, 3)", "(-4,)")
    shapes += ("(0, 6, 6, 3)", "()", "(True,)", "(4.0,)", "((((", "(" * 200, "[4]", "None", "(4)")
    types = ("|u1", "|O", "<U9", "<f8", "|V10", "<m8", "|u1", "|b1", "(2,)u1", "[('a', 'u1')]")
    types += ("<c16", ">i8", "<U1000000000", "|S0", "i" * 3000)
    order = random.choice(("False", "True", "1"))
    text = f"{{'descr': '{random.choice(types)}', 'fortran_order': {order}, "
    text += f"'shape': {random.choice(shapes)}, }}"
    version = random.choice((b"\1\0", b"\2\0", b"\3\0", b"\x09\0"))
    length = len(text).to_bytes(2 if version == b"\1\0" else 4, "little")
    return b"\x93NUMPY" + version + length + text.encode() + data[-432:]


def _make_arrays(random: Random, made_from: dict[str, bytes], folder: Path) -> Path:
    entries, what = dict(made_from), random.random()
    if what < 0.05:
        path = folder / "batch.cifar"
        path.write_bytes(random.choice(HOSTILE_PICKLES))
        return path
    path, name = folder / "set.npz", random.choice(list(entries))
    if what < 0.4:
        entries[name] = _lying_array(random, entries[name])
    elif what < 0.5:
        names = np.array(random.choice((["a", "b", "c"], [1, 2], ["a\n"], [["a"]], [""], ["a"])))
        entries["class_names.npy"] = _npy(names)
    elif what < 0.55:
        entries[name] = random.choice(HOSTILE_PICKLES)
    elif what < 0.65:
        labels = np.array(random.choice(([0, 1, 2**40, 1], [-1, 0, 0, 0], [0, 0, 0, 9], [1.5] * 4)))
        entries["train_labels.npy"] = _npy(labels)
    data = changed_entries(random, entries) if what > 0.65 else zipped(entries)
    path.write_bytes(changed_bytes(random, data) if what > 0.9 else data)
    return path


def _read_arrays(path: Path) -> None:
    if path.suffix == ".cifar":
        root = path.parent / next(iter(ARCHIVES))
        root.mkdir(exist_ok=True)
        for name in ("data_batch_1", "data_batch_2", "test_batch", "batches.meta"):
            (root / name).write_bytes(path.read_bytes())
        read_archive(root, "train", _same)
    for split in ("train", "val"):
        data = read_npz(path, split, _same)
        require(len(data) > 0 and len(data.labels) == len(data), "the number of labels")
        for index in (0, len(data) - 1):
            image, label = data[index]
            require(image.mode == "RGB" and 0 <= label < len(data.classes), f"label {label}")


ARRAYS = Reader("arrays", _prepare_arrays, _make_arrays, _read_arrays, ("set.npz",))


# ---- shards ----


def _picture(seed: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 6), (seed, 2, 3)).save(content, "PNG")
    return content.getvalue()


def _tar(members: list[tuple[str, bytes, dict]], form: int = tarfile.PAX_FORMAT) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=form) as tar:
        for name, data, fields in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            for field, value in fields.items():
                setattr(entry, field, value)
            tar.addfile(entry, io.BytesIO(data))
    return content.getvalue()


def _good_members() -> list[tuple[str, bytes, dict]]:
    found = []
    for key in range(3):
        found += [(f"d/{key:04}.png", _picture(key), {}), (f"d/{key:04}.cls", b"%d" % key, {})]
    return found


def _prepare_shards(folder: Path) -> bytes:
    (folder / "train").mkdir()
    (folder / "train" / "0.tar").write_bytes(_tar(_good_members()))
    os.utime(folder / "train" / "0.tar", ns=(1, 1))
    open_shards(_config(folder), "train", _same)
    return (folder / "train" / "train-shards.npz").read_bytes()


def _config(root: Path):
    cfg = get_cfg()
    cfg.DATA.ROOT = str(root)
    return cfg


def _hostile_members(random: Random) -> list[tuple[str, bytes, dict]]:
    members = _good_members()
    place = random.randrange(len(members))
    name, data, _ = members[place]
    names = (f"../{name}", f"/{name}", f"d/../../{CANARY}", ".hidden.png", "d/0000.png", "d", "")
    names += (
        "d/.png",
        "x.cls",
        "d/0000.PNG",
        "a\nb.png",
        "\x1b[2J.png",
        "é.png",
        "x" * 300 + ".png",
    )
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)
    kinds += (tarfile.GNUTYPE_SPARSE, b"Z", tarfile.CONTTYPE, tarfile.GNUTYPE_LONGNAME)
    labels = (b"", b"-1", b"1.5", b"9" * 9, b"9" * 10, b"1" * 5000, b" 1\n", "٣".encode(), b"0x1")
    lies = (
        {"type": random.choice(kinds), "linkname": "/etc/passwd"},
        {"pax_headers": {"size": random.choice(("-1", "99999999999999", "x", "1" * 5000))}},
        {"pax_headers": {"path": random.choice(("../x.png", "a\0b.png", "x" * 5000))}},
        {"pax_headers": {"GNU.sparse.map": "0,1," * 300, "GNU.sparse.size": "9" * 20}},
        {"mtime": -1, "uid": 2**40},
    )
    what = random.random()
    if what < 0.3:
        members[place] = (random.choice(names), data, {})
    elif what < 0.6:
        members[place] = (name, data, random.choice(lies))
    elif what < 0.8:
        members[place] = (members[place | 1][0], random.choice(labels), {})
    else:
        members.insert(place, random.choice(members))
    return members


def _make_shards(random: Random, index: bytes, folder: Path) -> Path:
    if random.random() < 0.15:
        path = folder / "index.npz"
        path.write_bytes(_changed_index(random, index))
        return path
    members, form = _hostile_members(random), random.choice((0, 1, 2))
    try:
        data = _tar(members if random.random() < 0.6 else _good_members(), form)
    except (ValueError, UnicodeError, KeyError, TypeError):  # of no tar of this form
        data = _tar(_good_members(), form)
        data = changed_bytes(random, data)
    path = folder / "0.tar"
    path.write_bytes(changed_bytes(random, data) if random.random() < 0.5 else data)
    return path


def _changed_index(random: Random, index: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(index)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    what = random.random()
    if what < 0.4:
        table = np.load(io.BytesIO(entries["table.npy"]))
        table[random.randrange(3), random.randrange(4)] = random.choice((-1, 0, 7, 2**62, 600))
        entries["table.npy"] = _npy(table)
        return zipped(entries)
    return changed_entries(random, entries) if what < 0.8 else changed_bytes(random, index)


def _read_shards(path: Path) -> None:
    logging.disable(logging.CRITICAL)
    shards._read_index.cache_clear()
    folder = path.parent / "set"
    (folder / "train").mkdir(parents=True, exist_ok=True)
    shard = folder / "train" / "0.tar"
    if path.suffix == ".npz":
        shard.write_bytes(_tar(_good_members()))
        os.utime(shard, ns=(1, 1))
        (folder / "train" / "train-shards.npz").symlink_to(path)
    else:
        shard.symlink_to(path)
    cfg = _config(folder)
    there = shards.shards_of(folder, "train")  # none: a folder in its place
    data = open_shards(cfg, "train", _same) if there else class_folder(cfg, "train", _same)
    require(len(data) > 0, "an empty set")
    for row in range(len(data)):
        image, label = data[row]
        require(image.mode == "RGB" and 0 <= label < len(data.classes), f"label {label}")


SHARDS = Reader("shards", _prepare_shards, _make_shards, _read_shards, ("0.tar", "index.npz"))


# ---- lists ----

LIST = b"# images: 3\n# class: cat\n# class: dog\npets/a cat.jpg\t0\ndog/1.jpg\t1\ndog/2.jpg\t1\n"
CLASSES = b"cat\ndog\nhorse\n"
WNIDS = b"n01440764 tench\nn01443537\n\nn01484850 great white shark\n"
TEXT_FILES = {"a.list": LIST, "a.classes": CLASSES, "a.wnids": WNIDS}


def _make_lists(random: Random, _: None, folder: Path) -> Path:
    name = random.choice(list(TEXT_FILES))
    path, data, what = folder / name, TEXT_FILES[name], random.random()
    if what < 0.5:
        lines = data.split(b"\n")
        parts = random.choice((b" ", b"\t", b": "))
        words = lines[random.randrange(len(lines))].split(parts)
        text = random.choice((*TEXTS, "# class: x", "9" * 12, "-1", "n00000000", "cat"))
        words[random.randrange(len(words))] = text.encode("utf-8", "surrogatepass")
        lines[random.randrange(len(lines))] = parts.join(words)
        data = b"\n".join(lines)
    if what > 0.3:
        data = changed_bytes(random, data)
    path.write_bytes(data)
    return path


def _read_lists(path: Path) -> None:
    if path.suffix == ".wnids":
        wnids = read_wnids(path)
        require(len(set(wnids)) == len(wnids) > 0, "wnids")
        return
    if path.suffix == ".classes":
        names = shards._read_classes(path)
        require(len(set(names)) == len(names) > 0 and all(names), "class names")
        return
    entries, classes = read_list(path)
    require(0 < len(classes) == len(set(classes)) and len(entries) > 0, "classes or images")
    for index in range(len(entries)):
        name = entries.path(index)
        require(0 <= entries.labels[index] < len(classes), f"label {entries.labels[index]}")
        require(".." not in name.split("/") and not name.startswith("/"), f"the path {name!a}")


LISTS = Reader("lists", lambda _: None, _make_lists, _read_lists, tuple(TEXT_FILES))
