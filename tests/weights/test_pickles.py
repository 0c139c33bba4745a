"""Guard that a pickle is read as data: right where it is honest, never run, never a crash.

The hostile files here are such as end the interpreter, take gigabytes or run a command when
`pickle` itself reads them.
"""

import collections
import datetime
import fractions
import io
import os
import pickle
import struct
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import torch

from resnext_det.errors import InputError
from resnext_det.weights.machine import MAX_INSTRUCTIONS
from resnext_det.weights.pickles import read_pickle
from resnext_det.weights.torch_pickles import TorchPickle

ALL_PROTOCOLS = pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
START, STOP = b"\x80\x02", b"."
NDARRAY = b"cnumpy\nndarray\n"
RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n" + NDARRAY + b"K\x00\x85U\x01b\x87R"
DTYPE_STATE = b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"


def dtype_of(code):
    return b"cnumpy\ndtype\nU" + bytes([len(code)]) + code + b"K\x00K\x01\x87R" + DTYPE_STATE


def text2(text):
    """A text as Python 2 pickles it."""
    return b"T" + struct.pack("<I", len(text)) + text


def array2(values):
    """A float32 array as NumPy under Python 2 pickled it, as Caffe2's and Detectron1's are."""
    shape = b"(" + b"".join(b"K" + bytes([n]) for n in values.shape) + b"t"
    state = b"(K\x01" + shape + dtype_of(b"f4") + b"\x89" + text2(values.tobytes()) + b"tb"
    return RECONSTRUCT + state


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model_final.pkl"


@pytest.fixture
def refused(path):
    """refused(content, *words): the content is refused in one line with file and words."""

    def check(content, *words):
        path.write_bytes(content)
        with pytest.raises(InputError) as error:
            read_pickle(path)
        text = str(error.value)
        assert text.startswith(f"{path}: ") and "\n" not in text and len(text) < 500
        for word in words:
            assert word in text

    return check


def assert_same(found, given):
    assert type(found) is (dict if isinstance(given, dict) else type(given))
    if isinstance(given, dict):
        assert list(found) == list(given)
        for key in given:
            assert_same(found[key], given[key])
    elif isinstance(given, list | tuple):
        assert len(found) == len(given)
        for one, other in zip(found, given, strict=True):
            assert_same(one, other)
    elif isinstance(given, np.ndarray):
        assert found.dtype == given.dtype.newbyteorder("=")
        assert found.flags.c_contiguous and found.flags.writeable
        np.testing.assert_array_equal(found, given)
    else:
        assert found == given


# ---- honest files ----


def make_values():
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(4, 3, 2, 2)).astype("f4")
    arrays = {code: np.array([0, 1, 2]).astype(code) for code in "f2 f4 f8 i1 i8 u2 u8 b1".split()}
    return {
        "blobs": collections.OrderedDict(conv1_w=weight, twice=weight, **arrays),
        "fortran": np.asfortranarray(weight),
        "channels_last": weight.transpose(0, 2, 3, 1),
        "big_endian": weight.astype(">f4"),
        "number": np.array(5),
        "empty": np.zeros((0, 3), "f4"),
        "scalars": [np.float32(1.5), np.int64(-4), np.bool_(True)],
        "plain": [None, True, 2**40, -1.5, "Katze 鳥", b"\x00\xff", (1, ("a", []))],
        3: {},
    }


@ALL_PROTOCOLS
def test_values_as_pickle_reads_them(path, protocol):
    values = make_values()
    path.write_bytes(pickle.dumps(values, protocol=protocol))
    found = read_pickle(path)
    assert_same(found, values)
    assert found["blobs"]["conv1_w"] is found["blobs"]["twice"]


def test_python_2_file(path):
    """Texts are bytes there; both names and data come as latin1."""
    weight = np.random.default_rng(0).normal(size=(3, 2, 1)).astype("f4")
    content = START + b"}(" + text2(b"conv1_w") + array2(weight) + text2(b"b\xe9") + b"Nu."
    path.write_bytes(content)
    assert_same(read_pickle(path), {"conv1_w": weight, "bé": None})
    assert_same(pickle.loads(content, encoding="latin1"), {"conv1_w": weight, "bé": None})


def test_python_2_ordered_dict(path):
    """There it was pickled as a call with a list of pairs."""
    pairs = b"](](U\x01aK\x01e](U\x01bI99999999999\nee"
    path.write_bytes(START + b"ccollections\nOrderedDict\n" + pairs + b"\x85R.")
    assert read_pickle(path) == {"a": 1, "b": 99999999999}


