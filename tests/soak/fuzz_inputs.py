"""Damaged and hostile inputs from a seed: of bytes, of JSON-like trees, of pickles, of archives.

A `Reader` says how one kind of user file is made and read; ``READERS`` in fuzz_run.py has them
all. Every input follows from the reader's name, a seed and a number, so that a found one can be
made again; nothing here depends on the clock, on hashes or on what ran before.
"""

import io
import json
import math
import os
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

CANARY = "canary"  # in the folder that an input is read in: there once anything in it was run
LONGEST_MESSAGE = 2000  # characters


class WrongResult(AssertionError):
    """A reader has taken an input and returned something that no user can mean."""


@dataclass(frozen=True)
class Reader:
    """One kind of user file.

    Args:
        name: for reports; inputs are seeded with it.
        prepare: makes what the inputs are made from in an empty folder, once a process.
        make: (random, what `prepare` returned, folder) to the path of a new input in the folder.
        read: reads an input (or a file of the corpus) as the package does. `InputError` passes
            through, a wrong result raises `WrongResult`.
        file_names: what inputs are called; the endings say how they are read.
        memory: bytes that reading one input may take at most.
    """

    name: str
    prepare: Callable[[Path], Any]
    make: Callable[[Random, Any, Path], Path]
    read: Callable[[Path], Any]
    file_names: tuple[str, ...]
    memory: int = 300 << 20


def require(holds: bool, what: str) -> None:
    """Raises WrongResult, as an assertion would, also where Python leaves those out."""
    if not holds:
        raise WrongResult(what)


def fault_of_message(text: str) -> str:
    """What is wrong with an InputError's text; "" for one line that any terminal can show."""
    if not text.replace("\t", " ").isprintable():
        return "the message is not one printable line"
    return f"the message has {len(text)} characters" if len(text) > LONGEST_MESSAGE else ""


def put_other(random: Random, path: Path) -> None:
    """A pipe, a folder, a device or a link that leads nowhere, in place of a file."""
    targets = ("/dev/zero", "/dev/full", "/dev/null", path.name, "nowhere", ".", "pipe")
    what = random.randrange(4)
    if what < 2:
        os.mkfifo(path.parent / "pipe")
        path.symlink_to(random.choice(targets))
    else:
        (os.mkfifo, os.mkdir)[what - 2](path)


def one_of(random: Random, weighted: dict[Callable, int]) -> Callable:
    """A key, by the weights."""
    return random.choices(list(weighted), list(weighted.values()))[0]


# ---- bytes ----

INTEGERS = (0, 1, 2, 7, 8, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 10**5)
LONG = (*INTEGERS, 2**33, 10**12, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


def _place(random: Random, data: bytearray, length: int = 1) -> int:
    """Headers are where lies are told: half of all places are in the first part."""
    most = max(len(data) - length, 0)
    return random.randint(0, min(most, 200) if random.random() < 0.5 else most)


def _flip(random: Random, data: bytearray) -> None:
    for _ in range(random.choice((1, 1, 1, 4, 30))):
        if data:
            data[_place(random, data)] ^= 1 << random.randrange(8)


def _set_byte(random: Random, data: bytearray) -> None:
    if data:
        data[_place(random, data)] = random.choice((0, 1, 9, 10, 32, 46, 47, 127, 128, 255))


def _set_integer(random: Random, data: bytearray) -> None:
    size, order = random.choice((2, 4, 4, 8, 8)), random.choice("<>")
    if len(data) >= size:
        value = random.choice(LONG if size == 8 else INTEGERS) % 2 ** (8 * size)
        place = _place(random, data, size)
        struct.pack_into(order + {2: "H", 4: "I", 8: "Q"}[size], data, place, value)


def _cut(random: Random, data: bytearray) -> None:
    del data[random.randint(0, len(data)) :]


def _take_out(random: Random, data: bytearray) -> None:
    start = _place(random, data)
    del data[start : start + random.choice((1, 2, 4, 8, 100, 512))]


def _repeat(random: Random, data: bytearray) -> None:
    start = _place(random, data)
    length = random.choice((1, 4, 16, 512))
    data[start:start] = data[start : start + length] * random.choice((1, 1, 2, 50))


def _insert(random: Random, data: bytearray) -> None:
    start = _place(random, data)
    data[start:start] = random.randbytes(random.choice((1, 2, 8, 64)))


def _overwrite(random: Random, data: bytearray) -> None:
    start = _place(random, data)
    length = min(random.choice((4, 64, 1024)), len(data) - start)
    data[start : start + length] = bytes(length) if random.random() < 0.5 else data[:length]


def _append(random: Random, data: bytearray) -> None:
    data += random.choice((b"\0", b"\n", b"garbage", bytes(1024), bytes(data[:300])))


BYTE_CHANGES = {
    _flip: 5,
    _set_byte: 3,
    _set_integer: 5,
    _cut: 3,
    _take_out: 2,
    _repeat: 2,
    _insert: 2,
    _overwrite: 1,
    _append: 1,
}


def changed_bytes(random: Random, data: bytes) -> bytes:
    """The content with one to four changes."""
    data = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 2, 4))):
        one_of(random, BYTE_CHANGES)(random, data)
    return bytes(data)


