"""Pickles of weights read as data: a small machine follows the instructions and calls nothing.

`pickle.Unpickler` does not suffice, however narrow its `find_class` is: a file may still set
attributes of whatever `find_class` returned (BUILD), use a tuple nested a million deep as a
key (hashing it ends the interpreter; so it does in ``torch.load(weights_only=True)``), or
name a memo index whose table takes gigabytes. Here a global is only a name, and each name
stands for a few lines of this file. Instructions as in the standard library's `pickletools`.
"""

import math
import mmap
import pickletools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from ..errors import InputError

MAX_INSTRUCTIONS = 1_000_000  # the largest checkpoint we know of needs a tenth
MAX_DEPTH = 32  # dicts in lists in tuples
MAX_DIMENSIONS = 32
EXPANSION = 4  # bytes of tensors for one byte of file; honest files stay near 1
SLACK = 1 << 20
AGAIN = "download or copy it again"
STATE_DICT = "give a state dict saved by torch.save(model.state_dict(), path)"
PLAIN_ARRAYS = "give plain arrays of numbers"

NUMPY_CORES = ("numpy.core", "numpy._core")  # before and since NumPy 2
NUMPY_CODES = frozenset("f2 f4 f8 i1 i2 i4 i8 u1 u2 u4 u8 b1".split())
TORCH_DTYPES = {f"torch.{k}": v for k, v in vars(torch).items() if isinstance(v, torch.dtype)}
_STORED = (
    "Float float32, Double float64, Half float16, BFloat16 bfloat16, Long int64, Int int32, "
    "Short int16, Char int8, Byte uint8, Bool bool, Untyped uint8, ComplexFloat complex64, "
    "ComplexDouble complex128"
)
TORCH_STORAGES = {
    f"{module}.{kind}Storage": getattr(torch, dtype)
    for module in ("torch", "torch.cuda", "torch.storage")
    for kind, dtype in (pair.split() for pair in _STORED.split(", "))
}
UNUSABLE = {
    "torch._utils._rebuild_qtensor": "a quantised tensor",
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": "a meta tensor, which has no values",
    "torch._utils._rebuild_parameter_with_state": "a parameter with attributes",
    "torch._utils._rebuild_wrapper_subclass": "a tensor of a class of its own",
    "torch._tensor._rebuild_from_type_v2": "a tensor of a class of its own",
}


class Refused(ValueError):
    """What a file holds that is not taken, and the mend; `told_of` adds the file's name."""

    def __init__(self, found: str, mend: str = AGAIN):
        super().__init__(found)
        self.found, self.mend = found, mend


@contextmanager
def told_of(path: str | Path) -> Iterator[None]:
    """Turn whatever reading a damaged or hostile file raises into one InputError naming it."""
    try:
        yield
    except InputError:
        raise
    except Refused as error:
        raise InputError(path, error.found, error.mend) from error
    except OSError as error:
        raise InputError(path, f"cannot be read ({phrase(error)})", "check the path") from error
    except Exception as error:  # NumPy, torch and zipfile raise what they like at wrong bytes
        found = f"is cut off, damaged or of an unknown form ({phrase(error)})"
        raise InputError(path, found, AGAIN) from error


def phrase(error: object) -> str:
    """The first line of an error's text (or of a name that a file gave), printable and short."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    text = "".join(c if c.isprintable() else "?" for c in lines[0])
    return text if len(text) <= 120 else text[:117] + "..."


@contextmanager
def mapped(path: str | Path) -> Iterator[mmap.mmap]:
    """The file's bytes, not copied; a read beyond the end gives what there is."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        yield view


@dataclass(frozen=True)
class Global:
    """A name that a pickle mentions, never the thing of that name."""

    name: str


