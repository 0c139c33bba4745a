"""Pickles inside torch's files: looked through before ``torch.load`` gets them."""

import math
import mmap
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch

from .machine import (
    MAX_DIMENSIONS,
    STATE_DICT,
    Global,
    Machine,
    Refused,
    checked_dict,
    is_count,
    phrase,
)

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
        if word != "storage" or dtype is None or type(key) is not str or not is_count(count):
            raise ValueError("a storage is described wrongly")
        storage = _Storage(dtype, count)
        if self.storages.setdefault(key, count * dtype.itemsize) != count * dtype.itemsize:
            raise ValueError(f"storage {phrase(key)} has two sizes")
        if view and view[0] is not None:
            _, start, length = view[0]
            if not is_count(start) or not is_count(length) or start + length > count:
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
        if len(size) > MAX_DIMENSIONS or not all(map(is_count, (offset, *size, *stride))):
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