# ---- trees of dicts and lists ----


def nested(depth: int, inside: Any = 1) -> Any:
    """[[[..inside..]]]"""
    for _ in range(depth):
        inside = [inside]
    return inside


TEXTS = ("", " ", "a", "1", "-1", "nan", "\0", "a\0b", "a\nb", "a\rb", "a\x1b[2Jb", "a\u2028b")
TEXTS += ("\ud800", "\udc80x", "\u202eabc", "é", "../a.png", "../../../etc/passwd", "/etc/passwd")
TEXTS += ("/dev/zero", "x" * 300, "x" * 10_000, "a/" * 3000, "%s%n{0}{a.b}", "٣", "__class__")
NUMBERS = (0, 1, -1, 2, 0.5, -0.0, 1e-320, 1e9, 1e308, -1e308, 2**31, 2**53 + 1, 2**63 - 1, 2**63)
NUMBERS += (-(2**63), -(2**64), 10**30, 10**400, 10**4000, math.nan, math.inf, -math.inf)
OTHERS = (None, True, False, [], {}, [[]], [None], {"": None}, {"a": {"b": []}}, [0] * 1000)


def hostile_value(random: Random) -> Any:
    """A value that JSON can hold and a reader may not expect."""
    pool = random.choice((NUMBERS, NUMBERS, TEXTS, OTHERS))
    if random.random() < 0.02:
        return nested(random.choice((5, 40, 300)))
    return pickle.loads(pickle.dumps(random.choice(pool)))  # its own: it may be changed again


