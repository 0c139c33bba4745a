"""Hostile weights files of every family that the package reads."""

import io
import json
import pickle
import pickletools
import struct
import sys
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random
from typing import Any

import torch
from fuzz_inputs import (
    LONG,
    Reader,
    changed_bytes,
    changed_entries,
    changed_pickle,
    changed_tree,
    hostile_pickle,
    hostile_value,
    one_of,
    require,
    zipped,
)

from resnext_det.models import Architecture
from resnext_det.weights import WeightsRecord, read_record, read_source, save_weights
from resnext_det.weights.torch7 import TorchObject

sys.path[:0] = [str(Path(__file__).parents[1] / "weights")]

from foreign import caffe2_names, detectron2_names, network, torchvision_names  # noqa: E402
from torch7_writer import Function, NetworkWriter, Storage, Tensor, torch7_bytes  # noqa: E402

SMALL = "X14_2x16d_w0.0625"


def _torch_bytes(tree: Any, **options) -> bytes:
    content = io.BytesIO()
    torch.save(tree, content, **options)
    return content.getvalue()


def _prepare(folder: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    model = network(SMALL, num_classes=2)
    names = torchvision_names(model)
    record = WeightsRecord(
        kind="classification",
        architecture=Architecture.from_name(SMALL).as_dict(),
        pixel_format="RGB",
        pixel_mean=[1.0, 2.0, 3.0],
        pixel_std=[1.0, 2.0, 3.0],
        class_names=["a", "b"],
        config="MODEL: {DEVICE: cpu}\n",
    )
    save_weights(folder / "own.safetensors", dict(model.state_dict()), record)
    whole = _torch_bytes({"state_dict": names, "epoch": 3})
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    wrapped = {"model": detectron2_names(model), "__author__": "torchvision"}
    wrapped["model"] = {k: v.numpy() for k, v in wrapped["model"].items()}
    return {
        "zip": entries,
        "legacy": _torch_bytes(names, _use_new_zipfile_serialization=False),
        "safetensors": (folder / "own.safetensors").read_bytes(),
        "pickle": [
            pickle.dumps(caffe2_names(model), protocol=2),
            pickle.dumps({"blobs": caffe2_names(model, fused=True)}, protocol=4),
            pickle.dumps(wrapped, protocol=5),
        ],
        "model": model,
        "torch7": torch7_bytes(NetworkWriter(model, gradients=False).network()),
    }


# ---- one maker a family ----


def _zip(random: Random, made_from: dict) -> bytes:
    entries = dict(made_from["zip"])
    if random.random() < 0.5:
        (name,) = (name for name in entries if name.endswith("data.pkl"))
        entries[name] = hostile_pickle(random, entries[name])
        return zipped(entries)
    return changed_entries(random, entries)


def _lying_tensors(random: Random, _: dict) -> bytes:
    """One tensor, whose sizes, strides and offset its storage need not have room for."""
    count, there = random.choice((0, 1, 2, 16)), random.choice((0, 0, 0, 1, -1))
    sizes = random.choice(((), (1,), (4, 4), (10**12,), (2**31, 2**31), (3,) * 40, (0, 10**18)))
    lies = (0, 0, 1, 1, 4, -1, 10**12, 2**62, 2**63)
    strides = [random.choice(lies) for _ in sizes[: random.choice((99, 99, 1))]]
    said = random.choice((count, count, count, 2**62, -1))
    pickled = (
        b"\x80\x02}X\x0c\0\0\0conv1.weightctorch._utils\n_rebuild_tensor_v2\n("
        b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0" + b"0X\3\0\0\0cpu" + _number(said)
    )
    pickled += b"tQ" + _number(random.choice(lies)) + _numbers(sizes) + _numbers(strides)
    pickled += b"\x89ccollections\nOrderedDict\n)RtRs."
    storage = bytes(max(4 * count + there, 0))
    return zipped({"x/data.pkl": pickled, "x/data/0": storage, "x/version": b"3\n"})


def _number(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def _numbers(values: Iterable[int]) -> bytes:
    return b"(" + b"".join(map(_number, values)) + b"t"


def _legacy(random: Random, made_from: dict) -> bytes:
    data = made_from["legacy"]
    if random.random() < 0.5:
        return changed_bytes(random, data)
    cuts = _pickle_ends(data, 5)
    place = random.randrange(5)
    start, end = cuts[place], cuts[place + 1]
    return data[:start] + changed_pickle(random, data[start:end]) + data[end:]


def _pickle_ends(data: bytes, count: int) -> list[int]:
    stream, ends = io.BytesIO(data), [0]
    for _ in range(count):
        for _ in pickletools.genops(stream):
            pass
        ends.append(stream.tell())
    return ends


def _safetensors(random: Random, made_from: dict) -> bytes:
    data = made_from["safetensors"]
    length = int.from_bytes(data[:8], "little")
    header, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
    what = random.random()
    if what < 0.2:
        return changed_bytes(random, data)
    if what < 0.5:
        record = changed_tree(random, json.loads(header["__metadata__"]["resnext_det"]))
        header["__metadata__"]["resnext_det"] = json.dumps(record)
    elif what < 0.75:
        entry = header[random.choice([name for name in header if name != "__metadata__"])]
        field = random.choice(list(entry))
        lies = ([-1, 4], [0, 2**63], [2**40, 2**41], [0, 0], [4, 0], [2**32, 2**32], [10**12, 0])
        codes = ("F64", "I8", "BOOL", "F8_E4M3", "C64", "F4", "U8", "BF16", "X")
        entry[field] = random.choice(codes if field == "dtype" else lies)
    else:
        header = changed_tree(random, header)
    text = json.dumps(header).encode()
    if what > 0.9:  # a name twice
        text = text.replace(b'"linear.bias"', b'"linear.weight"')
    length = random.choice(LONG) if random.random() < 0.1 else len(text)
    return (length % 2**64).to_bytes(8, "little") + text + rest


def _pickle(random: Random, made_from: dict) -> bytes:
    return hostile_pickle(random, random.choice(made_from["pickle"]))


def _torch7_tree(random: Random, made_from: dict) -> bytes:
    """The network's own objects with fields changed, and storages that do not hold the tensors."""
    tree = NetworkWriter(made_from["model"], gradients=False).network()
    places = _torch7_places(tree)
    for _ in range(random.choice((1, 1, 2))):
        container, key = random.choice(places)
        container[key] = _torch7_value(random, container[key])
    return _torch7_bytes(tree) or made_from["torch7"][:1000]


def _torch7_bytes(tree: Any) -> bytes:
    """b"" for what the format cannot say."""
    try:
        return torch7_bytes(tree)
    except (
        TypeError,
        AttributeError,
        OverflowError,
        UnicodeEncodeError,
        RecursionError,
        struct.error,
    ):
        return b""


def _torch7_places(tree: TorchObject) -> list[tuple[Any, Any]]:
    found, waiting = [], [tree.fields]
    while waiting:
        inside = waiting.pop()
        keys = list(inside) if isinstance(inside, dict) else range(len(inside))
        found += [(inside, key) for key in keys]
        for key in keys:
            value = inside[key]
            value = value.fields if isinstance(value, TorchObject) else value
            waiting += [value] if isinstance(value, dict | list) else []
    return found


def _torch7_value(random: Random, value: Any) -> Any:
    if isinstance(value, Tensor) and random.random() < 0.7:
        change = random.choice(("sizes", "strides", "offset", "storage", "kind"))
        if change in ("sizes", "strides"):
            values = tuple(random.choice((0, 1, -1, 4, 2**40, 2**62)) for _ in value.sizes)
            setattr(value, change, values)
        elif change == "offset":
            value.offset = random.choice((0, -1, 2**62, 10**6))
        elif change == "kind":
            value.kind = random.choice(("Double", "Byte", "Cuda", "Long", "X"))
        else:
            value.storage = random.choice((None, Storage(torch.zeros(3).numpy())))
        return value
    other = (
        Function(b"\x1bLua", {}),
        TorchObject("os.execute", {}),
        hostile_value(random),
    )
    return random.choice(other)


def _torch7(random: Random, made_from: dict) -> bytes:
    if random.random() < 0.4:
        return _torch7_tree(random, made_from)
    if random.random() < 0.1:
        return _torch7_bytes(changed_tree(random, {"a": [1, {"b": 2}], "c": "x"}))
    return changed_bytes(random, made_from["torch7"])


def _other(random: Random, _: dict) -> bytes:
    heads = (b"", b"<html>", b"PK\x03\x04", b"\x80\x02", b"\x8a\nl\xfc", b"version https://git-lfs")
    heads += (b"\x03\0\0\0\1\0\0\0", b"\x04\0\0\0\1\0\0\0", b"\x10\0\0\0\0\0\0\0{", b"\x1f\x8b")
    return random.choice(heads) + random.randbytes(random.choice((0, 1, 30, 2000)))


MAKERS: dict[Callable, int] = {
    _zip: 5,
    _lying_tensors: 2,
    _legacy: 3,
    _safetensors: 5,
    _pickle: 5,
    _torch7: 5,
    _other: 1,
}


def _make(random: Random, made_from: dict, folder: Path) -> Path:
    maker = one_of(random, MAKERS)
    path = folder / f"{maker.__name__.strip('_')}.weights"
    path.write_bytes(maker(random, made_from))
    return path


def _read(path: Path) -> None:
    """Record and tensors; the two agree, and every number is finite."""
    source = read_source(path)
    record = read_record(path)
    require(record == source.record, "the record is another without the tensors")
    require(bool(source.tensors), "no tensors")
    for name, tensor in source.tensors.items():
        require(tensor.device.type == "cpu" and not tensor.is_complex(), f"{name} {tensor.dtype}")
        is_finite = not tensor.is_floating_point() or bool(tensor.double().isfinite().all())
        require(is_finite, f"{name} is not finite")
    require(len(source.dropped) <= source.total, "more dropped than there are")


WEIGHTS = Reader("weights", _prepare, _make, _read, ("x.weights",))
