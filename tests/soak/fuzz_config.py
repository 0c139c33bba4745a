"""Hostile YAML configs, and the texts of configs that travel in weights files."""

import json
import os
from pathlib import Path
from random import Random
from typing import Any

from detectron2.config import CfgNode
from fuzz_inputs import CANARY, Reader, changed_bytes, changed_tree, fault_of_message, require

from resnext_det.config import cfg_from_text, flatten, get_cfg, load_cfg
from resnext_det.errors import InputError

OPTIONS = "# options: "  # first line of an input: KEY VALUE overrides, as JSON
VALID = """_BASE_: base.yaml
MODEL: {WEIGHTS: "", RESNETS: {DEPTH: 14, WIDTH_MULTIPLIER: 0.25}, PIXEL_MEAN: [1, 2.5, 3]}
DATASETS:
  TRAIN: ("mine",)
  COCO_JSON: [[mine, a.json, images]]
SOLVER: {BASE_LR: 1e-2, MAX_ITER: 100, STEPS: (60, 80), RPN: {MAX_ITER: 7}}
TEST: {CLASSES: [a, b]}
OUTPUT_DIR: out
"""
BASE = "MODEL: {DEVICE: cpu}\nSOLVER: {IMS_PER_BATCH: 4}\n"
VALUES = f"""!!python/object/apply:os.system ["touch {CANARY}"]
!!python/object/new:os.system ["touch {CANARY}"]
!!python/object/apply:builtins.eval ["open('{CANARY}', 'w')"]
!!python/name:os.system
!!python/module:os
!!python/tuple [1, 2]
!!binary aGVsbG8=
!!set {{a, b}}
!!omap [a: 1]
!!int "x"
!!float "x"
!!timestamp "x"
!!bool "maybe"
!unknown x
2001-13-45
2001-02-03 04:05:06
190:20:30
0x7fffffffffffffffffffff
1e999
-1e999
.nan
.inf
-.inf
1e308
99999999999999999999
-5
0
1.5
~
true
"true"
abc
"1"
"None"
"[1, 2"
"__import__('os').system('touch {CANARY}')"
"lambda: 0"
"(1,)"
"1,2"
[]
{{}}
[1, 2, 3]
[a, b]
[[a, b, c]]
[[1, 2, 3]]
[[]]
[~, ~]
{{a: 1}}
{{1: 2}}
{{[1]: 2}}
{{~: 1}}
? {{a: b}}
"a\\0b"
"a\\nb"
"a\\e[2J"
"\\ud800"
"\\u2028"
*nothing
&a [*a]
&a {{b: *a}}
<<: [1]
{{<<: 3}}
{{<<: *x}}
|
 text
>-
 text
'it''s'
"unfinished
@
`
%TAG
---
...
\t
-
? 
""".split("\n")
VALUES += ["1" * 5000, "[" * 200, "[" * 5000, "{a: " * 3000, "'" + "(" * 3000 + "'"]
VALUES += ["'" + "[" * 150 + "]" * 150 + "'", "x" * 100_000, "'" + "-" * 5000 + "1'"]
VALUES += ["'" + "1+" * 3000 + "1'", "'\"\\x00\"'", "'{[]: 1}'", "'{1: {2}}'", "b'x'", "'1j'"]
BASES = (
    "config.yaml",
    "./config.yaml",
    "missing.yaml",
    ".",
    "/dev/zero",
    "/dev/stdin",
    "/etc/passwd",
    "../../../../etc/passwd",
    "~/x.yaml",
    "~nobody-has-this/x.yaml",
    "http://127.0.0.1:9/x.yaml",
    "https://127.0.0.1:9/x.yaml",
    "file:///etc/passwd",
    "detectron2://x.yaml",
    '"a\\0b"',
    "3",
    "~",
    "[]",
    "{}",
    "[base.yaml, base.yaml]",
    "[config.yaml, config.yaml]",
    "[[base.yaml]]",
    "[1, ~]",
    "fifo",
    "list.yaml",
    "deep0.yaml",
    "wide0.yaml",
)


def _prepare(folder: Path) -> dict[str, Any]:
    return dict(sorted(flatten(get_cfg()).items()))


def _bomb(random: Random) -> str:
    """Anchors within anchors: few bytes that stand for 10^9 values."""
    opening, between, closing, item = random.choice(
        (("[", ",", "]", "{}"), ("{", ",", "}", "k{}: {}"), ("[", ",", "]", "{{<<: {}}}"))
    )
    lines = [f"a0: &a0 {random.choice(('{x: 1}', '[1]', '1'))}"]
    for level in range(1, random.choice((4, 9, 12, 25))):
        items = [item.format(*([n] * (item.count("{}") - 1)), f"*a{level - 1}") for n in range(9)]
        lines.append(f"a{level}: &a{level} {opening}{between.join(items)}{closing}")
    if random.random() < 0.5:
        merges = ", ".join(["*a0"] * 9)
        lines.append(f"m: &m {{<<: [{merges}]}}")
        lines += [f"m{n}: &m{n} {{<<: [*m, *m]}}" for n in range(3)]
    return "\n".join(lines) + "\nMODEL: *a1\n" * random.choice((0, 1))


