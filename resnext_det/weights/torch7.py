"""Reading what Torch7's ``torch.save`` wrote in binary mode, without running anything of it.

The format is defined by the code that reads it there: torch7's ``File.lua`` (``readObject``),
``generic/Tensor.c`` and ``generic/Storage.c`` (``read``), cutorch's the same. Little-endian,
int 4 bytes, long 8 bytes (64-bit machines). Each value is a type tag and its content; tables,
torch objects and functions carry an index first, by which a later value can mean the same one.
"""

# The registry's `torchfile` (0.1.0, 2017) is not used. It is fit for trusted files only: it gives
# a tensor's sizes, strides and offset unchecked to NumPy's as_strided, so that a file can have
# memory outside its storage read; a storage that is cut off comes back shorter without a word, a
# size of -1 reads to the end of the file; nesting and the number of objects are unbounded;
# and `long` is the reading machine's.

import math
import mmap
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ..errors import InputError
from .kinds import require_file

MEND = "give a network that torch.save wrote (binary mode, 64-bit machine), as a whole file"
MAX_DEPTH = 100  # the paper's networks nest 22 deep; Python's own stack ends near 1,000
MAX_VALUES = 500_000  # 152 layers have 20,000; half a million take 50 MB of Python objects
MAX_DIMS = 16
SMALLEST_ENTRY = 12  # bytes of a table's entry: an empty string as key, nil as value
VERSION = re.compile(r"V -?[0-9.]+")
CLASS_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,99}")

NUMBERS = {
    "Byte": np.dtype("u1"),
    "Char": np.dtype("i1"),
    "Short": np.dtype("<i2"),
    "Int": np.dtype("<i4"),
    "Long": np.dtype("<i8"),
    "Half": np.dtype("<f2"),
    "Float": np.dtype("<f4"),
    "Double": np.dtype("<f8"),
}
# cutorch calls its float tensor torch.CudaTensor, the others torch.CudaLongTensor and so on.
KINDS = NUMBERS | {f"Cuda{k}": v for k, v in NUMBERS.items() if k != "Float"}
KINDS["Cuda"] = NUMBERS["Float"]
TENSORS = {f"torch.{kind}Tensor": dtype for kind, dtype in KINDS.items()}
STORAGES = {f"torch.{kind}Storage": dtype for kind, dtype in KINDS.items()}

_UNFINISHED = object()  # stands for an object while its own content is being read


@dataclass(eq=False)  # two objects are the same one or not: comparing arrays would say nothing
class TorchObject:
    """An object of a Lua class other than tensors and storages, for instance a network's layer.

    Args:
        class_name: as Torch7 has it, for instance "nn.Linear".
        fields: what it holds, by name.
    """

    class_name: str
    fields: dict[Any, Any]


def read_torch7(path: str | Path) -> Any:
    """The object that ``torch.save(path, object)`` wrote, in Python's terms.

    Numbers become int where they are whole, else float; strings str (Latin-1: each byte one
    character); tables dict, or list where their keys are 1..n (n > 0). Tensors and storages
    become NumPy arrays of their own type, read-only views of the file, which must not be
    changed meanwhile. Other classes become `TorchObject`. What the file shares is shared.

    Functions (Lua bytecode) are passed over and read as nil, never run: cudnn.torch kept
    a layer's ``reset`` method in the file until November 2015.

    Raises:
        InputError: no file, or one that is cut off, too deep (100), too large in number of
            values (500,000), cyclic, or holds a tensor that reaches outside its storage or
            has more elements than that, or anything else that torch.save does not write.
    """
    path = Path(path)
    require_file(path)
    try:
        with open(path, "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError as error:  # mmap's word for no bytes
        raise InputError(path, "is empty", MEND) from error
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})", "check the path") from error
    reader = _Reader(path, data)
    found = reader.value()
    if reader.left:
        reader.fault(f"{reader.left} bytes follow the object, which ends at byte {reader.position}")
    return found


