"""Pickles of NumPy arrays (Detectron's and Detectron2's ``.pkl``), read as data."""

import math
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .machine import (
    MAX_DIMENSIONS,
    STATE_DICT,
    Global,
    Machine,
    Refused,
    is_count,
    mapped,
    phrase,
    told_of,
)

PLAIN_ARRAYS = "give plain arrays of numbers"
NUMPY_CORES = ("numpy.core", "numpy._core")  # before and since NumPy 2
NUMPY_CODES = frozenset("f2 f4 f8 i1 i2 i4 i8 u1 u2 u4 u8 b1".split())


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
        if len(sizes) > MAX_DIMENSIONS or not all(map(is_count, sizes)):
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