class Machine:
    """Follows the instructions of one pickle. Subclasses say what each admitted name stands for.

    Args:
        stream: at the pickle's first byte; left behind its last one.
        size: of the whole file in bytes; what is built may take `EXPANSION` times as much.
        calls: name -> what REDUCE does with it.
        mentions: names that may stand among arguments only.
    """

    protocols = range(6)

    def __init__(self, stream: BinaryIO | mmap.mmap, size: int, calls: dict, mentions=()):
        self.stream, self.mentions = stream, mentions
        self.calls = {
            "collections.OrderedDict": self.ordered_dict,
            "_codecs.encode": self.encode,
            **calls,
        }
        self.left = EXPANSION * size + SLACK
        self.values = MAX_INSTRUCTIONS
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The pickle's value. Raises `Refused`, or ValueError and the like where it is damaged."""
        for count, (opcode, arg, _) in enumerate(pickletools.genops(self.stream)):
            if count == MAX_INSTRUCTIONS:
                raise Refused(f"is a pickle of more than {MAX_INSTRUCTIONS} instructions")
            if opcode.name not in STEPS:
                raise Refused(f"uses the pickle instruction {opcode.name}", STATE_DICT)
            STEPS[opcode.name](self, arg)
        if len(self.stack) != 1:
            raise ValueError("it does not end in one value")
        return self.plain(self.stack[0])

    def plain(self, value: Any, depth: int = 0) -> Any:
        """The value with every part checked by `leaf`; containers as plain dict, list, tuple."""
        self.values -= 1  # counts a shared part each time: doubling lists are refused here
        if depth > MAX_DEPTH or self.values < 0:
            raise Refused(f"is nested more than {MAX_DEPTH} deep, or without end")
        if type(value) is dict:
            return {k: self.plain(v, depth + 1) for k, v in value.items()}
        if type(value) in (list, tuple):
            return type(value)(self.plain(v, depth + 1) for v in value)
        return self.leaf(value)

    def leaf(self, value: Any) -> Any:
        raise NotImplementedError

    def build(self, target: Any, state: Any) -> None:
        raise NotImplementedError

    def persistent(self, pid: Any) -> Any:
        raise ValueError("a value outside the pickle is asked for")

    def spend(self, count: int) -> None:
        """Account for bytes about to be taken: a file may not ask for far more than its size."""
        self.left -= count
        if self.left < 0:
            raise Refused("asks for far more memory than its own size")

    def admit(self, name: str) -> Global:
        if name in UNUSABLE:
            raise Refused(f"holds {UNUSABLE[name]}", "give plain dense tensors (float, int)")
        if name not in self.calls and name not in self.mentions:
            raise Refused(
                f"asks for {phrase(name)}, which a weights file has no use for", STATE_DICT
            )
        return Global(name)

    # ---- what calls stand for ----

    def ordered_dict(self, pairs: Any = ()) -> dict:
        return checked_dict(self.counted(list(pairs.items()) if type(pairs) is dict else pairs))

    def counted(self, items: Any) -> tuple | list:
        """Items that a call copies: one list in the file can be copied any number of times."""
        if type(items) not in (tuple, list):
            raise ValueError("something is made of a value that is no list")
        self.spend(100 * len(items))
        return items

    def encode(self, text: Any, encoding: Any = None) -> bytes:
        """Bytes, as Python 3 writes them in protocol 2."""
        if type(text) is not str or encoding not in ("latin1", "latin-1"):
            raise Refused("asks for _codecs.encode of something else than latin1 text", STATE_DICT)
        self.spend(len(text))
        return text.encode("latin1")

    # ---- instructions ----

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def row(self, length: int) -> tuple:
        """The uppermost values, taken off."""
        if len(self.stack) < length:
            raise ValueError("an instruction wants more values than there are")
        return tuple(self._above(len(self.stack) - length))

    def marked(self) -> list:
        """The values since the last mark, taken off."""
        if not self.marks:
            raise ValueError("an instruction wants a mark that is not there")
        return self._above(self.marks.pop())

    def _above(self, start: int) -> list:
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def top(self) -> Any:
        (value,) = self.row(1)
        self.push(value)
        return value

    def extend(self, items: list | tuple) -> None:
        if type(self.top()) is not list:
            raise ValueError("something is appended to a value that is no list")
        self.top().extend(items)

    def update(self, items: list | tuple) -> None:
        if type(self.top()) is not dict:
            raise ValueError("an item is set in a value that is no dict")
        self.top().update(checked_dict(zip(items[::2], items[1::2], strict=True)))

    def remember(self, index: int) -> None:
        self.memo[index] = self.top()

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise ValueError("a value is referred to that was not there")
        self.push(self.memo[index])

    def mention(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise ValueError("a global's name is no text")
        self.push(self.admit(f"{module}.{name}"))

    def reduce(self, target: Any, args: Any) -> None:
        call = self.calls.get(target.name) if isinstance(target, Global) else None
        if call is None or type(args) is not tuple:
            raise ValueError("a value that is no function is called")
        self.push(call(*args))

    def inst(self, pair: str) -> None:
        self.mention(*pair.split(" ", 1))
        raise Refused("uses the pickle instruction INST", STATE_DICT)

    def check_protocol(self, version: int) -> None:
        if version not in self.protocols:
            raise Refused(f"is written in pickle protocol {version}", "save it with the default")


# Name -> (machine, argument that `pickletools.genops` has read) -> None. FRAME only helps to read
# ahead; at STOP `genops` ends by itself.
STEPS: dict[str, Callable[[Machine, Any], None]] = {
    "PROTO": Machine.check_protocol,
    "FRAME": lambda m, _: None,
    "STOP": lambda m, _: None,
    "NONE": lambda m, _: m.push(None),
    "NEWTRUE": lambda m, _: m.push(True),
    "NEWFALSE": lambda m, _: m.push(False),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "EMPTY_LIST": lambda m, _: m.push([]),
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "MARK": lambda m, _: m.marks.append(len(m.stack)),
    "TUPLE": lambda m, _: m.push(tuple(m.marked())),
    "TUPLE1": lambda m, _: m.push(m.row(1)),
    "TUPLE2": lambda m, _: m.push(m.row(2)),
    "TUPLE3": lambda m, _: m.push(m.row(3)),
    "APPEND": lambda m, _: m.extend(m.row(1)),
    "APPENDS": lambda m, _: m.extend(m.marked()),
    "SETITEM": lambda m, _: m.update(m.row(2)),
    "SETITEMS": lambda m, _: m.update(m.marked()),
    "MEMOIZE": lambda m, _: m.remember(len(m.memo)),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), Machine.remember),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), Machine.recall),
    "GLOBAL": lambda m, pair: m.mention(*pair.split(" ", 1)),
    "STACK_GLOBAL": lambda m, _: m.mention(*m.row(2)),
    "INST": Machine.inst,
    "REDUCE": lambda m, _: m.reduce(*m.row(2)),
    "BUILD": lambda m, _: m.build(state=m.row(1)[0], target=m.top()),
    "BINPERSID": lambda m, _: m.push(m.persistent(m.row(1)[0])),
    **dict.fromkeys("INT BININT BININT1 BININT2 LONG LONG1 LONG4".split(), Machine.push),
    **dict.fromkeys("FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING".split(), Machine.push),
    **dict.fromkeys("UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8".split(), Machine.push),
    **dict.fromkeys("BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8".split(), Machine.push),
}


