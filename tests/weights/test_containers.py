"""Guard what is told of a foreign weights file: its kind, its tensors, or one line of refusal.

Each kind is read from contents, whatever the name; nothing in a file is run.
"""

import collections
import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from resnext_det.errors import InputError
from resnext_det.weights.containers import Contents, read_container
from resnext_det.weights.kinds import container_kind
from resnext_det.weights.state_dicts import tensors_of

LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
FORMS = ("safetensors", "zip", "legacy", "pickle")


def make_tensors():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 3, 3, 3, generator=generator)
    return {
        "conv1.weight": weight,
        "bn1.running_var": torch.rand(4, generator=generator).double(),
        "bn1.num_batches_tracked": torch.tensor(7),
        "half": weight[0].half(),
        "flags": torch.tensor([True, False]),
    }


def write(path, form, tree=None):
    tree = make_tensors() if tree is None else tree
    if form == "safetensors":
        save_file(tree, path, metadata={"format": "pt", "source": "demo"})
    elif form == "pickle":
        arrays = {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in tree.items()}
        path.write_bytes(pickle.dumps(arrays, protocol=2))
    else:
        torch.save(tree, path, _use_new_zipfile_serialization=form == "zip")
    return path


def read(path):
    return tensors_of(read_container(path), path)


def assert_tensors(found, given):
    assert list(found) == list(given)
    for name, tensor in given.items():
        assert type(found[name]) is torch.Tensor and not found[name].requires_grad
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def assert_refused(function, path, *words):
    with pytest.raises(InputError) as refused:
        function(path)
    text = str(refused.value)
    assert text.startswith(f"{path}: ") and "\n" not in text and len(text) < 500
    for word in words:
        assert word in text, text


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights"


# ---- honest files ----


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["x", "x.pth", "x.pkl", "x.safetensors", "x.t7"])
def test_round_trip_whatever_the_name(tmp_path, form, name):
    path = write(tmp_path / name, form)
    kind = "torch" if form in ("zip", "legacy") else form
    contents = read_container(path)
    assert container_kind(path) == container_kind(str(path)) == contents.kind == kind
    tensors, extras = tensors_of(contents, path)
    given = make_tensors()
    assert_tensors({k: tensors[k] for k in given}, given)
    assert len(tensors) == len(given) and extras == {}


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_whole_checkpoint_of_a_run(path, form):
    """Everything a training loop keeps, and tensors that share a storage."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.ones(1, 3, 5, 5)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 3])
    state = model.state_dict()
    state["again"], state["part"] = state["0.weight"], state["0.weight"][1:3].transpose(0, 1)
    state["parameter"] = torch.nn.Parameter(torch.ones(2))
    tree = {
        "state_dict": state,
        "optimizer": optimizer.state_dict(),
        "scheduler": schedule.state_dict(),
        "epoch": 3,
        "arch": "resnext50_32x4d",
        "best": torch.tensor(0.5),
        "rest": [torch.float16, torch.device("cuda:0"), torch.Size([1, 2]), {1, 2}, b"x"],
    }
    torch.save(tree, path, _use_new_zipfile_serialization=form == "zip")
    tensors, extras = read(path)
    assert_tensors(tensors, {k: v.detach() for k, v in state.items()})
    assert extras == {
        "optimizer": "(dict of 2)",
        "scheduler": f"(dict of {len(schedule.state_dict())})",
        "epoch": 3,
        "arch": "resnext50_32x4d",
        "best": "(tensor of ())",
        "rest": "(list of 5)",
    }


def test_compressed_torch_zip(path, tmp_path):
    write(path, "zip")
    repacked = tmp_path / "repacked"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(repacked, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    assert_tensors(read(repacked)[0], make_tensors())


def test_torch7_is_only_told(path):
    """The kind of an object, as Torch7's torch.save writes it, and of a table."""
    path.write_bytes(
        struct.pack("<iii", 4, 1, 3) + b"V 1" + struct.pack("<i", 13) + b"nn.Sequential"
    )
    assert read_container(path) == Contents("torch7", None)
    path.write_bytes(struct.pack("<iii", 3, 1, 0))
    assert container_kind(path) == "torch7"


# ---- what is not weights ----