def _value(random: Random, default: Any) -> str:
    """Anything, the default as Python or YAML writes it, or something like it."""
    what = random.random()
    if what < 0.6:
        return random.choice(VALUES)
    if what < 0.7:
        return repr(default)
    return json.dumps(default if what < 0.8 else changed_tree(random, [default])[:1])


def _one_value(random: Random, keys: dict[str, Any]) -> str:
    """A real key, or one near it, with any value."""
    key = random.choice(list(keys))
    groups = key.split(".")[: random.choice((9, 9, 9, 1, 2))]
    groups[-1] += random.choice(("",) * 9 + ("X",))
    value = _value(random, keys[key])
    if "\n" in value or random.random() < 0.5:
        lines = [f"{'  ' * n}{group}:" for n, group in enumerate(groups)]
        return "\n".join(lines) + f" {value}\n"
    return "{" + ": {".join(groups) + f": {value}" + "}" * len(groups) + "\n"


def _text(random: Random, keys: dict[str, Any]) -> str:
    what = random.random()
    if what < 0.1:
        return _bomb(random)
    if what < 0.25:
        return f"_BASE_: {random.choice(BASES)}\n" + _one_value(random, keys) * random.choice(
            (0, 1)
        )
    if what < 0.3:
        return random.choice(VALUES)
    return VALID if what < 0.5 else _one_value(random, keys)


def _options(random: Random, keys: dict[str, Any]) -> list[str]:
    pairs = []
    for _ in range(random.choice((0, 0, 1, 1, 2))):
        key = random.choice((*keys, "MODEL", "", ".", "MODEL.", "a.b", "__class__", "MODEL.keys"))
        pairs += [key, _value(random, keys.get(key))]
    return pairs[: -1 if random.random() < 0.05 else None]


def _make(random: Random, keys: dict[str, Any], folder: Path) -> Path:
    text = f"{OPTIONS}{json.dumps(_options(random, keys))}\n" + _text(random, keys)
    data = text.encode("utf-8", "surrogatepass")
    what = random.random()
    if what < 0.25:
        data = changed_bytes(random, data)
    elif what < 0.28:
        data = text.encode(random.choice(("utf-16", "utf-8-sig", "utf-32-le")))
    path = folder / "config.yaml"
    path.write_bytes(data)
    return path


def _put_beside(folder: Path) -> None:
    """What a `_BASE_` may lead to."""
    if not (folder / "fifo").exists():
        os.mkfifo(folder / "fifo")
    (folder / "base.yaml").write_text(BASE)
    (folder / "list.yaml").write_text("- 1\n- 2\n")
    for level in range(30):
        (folder / f"deep{level}.yaml").write_text(f"_BASE_: deep{level + 1}.yaml\n")
        wide = f"wide{level + 1}.yaml"
        (folder / f"wide{level}.yaml").write_text(f"_BASE_: [{wide}, {wide}]\n")
    (folder / "deep30.yaml").write_text(BASE)
    (folder / "wide30.yaml").write_text(BASE)


def _options_in(path: Path) -> list[str]:
    if not path.is_file():
        return []
    first = path.read_bytes().split(b"\n")[0].decode("utf-8", "replace")
    try:
        found = json.loads(first.removeprefix(OPTIONS))
    except (ValueError, RecursionError):
        return []
    return found if isinstance(found, list) and all(isinstance(x, str) for x in found) else []


def _check(cfg: CfgNode) -> None:
    """Every key is declared, and of its default's type."""
    declared = flatten(get_cfg())
    for key, value in flatten(cfg).items():
        require(key in declared, f"the key {key} is new")
        default: Any = declared[key]
        kinds = (list, tuple) if isinstance(default, list | tuple) else (type(default),)
        fits = default is None or value is None or isinstance(value, kinds)
        numbers = all(type(entry) in (int, float) for entry in _entries(default))
        if numbers and _entries(default):
            fits &= all(type(v) in (int, float) and v == v for v in _entries(value))
        require(fits, f"{key} is {value!r:.60}, its default is {default!r:.60}")


def _entries(value: Any) -> list:
    if not isinstance(value, list | tuple):
        return [value]
    return [entry for part in value for entry in _entries(part)]


def _read(path: Path) -> None:
    """As a file with overrides, and as the text that a weights file has; a result is either's."""
    _put_beside(path.parent)
    refused = []
    calls = [lambda: load_cfg(path, _options_in(path))]
    if path.is_file():
        text = path.read_bytes().decode("utf-8", "replace")
        calls.append(lambda: cfg_from_text(text, "x.safetensors"))
    for call in calls:
        try:
            _check(call())
        except InputError as error:
            require(not fault_of_message(str(error)), f"the message {str(error)!a:.300}")
            refused.append(error)
    if len(refused) == len(calls):
        raise refused[0]


CONFIG = Reader("config", _prepare, _make, _read, ("config.yaml",))