def checked_dict(pairs: Iterable) -> dict:
    """A dict of pairs whose keys are texts or ordinary integers."""
    pairs = list(pairs)
    for key, _ in pairs:
        # Before it is hashed: that of a deep tuple ends the interpreter.
        if type(key) is not str and not (type(key) is int and -(2**63) <= key < 2**63):
            raise Refused(f"has a key of type {type(key).__name__} in a dict", STATE_DICT)
    return dict(pairs)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


# ---- NumPy's arrays in a plain pickle ----


class _DType:
    """A NumPy dtype as far as a pickle has told it."""

    def __init__(self, code: Any, *_):
        if type(code) is not str:  # before it is hashed
            raise ValueError("a dtype's code is no text")
        if code not in NUMPY_CODES:
            kind = "of Python objects" if code.startswith("O") else "that is not of real numbers"
            raise Refused(f"holds an array {kind} (dtype {phrase(code)})", PLAIN_ARRAYS)
        self.dtype = np.dtype(code)

    def build(self, state: Any) -> None:
        """State: version, byte order, then sub-array, names and fields, which numbers lack."""
        if type(state) is not tuple or len(state) < 5 or any(s is not None for s in state[2:5]):
            raise Refused("holds an array with fields", PLAIN_ARRAYS)
        if state[1] not in ("<", ">", "|", "="):
            raise ValueError("a dtype's byte order is unknown")
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """An array between `_reconstruct` and the BUILD that brings shape, dtype and data."""

    value: np.ndarray | None = None