def tar_of(name):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo(name))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\n \xef\xbb\xbf<HTML lang=en>", "web page"),
        (b"<?xml version='1.0'?><Error>AccessDenied", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "git lfs pull"),
        (b"\x1f\x8b\x08\x00" + bytes(20), "gunzip"),
        (b"BZh91AY", "bunzip2"),
        (b"\xfd7zXZ\x00", "unxz"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"\x93NUMPY\x01\x00", "single NumPy array"),
        (b"4\n1\n3\nV 1\n13\nnn.Sequential", "binary form"),
        (tar_of("model.pth"), "tar archive"),
        (tar_of(LEGACY_START.decode("utf-8", "surrogateescape")), "tar archive"),  # both at once
        (b"{", "no weights file (it begins with 7b)"),
        (b'{"message": "Not Found"}', "no weights file"),
        (bytes(100), "no weights file (it begins with 00 00"),
        (b"\xff" * 8 + b"{" + bytes(50), "no weights file"),
        (b"PK", "no weights file"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("function", [container_kind, read_container])
def test_other_contents(path, function, content, words):
    path.write_bytes(content)
    assert_refused(function, path, words)


@pytest.mark.parametrize("function", [container_kind, read_container])
def test_no_file(tmp_path, function):
    assert_refused(function, tmp_path / "none.pth", "does not exist")
    assert_refused(function, tmp_path, "is a folder", "give a file in it")


# ---- damage ----


@pytest.mark.parametrize("form", FORMS)
def test_cut_off_anywhere(path, form):
    content = write(path, form).read_bytes()
    step = max(1, len(content) // 60)
    for end in [0, 1, 4, 8, 9, 20, *range(21, len(content), step), len(content) - 1]:
        path.write_bytes(content[:end])
        assert_refused(read, path)


@pytest.mark.parametrize("form", FORMS)
def test_flipped_bytes(path, form):
    """Ends in tensors or an InputError that names the file, never in another error."""
    content = write(path, form).read_bytes()
    rng = np.random.default_rng(0)
    refusals = 0
    for _ in range(300):
        damaged = bytearray(content)
        for position in rng.integers(len(content), size=rng.integers(1, 6)):
            damaged[position] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            read(path)
        except InputError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
            refusals += 1
    assert refusals > 20


def test_flipped_bytes_in_the_pickle_of_a_zip(path):
    """The archive's checksums are right, so that the pickle itself is what is looked at."""
    content = write(path, "zip").read_bytes()
    rng = np.random.default_rng(0)

    def damage(name, data):
        data = bytearray(data)
        if name == "data.pkl":
            data[rng.integers(len(data))] = rng.integers(256)
        return bytes(data)

    refusals = 0
    for _ in range(300):
        path.write_bytes(content)
        repack(path, damage)
        try:
            read(path)
        except InputError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
            refusals += 1
    assert refusals > 100


# ---- hostile files ----


class Attack:
    """What a pickle can do: unpickling this makes a folder."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_a_command_is_named_and_not_run(path, tmp_path, form):
    made = tmp_path / "made"
    write(path, form, {"conv1.weight": torch.zeros(2), "attack": Attack(made)})
    assert_refused(
        read_container, path, f"asks for {os.name}.mkdir", "torch.save(model.state_dict()"
    )
    assert not made.exists()
    if form == "pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert made.exists()  # it would have run


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_a_whole_model_is_named(path, form):
    write(path, form, {"model": torch.nn.Linear(2, 2)})
    assert_refused(read_container, path, "asks for torch.nn.modules.linear.Linear", "state dict")


def repack(path, change=lambda name, data: data, **added):
    """A torch.save file with its entries changed: (name without folder, bytes) -> bytes or None."""
    with zipfile.ZipFile(path) as old:
        entries = {
            e.filename: change(e.filename.split("/", 1)[1], old.read(e)) for e in old.infolist()
        }
    folder = next(iter(entries)).split("/")[0]
    with zipfile.ZipFile(path, "w") as new:
        for name, data in entries.items():
            if data is not None:
                new.writestr(name, data)
        for name, data in added.items():
            new.writestr(f"{folder}/{name}", data)


def test_short_record(path):
    """Older torch reads what lies behind it in memory."""
    repack(write(path, "zip"), lambda name, data: data[:-4] if name == "data/0" else data)
    assert_refused(read_container, path, "data/0 is not of 432 bytes")


def test_missing_record(path):
    repack(write(path, "zip"), lambda name, data: None if name == "data/1" else data)
    assert_refused(read_container, path, "data/1 is not of 32 bytes")


def test_zip_bomb(path, tmp_path):
    write(path, "zip", {"w": torch.zeros(10_000_000)})
    bomb = tmp_path / "bomb"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    assert_refused(read_container, bomb, "unpacks to far more than its own size")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["data.pkl", "DATA.pkl"])
def test_two_entries_of_one_name(path, name):
    repack(write(path, "zip"), **{name: b"\x80\x02}."})
    assert_refused(read_container, path, "two entries of one name")


@pytest.mark.parametrize("behind", ["another archive", "a comment"])
def test_zip_that_is_not_the_whole_file(path, tmp_path, behind):
    content = write(path, "zip").read_bytes()
    if behind == "another archive":
        path.write_bytes(
            content + write(tmp_path / "other", "zip", {"w": torch.ones(9)}).read_bytes()
        )
    else:
        path.write_bytes(content[:-2] + b"\x05\x00hello")
    assert zipfile.is_zipfile(path)
    assert_refused(read_container, path, "something before or behind it")


def test_zip_of_something_else(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "x")
    assert_refused(read_container, path, "without torch's data.pkl", "state dict")


def test_torchscript(path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    assert_refused(read_container, path, "TorchScript archive", "give a state dict")


def test_newer_pickle_protocol(path):
    torch.save(make_tensors(), path, pickle_protocol=4)
    assert_refused(read_container, path, "protocol 4", "save it with the default")


def test_zip_behind_a_legacy_file(path, tmp_path):
    """torch reads what comes first: that is what must be looked at."""
    made, honest = tmp_path / "made", write(tmp_path / "honest", "zip")
    write(path, "legacy", {"attack": Attack(made)})
    path.write_bytes(path.read_bytes() + honest.read_bytes())
    assert zipfile.is_zipfile(path)
    assert_refused(read_container, path, f"asks for {os.name}.mkdir")


def test_legacy_storages_that_nothing_uses(path):
    content = write(path, "legacy", {"w": torch.arange(3.0)}).read_bytes()
    at = content.rindex(b"]q\x00X")
    path.write_bytes(content[:at] + b"]." + content[at:])
    assert_refused(read_container, path, "its storages are not those that its tensors use")


READ_ALL = """
import sys
from resnext_det.errors import InputError
from resnext_det.weights.containers import read_container
for path in sys.argv[1:]:
    try:
        read_container(path)
    except InputError as error:
        print(error)
"""


def test_a_deep_key_does_not_end_the_interpreter(tmp_path):
    """torch.load(weights_only=True) crashes on it; hence in a process of its own."""
    deep = b"\x80\x02})" + b"\x85" * 300_000 + b"Ns."
    one, two = write(tmp_path / "zip", "zip"), tmp_path / "legacy"
    repack(one, lambda name, data: deep if name == "data.pkl" else data)
    two.write_bytes(LEGACY_START + b"\x80\x02M\xe9\x03." + b"\x80\x02}." + deep)
    done = subprocess.run(
        [sys.executable, "-c", READ_ALL, one, two], capture_output=True, text=True
    )
    assert done.returncode == 0
    found = done.stdout.splitlines()
    assert len(found) == 2 and all("key of type tuple" in line for line in found)


# ---- from contents to tensors ----


def told(tree, kind="torch"):
    return tensors_of(Contents(kind, tree), "file.pth")


def refuse(tree, *words, kind="torch"):
    assert_refused(lambda _: told(tree, kind), "file.pth", *words)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda t: {"model": t},
        lambda t: {"state_dict": t},
        lambda t: {"model_state_dict": t},
        lambda t: {"model_state": t},
        lambda t: {"blobs": t},
        lambda t: {"state_dict_ema": t},
        lambda t: {"model": {"state_dict": t}},
        lambda t: {"state_dict": {"model": {"blobs": t}}},
        lambda t: collections.OrderedDict(state_dict=collections.OrderedDict(t)),
    ],
)
def test_wrappers(wrap):
    tensors, extras = told(wrap(make_tensors()))
    assert_tensors(tensors, make_tensors())
    assert extras == {}


def test_plain_weights_go_before_averaged_ones(caplog):
    ones, zeros = {"w": torch.ones(2)}, {"w": torch.zeros(2)}
    with caplog.at_level("INFO", logger="resnext_det"):
        tensors, extras = told({"state_dict_ema": zeros, "state_dict": ones, "epoch": 3})
    assert torch.equal(tensors["w"], torch.ones(2))
    assert extras == {"state_dict_ema": "(dict of 1)", "epoch": 3}
    assert "'state_dict'; 'state_dict_ema' is left" in caplog.text


def test_extras_are_small():
    tree = {
        "model": {"state_dict": make_tensors(), "inner": 1.5},
        "__author__": "torchvision",
        "matching_heuristics": True,
        "args": None,
        "optimizer": {"state": {0: torch.zeros(1000)}, "param_groups": []},
        "cfg": "x" * 5000,
        "score": np.float64(0.25),
    }
    assert told(tree)[1] == {
        "__author__": "torchvision",
        "matching_heuristics": True,
        "args": None,
        "optimizer": "(dict of 2)",
        "cfg": "(str of 5000)",
        "score": 0.25,
        "inner": 1.5,
    }


def test_a_wrapper_s_name_without_tensors_is_no_wrapper():
    refuse({"w": torch.zeros(2), "model": {"depth": 50}}, "model is (dict of 1), not a tensor")


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "model.net."],
)
def test_common_prefixes_come_off(prefix):
    given = make_tensors()
    assert_tensors(told({prefix + k: v for k, v in given.items()})[0], given)


@pytest.mark.parametrize(
    "names", [["module.a", "b"], ["module.a", "module."], ["encoder.a", "encoder.b"]]
)
def test_other_prefixes_stay(names):
    assert list(told({name: torch.zeros(1) for name in names})[0]) == names


def test_detectron1_notes_and_momentum():
    blobs = {
        "conv1_w": np.ones((2, 3), "f4"),
        "conv1_w_momentum": np.zeros((2, 3), "f4"),
        "res5_w": None,
        "weight_order": "OIHW",
    }
    tensors, extras = told({"blobs": blobs, "cfg": "MODEL: {}\n"}, kind="pickle")
    assert {k: tuple(v.shape) for k, v in tensors.items()} == {
        "conv1_w": (2, 3),
        "conv1_w_momentum": (2, 3),
    }
    assert extras == {"cfg": "MODEL: {}\n", "res5_w": None, "weight_order": "OIHW"}
    refuse({"conv1_w": torch.ones(2), "weight_order": "OIHW"}, "weight_order is (str of 4)")


@pytest.mark.parametrize("tree", [[], 5, None, torch.zeros(2), "x", ({},)])
def test_no_dict(tree):
    refuse(tree, "not a dict of tensors", "state dict")


@pytest.mark.parametrize("tree", [{}, {"a": None}, {"cfg": "x"}])
def test_no_tensors(tree):
    refuse(tree, "holds no tensors", kind="pickle")


def quantised():
    return torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize(
    "value, words",
    [
        (5, "w is (int), not a tensor"),
        ("text", "w is (str of 4)"),
        (None, "w is (NoneType)"),
        ({"a": torch.zeros(1)}, "w is (dict of 1)"),
        (torch.eye(3).to_sparse(), "w is a sparse tensor"),
        (quantised, "w is a quantised tensor"),
        (torch.zeros(2, dtype=torch.complex64), "w is a complex tensor"),
        (torch.zeros(2, device="meta"), "w is a meta"),
        (torch.tensor([1.0, float("nan")]), "w holds NaN or infinity"),
        (torch.tensor([1.0, float("-inf")]).half(), "w holds NaN or infinity"),
        (torch.tensor([float("nan")]).to(torch.float8_e4m3fn), "w holds NaN or infinity"),
        (np.array([np.inf], "f4"), "w holds NaN or infinity"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_no_usable_tensor(value, words):
    refuse({"first": torch.zeros(2), "w": value() if callable(value) else value}, words)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize(
    "value, words",
    [
        (torch.eye(3).to_sparse(), "a sparse tensor"),
        (quantised, "a quantised tensor"),
        (torch.zeros(2, device="meta"), "a meta tensor"),
        (torch.zeros(1, dtype=torch.int8).expand(2**40), "far more memory than its own size"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_no_usable_tensor_in_a_file(path, form, value, words):
    write(path, form, {"w": value() if callable(value) else value})
    assert_refused(read_container, path, words)


def test_names_are_texts():
    refuse({5: torch.zeros(2)}, "(int), not by text")


def test_names_cannot_break_the_line():
    refuse({"a\nb" * 100: 5}, "not a tensor")
