"""Guard the way in for the paper's own weights: Torch7 files give the network that they hold.

Read back, a network computes what it computed before, exactly; any other file or network is
refused in one line that names the file and what stands there, whatever its bytes are.
"""

import random
import struct
import tracemalloc

import numpy as np
import pytest
import torch
from torch7_writer import (
    Function,
    NetworkWriter,
    Storage,
    Tensor,
    Torch7Writer,
    empty,
    tensor,
    torch7_bytes,
)

from resnext_det.errors import InputError
from resnext_det.models import build_resnext
from resnext_det.weights.torch7 import MAX_DEPTH, TorchObject, read_torch7
from resnext_det.weights.torch7_modules import torch7_weights

FLOATS = np.arange(24, dtype=np.float32)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.t7"


def read(path, value, version="V 1"):
    path.write_bytes(torch7_bytes(value, version))
    return read_torch7(path)


def assert_refused(function, path, *words):
    with pytest.raises(InputError) as refused:
        function(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 600
    for word in words:
        assert word in str(refused.value)


# ---- values ----


@pytest.mark.parametrize(
    "value, found",
    [
        (None, None),
        (True, True),
        (False, False),
        (3, 3),
        (-0.5, -0.5),
        (1e300, 1e300),
        (float("inf"), float("inf")),
        ("", ""),
        ("a\x00b\xff", "a\x00b\xff"),
        ({}, {}),
        (["a", 2, [True]], ["a", 2, [True]]),
        ({2: "b", 1: "a"}, ["a", "b"]),
        ({0: "a", 1: "b"}, {0: "a", 1: "b"}),
        ({1: "a", 3: "b"}, {1: "a", 3: "b"}),
        ({"x": {"y": 1.5}, 1: "a"}, {"x": {"y": 1.5}, 1: "a"}),
        ({"x": None, "y": 1}, {"y": 1}),
    ],
)
def test_values(path, value, found):
    read_back = read(path, value)
    assert read_back == found and type(read_back) is type(found)


def test_bytes_of_a_known_file(path):
    """Written out by hand: {hello = 123}, as torch.save lays it down."""
    path.write_bytes(
        bytes.fromhex("03000000 01000000 01000000")  # table, index 1, one entry
        + bytes.fromhex("02000000 05000000 68656c6c6f")  # string of 5
        + bytes.fromhex("01000000 0000000000c05e40")  # number, a double
    )
    assert read_torch7(path) == {"hello": 123}


def test_bytes_of_a_known_tensor(path):
    """By hand: torch.FloatTensor({{1, 2}, {3, 4}}):t(), transposed by strides (1, 2)."""
    path.write_bytes(
        struct.pack("<iii3si17s", 4, 1, 3, b"V 1", 17, b"torch.FloatTensor")
        + struct.pack("<i5q", 2, 2, 2, 1, 2, 1)
        + struct.pack("<iii3si18sq4f", 4, 2, 3, b"V 1", 18, b"torch.FloatStorage", 4, 1, 2, 3, 4)
    )
    assert read_torch7(path).tolist() == [[1, 3], [2, 4]]


@pytest.mark.parametrize("dtype", ["u1", "i4", "i8", "f2", "f4", "f8"])
def test_tensors_and_storages(path, dtype):
    array = np.arange(6).reshape(2, 3).astype(dtype)
    found, storage = read(path, [tensor(array), Storage(array.ravel())])
    assert found.dtype == storage.dtype == array.dtype
    assert found.tolist() == array.tolist() and storage.tolist() == array.ravel().tolist()


@pytest.mark.parametrize(
    "sizes, strides, offset, found",
    [
        ((2, 3), (3, 1), 1, [[0, 1, 2], [3, 4, 5]]),
        ((3, 2), (1, 3), 2, [[1, 4], [2, 5], [3, 6]]),
        ((3,), (2,), 20, [19, 21, 23]),
        ((2, 1), (1, 2**62), 5, [[4], [5]]),
        ((24,), (0,), 24, [23] * 24),
        ((), (), 7, []),
        ((0, 5), (5, 1), 99, []),
    ],
)
def test_strides_and_offsets(path, sizes, strides, offset, found):
    value = Tensor(Storage(FLOATS), sizes, strides, offset)
    assert read(path, value).tolist() == found


def test_cuda_tensors(path):
    """cutorch's float tensor has no "Float" in its name."""
    found = read(path, Tensor(Storage(FLOATS, "Cuda"), (24,), (1,), kind="Cuda"))
    assert found.dtype == np.float32 and found.tolist() == FLOATS.tolist()


def test_empty_tensors(path):
    assert read(path, empty()).size == 0
    assert read(path, Tensor(Storage(FLOATS[:0]), (), ())).size == 0


def test_what_is_shared_stays_shared(path):
    storage, table = Storage(FLOATS), {"a": 1}
    first, second = Tensor(storage, (4,), (1,)), Tensor(storage, (4,), (1,), 3)
    found = read(path, [first, second, first, table, table])
    assert found[0] is found[2] and found[3] is found[4]
    assert np.shares_memory(found[0], found[1]) and found[1].tolist() == [2, 3, 4, 5]


@pytest.mark.parametrize("version", ["V 1", "V 2", None])
def test_objects(path, version):
    """Files from before class versions name the class at once."""
    found = read(path, TorchObject("nn.Linear", {"weight": tensor(FLOATS), "n": 4}), version)
    assert found.class_name == "nn.Linear" and found.fields["n"] == 4
    assert found.fields["weight"].tolist() == FLOATS.tolist()


@pytest.mark.parametrize("tag", [6, 7, 8])
def test_functions_are_passed_over(path, tag):
    """An object inside a function's upvalues may be meant again behind it."""
    inside = {"deep": 1}
    function = Function(b"\x1bLua bytecode", [{"name": "x", "value": inside}], tag)
    assert read(path, {"reset": function, "a": inside, "b": 2}) == {"a": {"deep": 1}, "b": 2}


def test_deep_but_not_too_deep(path):
    value = "bottom"
    for _ in range(MAX_DEPTH):
        value = {"down": value}
    found = read(path, value)
    for _ in range(MAX_DEPTH):
        found = found["down"]
    assert found == "bottom"
    assert_refused(lambda path: read(path, {"down": value}), path, "nested more than 100 deep")


# ---- files that are refused ----


def ints(*values):
    return struct.pack(f"<{len(values)}i", *values)


def tensor_bytes(sizes, strides, offset, storage=FLOATS):
    return torch7_bytes(
        Tensor(None if storage is None else Storage(storage), sizes, strides, offset)
    )


def class_bytes(name, content=b""):
    return ints(4, 1, 3) + b"V 1" + ints(len(name)) + name + content


def cycle_bytes():
    table = {}
    table["self"] = {"up": table}
    return torch7_bytes(table)


def cyclic_object_bytes():
    layer = TorchObject("nn.Linear", {})
    layer.fields["self"] = layer
    return torch7_bytes(layer)


HOSTILE = {
    "empty": (b"", "is empty"),
    "cut off": (ints(1), "8 bytes are due, but 0 are left"),
    "three bytes": (b"\x01\x00\x00", "4 bytes are due, but 3 are left"),
    "wrong magic": (b"PK\x03\x04rest of a zip", "type 67324752 is none of"),
    "ascii mode": (b"4\n1\n3\nV 1\n13\nnn.Sequential\n", "is none of Torch7's 0..8"),
    "negative type": (ints(-1), "type -1"),
    "bytes behind": (ints(0, 0), "4 bytes follow the object, which ends at byte 4"),
    "boolean": (ints(5, 2), "a boolean is 2"),
    "long string": (ints(2, 2**31 - 1), "2147483647 bytes are due"),
    "negative string": (ints(2, -5), "-5 bytes are due"),
    "huge table": (ints(3, 1, 2**31 - 1), "a table of 2147483647 entries"),
    "negative table": (ints(3, 1, -1), "a table of -1 entries"),
    "key nil": (ints(3, 1, 1) + ints(0, 0, 0, 0), "a table's key is nil"),
    "key boolean": (ints(3, 1, 1) + ints(5, 1, 0), "a table's key is True"),
    "key table": (torch7_bytes([1])[:12] + ints(3, 2, 0, 0), "a table's key is a table of 0"),
    "key no number": (torch7_bytes({float("nan"): 1}), "a table's key is nan"),
    "key twice": (ints(3, 1, 2) + 2 * (ints(2, 1) + b"k" + ints(5, 1)), "the key 'k' twice"),
    "cycle": (cycle_bytes(), "object 1 holds itself"),
    "cyclic object": (cyclic_object_bytes(), "object 1 holds itself"),
    "class name": (class_bytes(b"nn.\nx"), r"the class name is 'nn.\nx'"),
    "class name long": (class_bytes(b"n" * 5000), "the class name is 'nnn"),
    "class of no table": (class_bytes(b"torch.Timer", ints(0)), "torch.Timer holds nil, no table"),
    "function cut off": (ints(8, 1, 900) + b"\x1bLua", "900 bytes are due"),
    "storage of 2^60": (class_bytes(b"torch.FloatStorage", struct.pack("<q", 2**60)), f"{2**62} b"),
    "negative storage": (class_bytes(b"torch.FloatStorage", struct.pack("<q", -1)), "-4 bytes"),
    "negative dimensions": (class_bytes(b"torch.FloatTensor", ints(-1)), "a tensor has -1 dim"),
    "many dimensions": (class_bytes(b"torch.FloatTensor", ints(10**6)), "a tensor has 1000000 dim"),
    "negative size": (tensor_bytes((-2, 3), (3, 1), 1), "sizes (-2, 3) and strides (3, 1)"),
    "negative stride": (tensor_bytes((2, 3), (-3, 1), 9), "sizes (2, 3) and strides (-3, 1)"),
    "offset 0": (tensor_bytes((2,), (1,), 0), "offset 0 reaches outside its storage of 24"),
    "offset behind": (tensor_bytes((2,), (1,), 24), "offset 24 reaches outside its storage of 24"),
    "offset far": (tensor_bytes((2,), (1,), -(2**63)), "reaches outside"),
    "one too many": (tensor_bytes((5, 5), (5, 1), 1), "sizes (5, 5), strides (5, 1) and offset 1"),
    "far stride": (tensor_bytes((2, 2), (2**62, 1), 1), "reaches outside"),
    "overlap": (tensor_bytes((2**20, 2**20), (0, 0), 1), "(1048576, 1048576) overlaps itself"),
    "no storage": (tensor_bytes((2,), (1,), 1, None), "a tensor's storage is nil"),
    "other storage": (tensor_bytes((2,), (1,), 1, np.zeros(4)), "is an array of float64 (4,)"),
    "deep tables": (
        b"".join(ints(3, i, 1, 2, 0) for i in range(1, 10_001)),
        "nested more than 100 deep",
    ),
    "deep functions": (b"".join(ints(8, i, 0) for i in range(1, 10_001)), "nested more than 100"),
    "deep tensors": (
        b"".join(
            ints(4, i, 17) + b"torch.FloatTensor" + ints(0) + struct.pack("<q", 1)
            for i in range(1, 10_001)
        ),
        "nested more than 100 deep",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("function", [read_torch7, torch7_weights])
def test_hostile_files(path, name, function):
    data, words = HOSTILE[name]
    path.write_bytes(data)
    assert_refused(function, path, words)


def test_no_file(tmp_path):
    assert_refused(read_torch7, tmp_path / "none.t7", "does not exist")
    assert_refused(torch7_weights, tmp_path, "is a folder")


def peak_memory(function, path):
    tracemalloc.start()
    try:
        with pytest.raises(InputError) as refused:
            function(path)
        return tracemalloc.get_traced_memory()[1], str(refused.value)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["huge table", "storage of 2^60", "overlap", "many dimensions"])
def test_a_small_file_takes_little_memory(path, name):
    path.write_bytes(HOSTILE[name][0])
    assert peak_memory(read_torch7, path)[0] < 2**20


def test_the_number_of_values_is_bounded(path, monkeypatch):
    """Each entry of 16 bytes costs ten times that in Python."""
    monkeypatch.setattr("resnext_det.weights.torch7.MAX_VALUES", 20_000)
    entry = struct.Struct("<idi")  # a number as key, nil as value
    entries = b"".join(entry.pack(1, number, 0) for number in range(100_000))
    path.write_bytes(ints(3, 1, 100_000) + entries)
    peak, text = peak_memory(read_torch7, path)
    assert "more than 20000 values" in text and peak < 3 * path.stat().st_size


# ---- networks ----

WIDTH = 1 / 16  # 4 channels in the stem, 128 behind res5


def random_model(depth=14, cardinality=4, width=WIDTH, num_classes=5, seed=0):
    """In evaluation mode, with random weights and BN statistics."""
    generator = torch.Generator().manual_seed(seed)
    model = build_resnext(depth, cardinality, 16, width_multiplier=width, num_classes=num_classes)
    for name, value in model.state_dict().items():
        if name.endswith("running_var") or name.endswith("norm.weight"):
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
        elif name.endswith(("running_mean", "bias")):
            value.copy_(torch.randn(value.shape, generator=generator))
        elif value.is_floating_point():
            fan_in = value[0].numel()
            value.copy_(torch.randn(value.shape, generator=generator) * (2 / fan_in) ** 0.5)
    return model.eval()


MODEL = random_model()


def outputs(model, size=64):
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(images)["linear"]


def load(tensors, like):
    """Into a new model, strictly: every tensor has a place and every place a tensor."""
    model = build_resnext(
        like.architecture.depth,
        like.architecture.cardinality,
        like.architecture.bottleneck_width,
        width_multiplier=like.architecture.width_multiplier,
        num_classes=like.linear.out_features,
    )
    counters = {k: v for k, v in model.state_dict().items() if k.endswith("num_batches_tracked")}
    model.load_state_dict(tensors | counters, strict=True)
    return model.eval()


def write_network(path, model=MODEL, change=None, **options):
    """``change`` is called with the network, a tree of TorchObject, before it is written."""
    network = NetworkWriter(model, **options).network()
    if change is not None:
        change(network)
    path.write_bytes(torch7_bytes(network))
    return network


@pytest.mark.parametrize("layout", ["released", "flat"])
@pytest.mark.parametrize("package", ["mixed", "cudnn", "nn"])
def test_a_network_gives_the_same_outputs(path, layout, package):
    write_network(path, layout=layout, package=package)
    tensors, _ = torch7_weights(path)
    for name, value in MODEL.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(tensors[name], value), name
            assert tensors[name].dtype == torch.float32 and tensors[name].is_contiguous(), name
    assert torch.equal(outputs(load(tensors, MODEL)), outputs(MODEL))


@pytest.mark.parametrize("depth, cardinality", [(26, 1), (26, 2), (29, 4), (50, 8)])
def test_other_members_of_the_family(path, depth, cardinality):
    """ResNet (one group), CIFAR (29 layers), and the paper's 50 layers."""
    model = random_model(depth, cardinality)
    write_network(path, model)
    tensors, _ = torch7_weights(path)
    assert torch.equal(outputs(load(tensors, model), 32), outputs(model, 32))


def test_no_weight_is_taken_twice_and_order_counts(path):
    """Blocks of one stage have equal shapes: exchanged ones would load without a word."""
    model = random_model(26)
    write_network(path, model)
    tensors, _ = torch7_weights(path)
    first, second = tensors["res2.0.conv3.weight"], tensors["res2.1.conv3.weight"]
    assert first.shape == second.shape and not torch.equal(first, second)
    assert torch.equal(second, model.res2[1].conv3.weight)


def test_running_std(path):
    write_network(path, running_std=True)
    tensors, _ = torch7_weights(path)
    for name, value in MODEL.state_dict().items():
        if name.endswith("running_var"):
            torch.testing.assert_close(tensors[name], value, rtol=1e-6, atol=0)
    torch.testing.assert_close(outputs(load(tensors, MODEL)), outputs(MODEL), rtol=1e-4, atol=1e-4)


def test_a_running_std_of_no_variance(path):
    """Rounded to float32 it is a little below 0, which no variance is."""
    std = np.float32(1e-5**-0.5)
    assert np.float64(std) ** -2 < 1e-5 or np.float64(np.nextafter(std, 400)) ** -2 < 1e-5
    for value in (std, np.nextafter(std, np.float32(400))):
        write_network(path, change=deviations(value))
        variance = torch7_weights(path)[0]["stem.conv1.norm.running_var"]
        assert 0 <= variance[3] < 1e-11 and (variance[:3] > 0.9).all()


@pytest.mark.parametrize("gradients", [True, False])
def test_what_is_dropped_is_said(path, gradients):
    def run(network):
        layer(network, 1).fields |= {"gradInput": tensor(FLOATS), "reset": Function(b"", {})}
        layer(network, 5, 1, 2).fields["gradInput"] = [tensor(FLOATS), tensor(FLOATS)]

    write_network(path, gradients=gradients, change=run)
    _, dropped = torch7_weights(path)
    always = {
        "cudnn.SpatialConvolution.iSize": "sizes of the last batch (17 layers)",
        "cudnn.SpatialConvolution.gradInput": "gradient buffer (1 layers)",
        "nn.CAddTable.gradInput": "gradient buffer (1 layers)",
        "nn.View.size": "sizes of the last batch (1 layers)",
    }
    buffers = {
        "cudnn.SpatialConvolution.gradWeight": "gradient buffer (17 layers)",
        "nn.SpatialBatchNormalization.gradWeight": "gradient buffer (17 layers)",
        "nn.SpatialBatchNormalization.gradBias": "gradient buffer (17 layers)",
        "nn.Linear.gradWeight": "gradient buffer (1 layers)",
        "nn.Linear.gradBias": "gradient buffer (1 layers)",
    }
    assert dropped == (always | buffers if gradients else always)


def layer(network, *places):
    """``net:get(5):get(1)`` of Torch7 is layer(net, 5, 1)."""
    for place in places:
        network = network.fields["modules"][place - 1]
    return network


FIRST_PATH = (5, 1, 1, 1)  # of the released layout: {{conv, BN, ReLU, conv, BN, ReLU}, conv, BN}


def add_biases(network, value):
    for places in ((1,), (*FIRST_PATH, 1, 4), (5, 1, 1, 2, 1)):
        conv = layer(network, *places)
        size = conv.fields["nOutputPlane"]
        conv.fields["bias"] = tensor(np.full(size, value, np.float32))


def biased_model(value):
    model = random_model()
    for conv in (model.stem.conv1, model.res2[0].conv2, model.res2[0].shortcut):
        conv.bias = torch.nn.Parameter(torch.full((conv.out_channels,), value))
    return model


@pytest.mark.parametrize("value", [0.0, 0.75])
def test_a_bias_is_folded_into_the_mean(path, value):
    """resnext.lua of cudnn before version 4 leaves biases of 0."""
    write_network(path, change=lambda network: add_biases(network, value))
    tensors, dropped = torch7_weights(path)
    assert "subtracted from the running mean" in dropped["cudnn.SpatialConvolution.bias"]
    assert "(3 layers)" in dropped["cudnn.SpatialConvolution.bias"]
    found, wanted = outputs(load(tensors, MODEL)), outputs(biased_model(value))
    torch.testing.assert_close(found, wanted, rtol=0 if value == 0 else 1e-4, atol=1e-4 * value)
    moved = not torch.equal(found, outputs(MODEL))
    assert moved == bool(value)


def test_matrix_weights_and_old_padding(path):
    """nn.SpatialConvolutionMM: (out, in * kH * kW), and one ``padding`` for both axes."""

    def make_old(network):
        stem = layer(network, 1)
        stem.class_name = "nn.SpatialConvolutionMM"
        stem.fields |= {"weight": tensor(MODEL.stem.conv1.weight.detach().numpy().reshape(4, 147))}
        stem.fields |= {"padding": 3}
        for name in ("padW", "padH", "groups"):
            del stem.fields[name]

    write_network(path, change=make_old)
    tensors, _ = torch7_weights(path)
    assert torch.equal(tensors["stem.conv1.weight"], MODEL.stem.conv1.weight)


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_other_floats(path, dtype):
    weight = MODEL.linear.weight.detach().numpy().astype(dtype)

    def change(network):
        layer(network, 11).fields["weight"] = tensor(weight)

    write_network(path, change=change)
    tensors, _ = torch7_weights(path)
    assert np.array_equal(tensors["linear.weight"].numpy(), weight.astype(np.float32))


# ---- networks that are refused ----


def field(name, value, *places):
    def change(network):
        layer(network, *places).fields[name] = value

    return change


def class_of(name, *places):
    def change(network):
        layer(network, *places).class_name = name

    return change


def modules(edit, *places):
    """``edit`` changes the list of modules at the place."""

    def change(network):
        edit(layer(network, *places).fields["modules"])

    return change


def put(index, module):
    return lambda modules: modules.__setitem__(index, module)


def norm_behind_the_sum(network):
    """fb.resnet.torch's ResNet-50."""
    inner = layer(network, *FIRST_PATH).fields["modules"]
    layer(network, 5, 1).fields["modules"].insert(2, inner.pop())


def preactivation_path(network):
    modules = layer(network, *FIRST_PATH).fields["modules"]
    modules.insert(0, modules.pop())


def form_b(network):
    path = layer(network, *FIRST_PATH).fields["modules"]
    branches = [copied(path[0]) for _ in range(4)]
    path[:1] = [TorchObject("nn.ConcatTable", {"modules": branches}), JOIN]


def projection_where_none_belongs(network):
    """Shortcuts of type C."""
    layer(network, 5, 2, 1).fields["modules"][1] = copied(layer(network, 5, 1, 1, 2))


JOIN = TorchObject("nn.JoinTable", {"dimension": 2, "gradInput": {}})
IDENTITY = TorchObject("nn.Identity", {"output": empty()})
NORM = TorchObject("nn.SpatialBatchNormalization", {"eps": 1e-5})
HOLE = tensor(np.array([1, np.nan, 2, 3], np.float32))
SMALL = tensor(np.array([1, -1e-6, 2, 3], np.float32))


def deviations(last):
    """running_std, 1 / sqrt(variance + 1e-5), in place of the first norm's running_var."""

    def change(network):
        fields = layer(network, 2).fields
        fields["running_std"] = tensor(np.array([1, 1, 1, last], np.float32))
        del fields["running_var"]

    return change


OTHERS = {
    "last BN behind the sum": (norm_behind_the_sum, "5.1.3", "ResNet-50"),
    "pre-activation path": (preactivation_path, "5.1.1.1.1", "ResNet-200"),
    "pre-activation block": (modules(lambda m: m.insert(0, NORM), 6, 1), "6.1.1", "ResNet-200"),
    "pre-activation end": (modules(lambda m: m.insert(8, NORM)), "layer 9 ", "ResNet-200"),
    "form B": (form_b, "5.1.1.1.1", "form B"),
    "unknown class": (class_of("nn.Dropout", 10), "layer 10 (nn.Dropout)", "its class is none of"),
    "unknown conv": (
        class_of("nn.SpatialDilatedConvolution", 1),
        "layer 1 ",
        "its class is none of",
    ),
    "PReLU": (class_of("nn.PReLU", 3), "layer 3 (nn.PReLU)", "its class is none of"),
    "threshold": (field("threshold", 1e-6, 3), "layer 3 ", "threshold is 1e-06, but 0 is due"),
    "missing layer": (modules(lambda m: m.pop()), "has 10 layers, but 11 are due"),
    "three stages": (modules(lambda m: m.pop(4)), "layer 8 ", "sequence that is due"),
    "no blocks": (field("modules", [], 6), "layer 6 ", "table of 0 entries, not a list of layers"),
    "no modules": (field("modules", None, 6), "layer 6 ", "modules are nil"),
    "a number among": (modules(lambda m: m.append(3), 6), "layer 6 ", "not a list of layers"),
    "three branches": (modules(lambda m: m.append(NORM), 5, 1, 1), "5.1.1 ", "has 3 branches"),
    "a layer twice": (modules(lambda m: m.append(m[0]), 6), "layer 6.3 ", "two places"),
    "stem kernel": (field("kW", 3, 1), "layer 1 ", "kW is 3, but 7 is due here"),
    "stem stride": (field("dH", 1, 1), "layer 1 ", "dH is 1, but 2 is due here"),
    "stem padding": (field("padW", 0, 1), "layer 1 ", "padW is 0, but 3 is due here"),
    "old padding": (field("padding", 2, 1), "layer 1 ", "padding is 2, but 3 is due here"),
    "stem inputs": (field("nInputPlane", 1, 1), "layer 1 ", "nInputPlane is 1, but 3 is due"),
    "no kernel": (field("kH", None, 1), "layer 1 ", "kH is nil, but 7 is due here"),
    "stride in the 1x1": (field("dW", 2, 6, 1, 1, 1, 1, 1), "6.1.1.1.1.1 ", "dW is 2, but 1 is"),
    "3x3 without stride": (field("dW", 1, 6, 1, 1, 1, 1, 4), "6.1.1.1.1.4 ", "dW is 1, but 2 is"),
    "shortcut's stride": (field("dW", 1, 6, 1, 1, 2, 1), "6.1.1.2.1 ", "dW is 1, but 2 is due"),
    "groups in a 1x1": (field("groups", 4, *FIRST_PATH, 2), "groups is 4, but 1 is due"),
    "other groups": (field("groups", 2, 7, 1, 1, 1, 1, 4), "7.1.1.1.1.4 ", "groups is 2, but 4 is"),
    "uneven groups": (field("groups", 3, *FIRST_PATH, 1, 4), "4 channels do not make 3 groups"),
    "groups 0": (field("groups", 0, *FIRST_PATH, 1, 4), "groups is 0, no whole number"),
    "groups a table": (field("groups", {"a": 1}, *FIRST_PATH, 1, 4), "groups is a table of 1"),
    "channels": (field("nOutputPlane", 64, 6, 1, 1, 1, 2), "nOutputPlane is 64, but 32 is due"),
    "infinite channels": (field("nOutputPlane", float("inf"), 1), "nOutputPlane is inf, no whole"),
    "no projection": (modules(lambda m: m.append(m.pop(1)), 5, 1), "layer 5.1.2 ", "sum that is"),
    "type C": (projection_where_none_belongs, "layer 5.2.1.2 ", "identity that is due"),
    "identity": (modules(put(1, IDENTITY), 5, 1, 1), "5.1.1.2 ", "convolution that is due"),
    "max pool": (field("padW", 0, 4), "layer 4 ", "padW is 0, but 1 is due here"),
    "ceil mode": (field("ceil_mode", True, 4), "layer 4 ", "ceil_mode is True, but False is due"),
    "oblong pool": (field("kH", 6, 9), "layer 9 ", "kH is 6, but 7 is due here"),
    "no weight": (field("weight", None, 1), "layer 1 ", "weight is nil, but floats (4, 3, 7, 7)"),
    "weight's shape": (field("weight", tensor(FLOATS), 1), "weight is an array of float32 (24,)"),
    "a weight of tables": (field("weight", [[1, 2], [3]], 1), "weight is a table of 2 entries"),
    "whole weights": (field("weight", tensor(np.arange(4)), 2), "weight is an array of int64"),
    "bias of the linear": (field("bias", None, 11), "layer 11 (nn.Linear)", "bias is nil"),
    "linear's inputs": (field("weight", tensor(FLOATS.reshape(2, 12)), 11), "floats (2, 128)"),
    "not finite": (field("running_mean", HOLE, 2), "layer 2 ", "running_mean holds numbers that"),
    "variance": (field("running_var", tensor(-FLOATS[:4]), 2), "layer 2 ", "variance is negative"),
    "small variance": (field("running_var", SMALL, 2), "layer 2 ", "variance is negative"),
    "std too large": (deviations(400.0), "layer 2 ", "variance is negative"),
    "no variance": (field("running_var", None, 2), "layer 2 ", "running_var is nil"),
    "two variances": (field("running_std", tensor(FLOATS[:4]), 2), "both running_var and running"),
    "eps": (field("eps", 1e-3, 2), "layer 2 ", "eps is 0.001, but 1e-05 is due here"),
    "eps nil": (field("eps", None, 2), "layer 2 ", "eps is nil"),
    "unknown array": (field("mask", tensor(FLOATS), 1), "layer 1 ", "'mask' holds an array"),
    "unknown in a table": (field("x", {"y": [tensor(FLOATS)]}, 3), "layer 3 ", "'x' holds an arr"),
    "weights of a ReLU": (field("weight", tensor(FLOATS), 3), "layer 3 ", "'weight' holds an arr"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_networks(path, name):
    change, *words = OTHERS[name]
    write_network(path, random_model(26), change=change)
    assert_refused(torch7_weights, path, *words)


def test_the_sum_for_the_mean(path):
    """nn.SpatialAveragePooling from before ``divide`` gives the sum; cudnn's has no such field."""

    def without_divide(network):
        del layer(network, 9).fields["divide"]

    write_network(path, change=without_divide)
    torch7_weights(path)
    write_network(path, package="nn", change=without_divide)
    assert_refused(torch7_weights, path, "layer 9 ", "divide is False, but True is due here")


def test_eps_as_a_float_has_it(path):
    write_network(path, change=field("eps", float(np.float32(1e-5)), 2))
    torch7_weights(path)


@pytest.mark.parametrize("value", [None, 3, "text", {"modelFile": "model_90.t7"}, [1], NORM])
def test_no_network(path, value):
    path.write_bytes(torch7_bytes(value))
    assert_refused(torch7_weights, path, "not an nn.Sequential", "give one of the paper's networks")


def test_shared_weights_cannot_fill_the_memory(path):
    """Small files whose blocks all mean one storage would otherwise grow by their number."""

    model = random_model(26)

    def repeat(network):
        stage = layer(network, 8).fields["modules"]
        stage += [copied(stage[1]) for _ in range(40)]

    write_network(path, model, change=repeat)
    assert_refused(torch7_weights, path, "numbers that stand for other weights too")


def copied(module):
    """A new module with the same tensors, as Lua's table copy gives."""
    fields = dict(module.fields)
    if "modules" in fields:
        fields["modules"] = [copied(child) for child in fields["modules"]]
    return TorchObject(module.class_name, fields)


# ---- bytes cut off and bytes changed ----


def network_bytes():
    """The file, and the places of those bytes that are not numbers of a storage."""
    writer = Torch7Writer()
    writer.write(NetworkWriter(MODEL, gradients=False).network())
    inside = np.zeros(len(writer.data), bool)
    for start, end in writer.raw:
        inside[start:end] = True
    return bytes(writer.data), np.flatnonzero(~inside)


def test_cut_off_anywhere(path):
    data, structure = network_bytes()
    ends = {*range(0, 400), *structure[:: len(structure) // 200].tolist(), len(data) - 1}
    for end in sorted({*ends, *range(0, len(data), len(data) // 50)}):
        path.write_bytes(data[:end])
        assert_refused(torch7_weights, path)
    path.write_bytes(data)
    assert torch7_weights(path)[0].keys() >= {"linear.bias"}


def test_changed_bytes(path):
    """400 files of one to eight changed bytes: a refusal or a whole network, nothing else."""
    data, structure = network_bytes()
    generator, refused = random.Random(0), 0
    for number in range(400):
        changed = bytearray(data)
        for _ in range(generator.randint(1, 8)):
            anywhere = generator.randrange(len(data))
            place = anywhere if number % 4 == 0 else int(generator.choice(structure))
            changed[place] = generator.choice([0, 1, 127, 128, 255, generator.randrange(256)])
        path.write_bytes(changed)
        try:
            tensors, _ = torch7_weights(path)
        except InputError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
            refused += 1
        else:
            load(tensors, MODEL)
    assert 200 < refused < 400