class NumpyPickle(Machine):
    """A dict of NumPy arrays (Caffe2, Detectron1, Detectron2's converters), or of plain values."""

    def __init__(self, stream: BinaryIO | mmap.mmap, size: int):
        # bytes: called without arguments is how Python 3 writes empty ones in protocol 2.
        calls: dict[str, Callable] = {"numpy.dtype": _DType, "__builtin__.bytes": lambda: b""}
        for core in NUMPY_CORES:
            calls[f"{core}.multiarray._reconstruct"] = self._reconstruct
            calls[f"{core}.multiarray.scalar"] = self._scalar
            calls[f"{core}.numeric._frombuffer"] = self._frombuffer
        super().__init__(stream, size, calls, mentions=("numpy.ndarray",))

    def leaf(self, value: Any) -> Any:
        value = value.value if isinstance(value, _Array) and value.value is not None else value
        plain = (type(None), bool, int, float, str, bytes, np.ndarray)
        if type(value) not in plain and not isinstance(value, np.generic):
            raise Refused(f"holds a value of type {type(value).__name__.lstrip('_')}", STATE_DICT)
        if type(value) is int and value.bit_length() > 128:
            raise Refused("holds an integer of more than 128 bits", STATE_DICT)
        return value

    def build(self, target: Any, state: Any) -> None:
        if isinstance(target, _DType):
            target.build(state)
        elif isinstance(target, _Array) and type(state) is tuple and len(state) in (4, 5):
            shape, dtype, fortran, data = state[-4:]  # NumPy once wrote no version before them
            target.value = self._array(shape, dtype, data, "F" if fortran else "C")
        else:
            raise ValueError("a value that takes no state is given one")

    def _reconstruct(self, kind: Any, *_) -> _Array:
        if kind != Global("numpy.ndarray"):
            raise ValueError("an array is of a class of its own")
        return _Array()

    def _scalar(self, dtype: Any, data: Any) -> np.generic:
        return self._array((), dtype, data)[()]

    def _frombuffer(self, data: Any, dtype: Any, shape: Any, order: Any, axes: Any = None):
        if order == "K" and axes is not None:  # newer NumPy: the axes as they lie in memory
            return np.ascontiguousarray(self._array(shape, dtype, data).transpose(axes))
        return self._array(shape, dtype, data, "F" if order == "F" else "C")

    def _array(self, shape: Any, dtype: Any, data: Any, order: str = "C") -> np.ndarray:
        sizes = shape if type(shape) is tuple else (shape,)
        if not isinstance(dtype, _DType) or type(data) not in (str, bytes, bytearray):
            raise Refused("holds an array whose data are no bytes", PLAIN_ARRAYS)
        if len(sizes) > MAX_DIMENSIONS or not all(map(_is_count, sizes)):
            raise ValueError("an array's shape is wrong")
        self.spend(len(data))
        raw = data.encode("latin1") if type(data) is str else data  # str: as Python 2 wrote it
        if math.prod(sizes) * dtype.dtype.itemsize != len(raw):
            raise ValueError(f"an array of shape {sizes} has {len(raw)} bytes of data")
        view = np.ndarray(sizes, dtype.dtype, buffer=raw, order=order)
        return np.array(view, dtype=dtype.dtype.newbyteorder("="), order="C")


def read_pickle(path: str | Path) -> Any:
    """What a pickle of plain values and NumPy arrays holds; nothing in it is run.

    Python 2's texts are read as latin1, as Caffe2's and Detectron1's files need.

    Returns:
        dict, list, tuple, str, bytes, int, float, bool, None, NumPy arrays and scalars of
        numbers (C order, native byte order), nested as in the file; an OrderedDict is a dict.

    Raises:
        InputError: the file asks for another global (it is named), holds objects, is cut off,
            damaged, nested too deep, or asks for memory far beyond its size.
    """
    with told_of(path), mapped(path) as stream:
        return NumpyPickle(stream, len(stream)).run()