def test_memory_is_a_few_times_the_file(path):
    path.write_bytes(pickle.dumps({str(i): np.ones(100_000, "f4") for i in range(20)}, protocol=2))
    tracemalloc.start()
    try:
        read_pickle(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * path.stat().st_size


# ---- other globals ----


class Calls:
    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


@ALL_PROTOCOLS
def test_a_command_is_named_and_not_run(refused, tmp_path, protocol):
    made = tmp_path / "made"
    content = pickle.dumps({"w": Calls(os.mkdir, str(made))}, protocol=protocol)
    refused(content, f"asks for {os.name}.mkdir, which a weights file has no use for", "torch.save")
    assert not made.exists()
    pickle.loads(content)  # it would have run
    assert made.exists()


@pytest.mark.parametrize(
    "value, name",
    [
        (Calls(eval, "1"), "builtin"),
        (Calls(getattr, "a", "b"), "getattr"),
        (Calls(bytearray, 10**12), "bytearray"),
        (np.random.default_rng, "numpy.random"),
        (np.load, "numpy.load"),
        (torch.zeros(2), "torch._utils._rebuild_tensor_v2"),
        (torch.nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
        (datetime.date(2020, 1, 1), "datetime.date"),
        (fractions.Fraction(1, 2), "fractions.Fraction"),
        (np.ma.masked_array([1.0]), "numpy.ma"),
        (np.rec.array([1.0]), "recarray"),
        (collections.Counter("ab"), "collections.Counter"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_another_global_is_named(refused, value, name):
    refused(pickle.dumps([value], protocol=2), "asks for", name)


@pytest.mark.parametrize(
    "body, name",
    [
        (b"(S'true'\nios\nsystem\n", "os.system"),  # INST
        (b"(cos\nsystem\nS'true'\no", "os.system"),  # OBJ
        (b"\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R", "os.system"),  # STACK_GLOBAL
        (b"\x8c\x03a\nb\x8c\x01c\x93", "asks for a,"),
        (b"cnumpy\nndarray.__class__\n", "numpy.ndarray.__class__"),
        (b"ccollections\nOrderedDict.fromkeys\n", "OrderedDict.fromkeys"),
        (b"(icollections\nOrderedDict\n", "INST"),
        (b"ccollections\nOrderedDict\n)\x81", "NEWOBJ"),
        (b"\x82\x01", "EXT1"),
        (b"Pname\n", "PERSID"),
        (b"K\x01Q", "unknown form"),  # BINPERSID
        (b"\x8f(K\x01\x90", "EMPTY_SET"),
        (b"\x97", "NEXT_BUFFER"),
    ],
    ids=repr,
)
def test_instructions_that_could_call(refused, body, name):
    refused(START + body + STOP, name)


# ---- the admitted names, misused ----


@pytest.mark.parametrize(
    "body, words",
    [
        (dtype_of(b"O8"), "array of Python objects (dtype O8)"),
        (dtype_of(b"V8"), "dtype V8"),
        (dtype_of(b"c8"), "dtype c8"),
        (dtype_of(b"S3"), "dtype S3"),
        (b"cnumpy\ndtype\nU\x02f4\x85R(K\x03U\x01<N(U\x01atNtb", "array with fields"),
        (b"cnumpy\ndtype\nU\x02f4\x85R}b", "array with fields"),
        (b"cnumpy\ndtype\n)R", "unknown form"),
        (b"cnumpy\ndtype\n}\x85R", "no text"),
        (b"cnumpy.core.multiarray\n_reconstruct\nccollections\nOrderedDict\n)U\x01b\x87R", "class"),
        (RECONSTRUCT + b"}b", "no state"),
        (RECONSTRUCT, "type Array"),
        (RECONSTRUCT + b"(K\x01K\x05\x85" + dtype_of(b"f4") + b"\x89](K\x01etb", "no bytes"),
        (RECONSTRUCT + b"(K\x01K\x05\x85U\x02f4\x89U\x04aaaatb", "no bytes"),
        (RECONSTRUCT + b"(K\x01J\xff\xff\xff\xff\x85" + dtype_of(b"f4") + b"\x89U\x00tb", "shape"),
        (
            RECONSTRUCT + b"(K\x01K\x02\x85" + dtype_of(b"f4") + b"\x89U\x04aaaatb",
            "4 bytes of data",
        ),
        (
            RECONSTRUCT + b"(K\x01(" + b"K\x01" * 40 + b"t" + dtype_of(b"i1") + b"\x89U\x01atb",
            "shape",
        ),
        (NDARRAY, "type Global"),
        (NDARRAY + b"K\x05\x85R", "no function"),
        (NDARRAY + b"}b", "no state"),
        (b"ccollections\nOrderedDict\n)R}U\x05itemsK\x01sb", "no state"),
        (b"ccollections\nOrderedDict\nN}U\x0c__defaults__)s\x86b", "no state"),
        (b"ccollections\nOrderedDict\nK\x05\x85R", "no list"),
        (b"c_codecs\nencode\nU\x01aU\x04zlib\x86R", "_codecs.encode of something else"),
        (b"c_codecs\nencode\nU\x01a\x85R", "_codecs.encode of something else"),
        (b"c__builtin__\nbytes\nJ\xff\xff\xff\x7f\x85R", "unknown form"),
        (b"}(U\x01aK\x01u\x85" + b"}" + b"K\x01s", "unknown form"),
        (b"K\x01K\x02a", "no list"),
        (b"]K\x01Ns", "no dict"),
        (b"})Ns", "key of type tuple"),
        (b"}G" + bytes(8) + b"Ns", "key of type float"),
        (b"}\x8a\x09" + bytes(8) + b"\x01Ns", "key of type int"),
        (b"\x8a\x20" + b"\x01" * 32, "more than 128 bits"),
        (b"\x95", "unknown form"),
        (b"R", "more values"),
        (b"t", "unknown form"),
        (b"h\x05", "unknown form"),
        (b"NN", "unknown form"),
    ],
    ids=repr,
)
def test_misuse(refused, body, words):
    refused(START + body + STOP, words)


@pytest.mark.parametrize("array", [np.array([{}]), np.zeros(2, [("a", "f4")]), np.array(["a"])])
@ALL_PROTOCOLS
def test_arrays_of_something_else_than_numbers(refused, array, protocol):
    refused(pickle.dumps({"w": array}, protocol=protocol), "holds an array", "numbers")


# ---- bombs ----

BOMBS = {
    "deep tuple": START + b")" + b"\x85" * 400_000 + STOP,
    "deep key": START + b"})" + b"\x85" * 400_000 + b"Ns.",
    "too long": START + b")" + b"\x85" * MAX_INSTRUCTIONS + STOP,
    "deep list": START + b"]" * 400_000 + b"a" * 399_999 + STOP,
    "itself": START + b"]q\x00h\x00a.",
    "memo": START + b"Nr\xff\xff\xff\x7fh\x05.",
    "doubling": START + b")" + b"q\x00h\x00\x86" * 100 + STOP,
    "doubling key": START + b"})" + b"q\x00h\x00\x86" * 100 + b"Ns.",
    "doubling dtype": START + b"cnumpy\ndtype\n)" + b"q\x00h\x00\x86" * 100 + b"\x85R.",
    "text of 2 GB": START + b"T\xff\xff\xff\x7f" + b"a" * 9,
    "bytes of 2^62": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"a" * 9,
    "frame of 2^62": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"a" * 9,
    "one text in many arrays": START
    + (text2(bytes(4_000_000)) + b"q\x01](")
    + b"cnumpy\ndtype\nU\x02i1\x85Rq\x02"
    + (RECONSTRUCT + b"(K\x01J\x00\x09\x3d\x00\x85h\x02\x89h\x01tb") * 500
    + b"e.",
    "one text in many bytes": START
    + (text2(bytes(4_000_000)) + b"q\x01](")
    + b"c_codecs\nencode\nh\x01U\x06latin1\x86R" * 500
    + b"e.",
    "one list in many dicts": START
    + (b"](" + b"K\x01N\x86" * 100_000 + b"eq\x01](")
    + b"ccollections\nOrderedDict\nh\x01\x85R" * 500
    + b"e.",
    "sizes without end": START
    + (RECONSTRUCT + b"(K\x01(" + (b"\x8b" + struct.pack("<i", 10_000) + b"\x7f" * 10_000) * 30)
    + (b"t" + dtype_of(b"i1") + b"\x89U\x01atb."),
}
LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
from resnext_det.errors import InputError
from resnext_det.weights.pickles import read_pickle
used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    try:
        read_pickle(path)
    except InputError as error:
        print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used) // 1024)
"""


def test_bombs(tmp_path):
    """In a process of its own: where they work they end it, or take the machine's memory."""
    paths = [tmp_path / f"{name}.pkl" for name in BOMBS]
    for path, content in zip(paths, BOMBS.values(), strict=True):
        path.write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *map(str, paths)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    *lines, megabytes = done.stdout.splitlines()
    assert [line.split(": ")[0] for line in lines] == [str(path) for path in paths]
    found = dict(zip(BOMBS, lines, strict=True))
    assert f"more than {MAX_INSTRUCTIONS} instructions" in found["too long"]
    for name in ("deep tuple", "deep list", "itself", "doubling"):
        assert "nested more than 32 deep" in found[name]
    for name in ("one text in many arrays", "one text in many bytes", "one list in many dicts"):
        assert "far more memory than its own size" in found[name]
    assert int(megabytes) < 500


# ---- damage ----


def test_cut_off_anywhere(refused):
    content = pickle.dumps(make_values(), protocol=2)
    for end in [1, 2, 3, *range(4, len(content), 37), len(content) - 1]:
        refused(content[:end], "unknown form")


@ALL_PROTOCOLS
def test_flipped_bytes(path, protocol):
    """Ends in a value or an InputError that names the file, never in another error."""
    content = pickle.dumps(make_values(), protocol=protocol)
    rng = np.random.default_rng(protocol)
    refusals = 0
    for _ in range(300):
        damaged = bytearray(content)
        for position in rng.integers(len(content), size=rng.integers(1, 4)):
            damaged[position] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            read_pickle(path)
        except InputError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
            refusals += 1
    assert refusals > 30


@pytest.mark.parametrize("content", [b"", b"\x80", b"x", b"\x80\x02", b"\x80\x09N."])
def test_no_pickle(refused, content):
    refused(content)


def test_no_file(path):
    with pytest.raises(InputError, match="cannot be read"):
        read_pickle(path)


# ---- torch's pickles ----

STORAGE = b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x04tQ"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n("
TAIL = b"\x89ccollections\nOrderedDict\n)RtR"


def look_at(body):
    pickle = TorchPickle(io.BytesIO(START + body + STOP), 1000)
    pickle.run()
    return pickle.storages


def test_storages_of_a_torch_pickle():
    body = REBUILD + STORAGE + b"K\x00K\x02K\x02\x86K\x02K\x01\x86" + TAIL
    assert look_at(body) == {"0": 16}


@pytest.mark.parametrize(
    "view, words",
    [
        (b"K\x00K\x02K\x03\x86K\x02K\x01\x86", "leaves its storage"),
        (b"K\x01K\x02K\x02\x86K\x02K\x01\x86", "leaves its storage"),
        (b"K\x00K\x02\x85K\x04\x85", "leaves its storage"),
        (b"K\x00J\xff\xff\xff\xff\x85K\x01\x85", "sizes are wrong"),
        (b"K\x00K\x02\x85J\xff\xff\xff\xff\x85", "sizes are wrong"),
        (b"J\xff\xff\xff\xffK\x02\x85K\x01\x85", "sizes are wrong"),
        (b"K\x00J\xff\xff\xff\x7f\x85K\x00\x85", "far more memory than its own size"),  # stride 0
        (b"K\x00K\x02K\x02\x86K\x01\x85", "zip"),
    ],
    ids=repr,
)
def test_tensors_outside_their_storage(view, words):
    with pytest.raises(ValueError, match=words):
        look_at(REBUILD + STORAGE + view + TAIL)


@pytest.mark.parametrize(
    "body, words",
    [
        (STORAGE + STORAGE.replace(b"K\x04tQ", b"K\x05tQ") + b"\x86", "two sizes"),
        (STORAGE.replace(b"storage", b"modulex"), "described wrongly"),
        (STORAGE.replace(b"K\x04tQ", b"J\xff\xff\xff\xfftQ"), "described wrongly"),
        (b"ccollections\nOrderedDict\n)R}U\x05itemsNsb", "sets attributes"),
        (b"ctorch._utils\n_rebuild_parameter\nK\x01\x85R", "no plain tensor"),
        (b"ctorch._utils\n_rebuild_qtensor\n", "quantised"),
        (b"c__builtin__\nset\n])a\x85R", "key of type tuple"),
        (b"c__builtin__\nbytearray\n", "__builtin__.bytearray"),
        (b"ctorch.hub\nload\n", "torch.hub.load"),
    ],
    ids=repr,
)
def test_misuse_in_torch_pickles(body, words):
    with pytest.raises(ValueError, match=words):
        look_at(body)