class _Reader:
    """A position in the file, and the objects read up to there."""

    def __init__(self, path: Path, data: mmap.mmap):
        self.path, self.data = path, data
        self.position = self.values = 0
        self.objects: dict[int, Any] = {}
        self.readers = {
            0: lambda depth: None,
            1: self._number,
            2: lambda depth: self._string(),
            3: lambda depth: self._indexed(self._table, depth),
            4: lambda depth: self._indexed(self._torch, depth),
            5: self._boolean,
            6: self._function,  # of old files, the only one without an index
            7: lambda depth: self._indexed(self._function, depth),
            8: lambda depth: self._indexed(self._function, depth),
        }

    @property
    def left(self) -> int:
        return len(self.data) - self.position

    def fault(self, found: str) -> NoReturn:
        raise InputError(self.path, found, MEND)

    def value(self, depth: int = 0) -> Any:
        start = self.position
        self.values += 1
        if depth > MAX_DEPTH:
            self.fault(f"byte {start}: objects are nested more than {MAX_DEPTH} deep")
        if self.values > MAX_VALUES:
            self.fault(f"byte {start}: there are more than {MAX_VALUES} values")
        tag = self._int()
        if tag not in self.readers:
            self.fault(f"byte {start}: type {tag} is none of Torch7's 0..8")
        return self.readers[tag](depth)

    def _unpack(self, format: str) -> tuple:
        start = self._skip(struct.calcsize(format))
        return struct.unpack_from(format, self.data, start)

    def _skip(self, size: int) -> int:
        """Move on by ``size`` bytes, all of which are there, and return where they start."""
        start = self.position
        if not 0 <= size <= self.left:
            self.fault(f"byte {start}: {size} bytes are due, but {self.left} are left")
        self.position += size
        return start

    def _int(self) -> int:
        return self._unpack("<i")[0]

    def _number(self, depth: int) -> int | float:
        (number,) = self._unpack("<d")
        return int(number) if number.is_integer() and abs(number) < 2**53 else number

    def _boolean(self, depth: int) -> bool:
        start, number = self.position, self._int()
        if number not in (0, 1):
            self.fault(f"byte {start}: a boolean is {number}, neither 0 nor 1")
        return number == 1

    def _string(self) -> str:
        size = self._int()
        start = self._skip(size)
        return self.data[start : start + size].decode("latin-1")

    def _indexed(self, read, depth: int) -> Any:
        start, index = self.position, self._int()
        if index not in self.objects:
            self.objects[index] = _UNFINISHED
            self.objects[index] = read(depth)
        elif self.objects[index] is _UNFINISHED:
            self.fault(f"byte {start}: object {index} holds itself")
        return self.objects[index]

    def _table(self, depth: int) -> dict | list:
        start, count = self.position, self._int()
        if not 0 <= count * SMALLEST_ENTRY <= self.left:
            self.fault(f"byte {start}: a table of {count} entries, but {self.left} bytes are left")
        table = {}
        for _ in range(count):
            key = self._key(depth + 1)
            value = self.value(depth + 1)
            if key in table:
                self.fault(f"byte {start}: a table has the key {short(key)} twice")
            if value is not None:
                table[key] = value
        numbers = range(1, len(table) + 1)
        return [table[k] for k in numbers] if table and all(k in table for k in numbers) else table

    def _key(self, depth: int) -> str | int | float:
        start, key = self.position, self.value(depth)
        # Python takes true for 1, and no table of a network has booleans or objects as keys.
        if isinstance(key, bool) or not isinstance(key, str | int | float) or key != key:
            self.fault(f"byte {start}: a table's key is {short(key)}, no number and no string")
        return key

    def _function(self, depth: int) -> None:
        self._skip(self._int())
        self.value(depth + 1)  # the upvalues: objects in them may be meant again later

    def _torch(self, depth: int) -> TorchObject | np.ndarray:
        start, name = self.position, self._string()
        if VERSION.fullmatch(name):  # files older than versions have the class name at once
            start, name = self.position, self._string()
        if not CLASS_NAME.fullmatch(name):
            self.fault(f"byte {start}: the class name is {short(name)}")
        if name in TENSORS:
            return self._tensor(TENSORS[name], depth)
        if name in STORAGES:
            return self._storage(STORAGES[name])
        start, content = self.position, self.value(depth + 1)
        if isinstance(content, list):
            content = dict(enumerate(content, start=1))
        if not isinstance(content, dict):
            self.fault(f"byte {start}: {name} holds {short(content)}, no table of its fields")
        return TorchObject(name, content)

    def _storage(self, dtype: np.dtype) -> np.ndarray:
        (size,) = self._unpack("<q")
        start = self._skip(size * dtype.itemsize)
        return np.frombuffer(self.data, dtype, size, start) if size else np.empty(0, dtype)

    def _tensor(self, dtype: np.dtype, depth: int) -> np.ndarray:
        start, dims = self.position, self._int()
        if not 0 <= dims <= MAX_DIMS:
            self.fault(f"byte {start}: a tensor has {dims} dimensions")
        sizes, strides = self._unpack(f"<{dims}q"), self._unpack(f"<{dims}q")
        (offset,) = self._unpack("<q")  # Lua's: the first element is 1
        storage = self.value(depth + 1)
        if min(sizes + strides, default=0) < 0:
            self.fault(f"byte {start}: a tensor has sizes {sizes} and strides {strides}")
        if dims == 0 or 0 in sizes:
            return np.empty(0, dtype)
        if not self._is_storage(storage, dtype):
            self.fault(f"byte {start}: a tensor's storage is {short(storage)}, not of {dtype.name}")
        last = offset + sum((size - 1) * by for size, by in zip(sizes, strides, strict=True))
        if offset < 1 or last > storage.size:
            self.fault(
                f"byte {start}: a tensor of sizes {sizes}, strides {strides} and offset {offset} "
                f"reaches outside its storage of {storage.size} elements"
            )
        if math.prod(sizes) > storage.size:  # stride 0 could make terabytes of one number
            self.fault(f"byte {start}: a tensor of sizes {sizes} overlaps itself")
        # A dimension of size 1 is never walked along; NumPy has no room for a stride of 2**62.
        steps = [by * dtype.itemsize * (size > 1) for size, by in zip(sizes, strides, strict=True)]
        return np.ndarray(sizes, dtype, storage, (offset - 1) * dtype.itemsize, steps)

    @staticmethod
    def _is_storage(found: Any, dtype: np.dtype) -> bool:
        return (
            isinstance(found, np.ndarray)
            and found.dtype == dtype
            and found.ndim == 1
            and found.flags.c_contiguous
        )


def short(value: Any) -> str:
    """A value as one short line, for messages: what is long or nested is named by its kind."""
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype.name} {value.shape}"
    if isinstance(value, TorchObject):
        return f"an object of {value.class_name}"
    if isinstance(value, dict | list):
        return f"a table of {len(value)} entries"
    text = "nil" if value is None else ascii(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