# ---- torch's pickles, looked at before torch.load reads them ----


@dataclass(frozen=True)
class _Storage:
    dtype: torch.dtype
    count: int  # of elements


class _Opaque:
    """Something that torch.load will make; here it only keeps its place."""


class TorchPickle(Machine):
    """Looks at a pickle of torch.save: what it asks for, and whether tensors fit their storages.

    After `run`, ``storages`` holds the size in bytes of each storage by its key.
    """

    protocols = (2,)  # all that torch.load(weights_only=True) can read

    def __init__(self, stream: BinaryIO | mmap.mmap, size: int):
        self.storages: dict[str, int] = {}
        calls = {
            "collections.Counter": self.ordered_dict,
            "torch.Size": lambda sizes: tuple(self.counted(sizes)),
            "torch.device": lambda *_: _Opaque(),
            "torch._utils._rebuild_tensor": self._tensor,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_tensor_v3": self._tensor_v3,
            "torch._utils._rebuild_parameter": self._parameter,
            "__builtin__.set": self._set,
            "builtins.set": self._set,
        }
        super().__init__(stream, size, calls, mentions={*TORCH_DTYPES, *TORCH_STORAGES})

    def leaf(self, value: Any) -> Any:
        return value

    def build(self, target: Any, state: Any) -> None:
        """Only what `Module.state_dict` hangs on its OrderedDict."""
        if type(target) is not dict or type(state) is not dict or set(state) - {"_metadata"}:
            raise Refused("sets attributes of an object", STATE_DICT)

    def persistent(self, pid: Any) -> _Storage:
        word, kind, key, _, count, *view = pid
        dtype = TORCH_STORAGES.get(kind.name) if isinstance(kind, Global) else None
        if word != "storage" or dtype is None or type(key) is not str or not _is_count(count):
            raise ValueError("a storage is described wrongly")
        storage = _Storage(dtype, count)
        if self.storages.setdefault(key, count * dtype.itemsize) != count * dtype.itemsize:
            raise ValueError(f"storage {phrase(key)} has two sizes")
        if view and view[0] is not None:
            _, start, length = view[0]
            if not _is_count(start) or not _is_count(length) or start + length > count:
                raise ValueError(f"a view of storage {phrase(key)} leaves it")
            storage = _Storage(dtype, length)
        return storage

    def _tensor(self, storage, offset, size, stride, grad=False, hooks=None, metadata=None):
        self._fit(storage, storage.dtype, offset, size, stride)
        if hooks or metadata:
            raise Refused("holds a tensor with hooks or marks", STATE_DICT)
        return _Opaque()

    def _tensor_v3(self, storage, offset, size, stride, grad, hooks, dtype, metadata=None):
        self._fit(storage, TORCH_DTYPES[dtype.name], offset, size, stride)
        if hooks or metadata:
            raise Refused("holds a tensor with hooks or marks", STATE_DICT)
        return _Opaque()

    def _fit(self, storage: _Storage, dtype: torch.dtype, offset, size, stride) -> None:
        """A tensor that leaves its storage makes torch grow it to any size."""
        if len(size) > MAX_DIMENSIONS or not all(map(_is_count, (offset, *size, *stride))):
            raise ValueError("a tensor's sizes are wrong")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        room = storage.count * storage.dtype.itemsize
        if 0 not in size and (last + 1) * dtype.itemsize > room:
            raise ValueError(f"a tensor of shape {tuple(size)} leaves its storage")
        self.spend(math.prod(size) * dtype.itemsize)

    def _parameter(self, tensor, grad=True, hooks=None) -> _Opaque:
        if not isinstance(tensor, _Opaque) or hooks:
            raise Refused("holds a parameter that is no plain tensor", STATE_DICT)
        return tensor

    def _set(self, items=()) -> _Opaque:
        checked_dict((item, None) for item in self.counted(items))
        return _Opaque()