def places_in(tree: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every value in a tree."""
    found, waiting = [], [tree]
    while waiting:
        inside = waiting.pop()
        keys = list(inside) if isinstance(inside, dict) else range(len(inside))
        found += [(inside, key) for key in keys]
        waiting += [inside[key] for key in keys if isinstance(inside[key], dict | list)]
    return found


def _change_place(random: Random, container: Any, key: Any) -> None:
    what = random.random()
    if what < 0.6:
        container[key] = hostile_value(random)
    elif what < 0.75:
        del container[key]
    elif what < 0.85:
        container[key] = random.choice((lambda v: [v], str, lambda v: {"a": v}))(container[key])
    elif isinstance(container, list):
        container.insert(random.randint(0, len(container)), container[key])
    else:
        container[random.choice(TEXTS)] = container.pop(key)


def changed_tree(random: Random, tree: Any) -> Any:
    """A copy of a tree of dicts and lists with one to three values changed, lost or moved."""
    tree = pickle.loads(pickle.dumps(tree))
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        if places := places_in(tree):
            _change_place(random, *random.choice(places))
    return tree


def as_json(random: Random, tree: Any) -> bytes:
    """The tree as a JSON file, now and then of another encoding, damaged or with repeated keys."""
    text = json.dumps(tree, ensure_ascii=random.random() < 0.5, indent=random.choice((None, 1)))
    what = random.random()
    if what < 0.04:
        text = text.replace("{", '{"id": 1, ', 1 + random.randrange(5))
    elif what < 0.06:
        text = text.replace(":", ":" + "[" * random.choice((500, 100_000)), 1)
    if what > 0.97:
        return text.encode(random.choice(("utf-16", "utf-32-le", "utf-8-sig")), "surrogatepass")
    data = text.encode("utf-8", "surrogatepass")
    return changed_bytes(random, data) if what > 0.85 else data


# ---- pickles ----

# What each would do, were it run: leave the canary in the folder that it is read in.
HOSTILE_PICKLES = (
    f"cos\nsystem\n(S'touch {CANARY}'\ntR.".encode(),
    f"cposix\nsystem\n(S'touch {CANARY}'\ntR.".encode(),
    f"(S'touch {CANARY}'\nios\nsystem\n.".encode(),
    f'cbuiltins\neval\n(S\'open("{CANARY}", "w")\'\ntR.'.encode(),
    f'c__builtin__\nexec\n(S\'open("{CANARY}", "w")\'\ntR.'.encode(),
    f"\x80\x04\x8c\x08builtins\x8c\x04open\x93\x8c\x06{CANARY}\x8c\x01w\x86R.".encode("latin1"),
    f"csubprocess\nPopen\n((S'touch'\nS'{CANARY}'\nltR.".encode(),
    f"ctorch\nload\n(S'{CANARY}'\ntR.".encode(),
    b"cnumpy\nload\n(S'canary.npy'\nNI01\ntR.",
    b"cbuiltins\ngetattr\n(ctorch\nTensor\nS'__init__'\ntR.",
    b"ctorch._utils\n_rebuild_tensor_v2\n(NNNNNNtR.",
    b"ccollections\nOrderedDict\n)R}S'__reduce__'\nI1\nsb.",
    b"}" + b"(" * 5000 + b"." + b"t" * 5000 + b".",
    b"(" * 200_000 + b".",
    b"]" * 3000 + b"a" * 2999 + b".",
    b")" + b"\x85" * 50_000 + b"}q\0h\0N0.",
    b"}(" + b")" + b"\x85" * 100_000 + b"Nu.",
    b"]q\0h\0a.",
    b"}q\0(S'a'\nh\0u.",
    b"]q\0" + b"(h\0h\0lq\0" * 40 + b".",
    b"Np\xff\xff.",
    b"Nr\xff\xff\xff\x7fj\xff\xff\xff\x7f.",
    b"\x8b\xff\xff\xff\x7f1.",
    b"\x8d" + b"\xff" * 7 + b"\x7f.",
    b"\x8e\0\0\0\0\x10\0\0\0.",
    b"\x95\xff\xff\xff\xff\xff\xff\xff\x7fN.",
    b"L" + b"9" * 100_000 + b"L\n.",
    b"I" + b"1" * 20_000 + b"\n.",
    b"Pstorage\n.",
    b"\x97.",
    b"\x82\x01.",
)


def _operations(data: bytes) -> list[bytes]:
    """The instructions of a pickle, each as its bytes."""
    starts = [place for *_, place in pickletools.genops(data)]
    return [data[a:b] for a, b in zip(starts, [*starts[1:], len(data)], strict=True)]


def _integer_operation(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def _other_operation(random: Random, operation: bytes) -> bytes:
    if operation[:1] in b"KMJ\x8aIL" and random.random() < 0.8:
        return _integer_operation(random.choice((*LONG, -1, -(2**31), 2**70)))
    pool = (b"N", b"\x88", b")", b"]", b"}", b"(", b"t", b"R", b"b", b"0", b"2", b"\x86", b"Q")
    pool += (b"G\x7f\xf8\0\0\0\0\0\0", b"X\x01\0\0\0a", b"U\x01a", b"C\x00", b"cos\nsystem\n")
    return random.choice(pool)


def changed_pickle(random: Random, data: bytes) -> bytes:
    """A pickle with instructions changed, lost, repeated or put in; still a row of instructions."""
    operations = _operations(data)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        place, what = random.randrange(max(len(operations) - 1, 1)), random.random()
        if what < 0.6:
            operations[place] = _other_operation(random, operations[place])
        elif what < 0.75:
            del operations[place]
        elif what < 0.9:
            operations.insert(place, random.choice(operations))
        else:
            operations.insert(place, random.choice(HOSTILE_PICKLES)[:-1])
    return b"".join(operations)


def hostile_pickle(random: Random, data: bytes) -> bytes:
    """From a good pickle one that is damaged, lies, or would run something."""
    what = random.random()
    if what < 0.25:
        protocol = random.choice((b"", b"\x80\x02", b"\x80\x04", b"\x80\x05"))
        return protocol + random.choice(HOSTILE_PICKLES)
    return changed_pickle(random, data) if what < 0.75 else changed_bytes(random, data)


# ---- zip archives ----


def zipped(entries: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return content.getvalue()


def changed_entries(random: Random, entries: dict[str, bytes]) -> bytes:
    """An archive of these entries with one lost, renamed, changed, swollen or put in."""
    entries, method = dict(entries), zipfile.ZIP_STORED
    name, what = random.choice(list(entries)), random.random()
    if what < 0.2:
        del entries[name]
    elif what < 0.35:
        entries[random.choice(("../" + CANARY, "/" + CANARY, name.upper(), *TEXTS[1:6]))] = b"x"
    elif what < 0.5:
        entries[random.choice(TEXTS[1:6])] = entries.pop(name)
    elif what < 0.8:
        entries[name] = changed_bytes(random, entries[name])
    else:  # a bomb: zeros pack a thousandfold
        entries[name], method = entries[name] + bytes(random.choice((10**6, 3 * 10**7))), 8
    data = zipped(entries, method)
    return changed_bytes(random, data) if random.random() < 0.1 else data
