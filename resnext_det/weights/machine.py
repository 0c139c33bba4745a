"""Pickles of weights read as data: a small machine follows the instructions and calls nothing.

`pickle.Unpickler` does not suffice, however narrow its `find_class` is: a file may still set
attributes of whatever `find_class` returned (BUILD), use a tuple nested a million deep as a
key (hashing it ends the interpreter; so it does in ``torch.load(weights_only=True)``), or
name a memo index whose table takes gigabytes. Here a global is only a name, and each name
stands for a few lines of ours. Instructions as in the standard library's `pickletools`.
"""

import mmap
import os
import pickletools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import InputError

MAX_INSTRUCTIONS = 1_000_000  # the largest checkpoint we know of needs a tenth
MAX_DEPTH = 32  # dicts in lists in tuples
MAX_DIMENSIONS = 32
EXPANSION = 4  # bytes of tensors for one byte of file; honest files stay near 1
SLACK = 1 << 20
AGAIN = "download or copy it again"
STATE_DICT = "give a state dict saved by torch.save(model.state_dict(), path)"
# torch's constructors of tensors that no weights file needs, refused by what they make.
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
    if not os.path.isfile(path) and os.path.exists(path):  # a pipe would wait for a writer
        raise Refused("is no file", "give the file itself")
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
        self.limit = self.values = MAX_INSTRUCTIONS
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The pickle's value. Raises `Refused`, or ValueError and the like where it is damaged."""
        for count, (opcode, arg, _) in enumerate(pickletools.genops(self.stream)):
            if count == self.limit:
                raise Refused(f"is a pickle of more than {self.limit} instructions")
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


def is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63
