"""Reading a config: files with ``_BASE_``, overrides, a run's stored text."""

import difflib
import functools
import re
from ast import literal_eval
from pathlib import Path
from typing import Any
from unicodedata import category

import yaml
from detectron2.config import CfgNode

from ..errors import SHOWN, InputError, one_line
from .checks import check_cfg
from .keys import get_cfg
from .views import flatten, nearest_key
from .yaml_text import checked, load_yaml, unreadable

# As engine.batch.FOLLOWING has them, which may not be imported; tests/test_config.py compares.
SCHEDULE = ("BASE_LR", "MAX_ITER", "STEPS", "WARMUP_ITERS")
# What a text raises that is no Python literal; the last three where it is nested or built to harm.
_NO_LITERAL = (ValueError, SyntaxError, TypeError, RecursionError, MemoryError)
_GIVE_YAML = "give a path to a YAML file, such as those in configs/"
_NEVER = ("null", "NaN", "unprintable")  # kinds of values that no key can have
_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")  # Unicode's controls, surrogates, line and paragraph ends
_LONGEST_TEXT = 1000  # characters; a path of more is none that people type
# What the entries of a sequence are that is empty by default. Others' are as in the default.
_ENTRIES = {"SOLVER.EPOCH_STEPS": "number", "PROPOSALS.FILES": "text"}
_ENTRIES |= dict.fromkeys(("DATASETS.TRAIN", "DATASETS.TEST"), "text")


def _merge_error(cfg: CfgNode, source: str, error: Exception) -> InputError:
    if isinstance(error, TypeError | AttributeError):
        return InputError(
            source, "is not a mapping of config keys to values", 'write lines of "KEY: value"'
        )
    text = str(error.args[0]) if error.args else str(error)
    if "Non-existent" in text:
        key = one_line(text.split(":")[-1].strip().split(" ")[-1])
        return InputError(
            source, f"there is no config key {key}", f"did you mean {nearest_key(cfg, key)}?"
        )
    text = " ".join(text.split())
    mismatch = re.match(r".* vs\. (.*)\) for config key: (\S+)$", text)
    if mismatch:  # yacs prints all keys of a group
        value, key = mismatch.groups()
        default = repr(flatten(cfg)[key]) if key in flatten(cfg) else "a group of keys"
        text = f"{key} is {one_line(value)}, its default is {default}"
    return InputError(
        source, one_line(text), "give the key a value of its own type (text in quotes)"
    )


def _as_declared(declared: Any, value: Any) -> Any:
    """What users mean: a whole number for a real one, one value for a sequence of one.

    Text is first read as a Python literal, as Detectron2 does: YAML has no tuples.
    """
    if isinstance(value, str) and not isinstance(declared, str):
        try:
            value = literal_eval(value)
        except _NO_LITERAL:
            pass  # a plain word, such as the name of a data set
    if isinstance(declared, float) and type(value) is int:
        return float(value)
    if isinstance(declared, tuple | list) and not isinstance(value, tuple | list):
        return type(declared)([value])
    return value


def _as_text(text: str) -> str:
    """A word as it was typed, a number too; quotes around it are taken off."""
    try:
        value = literal_eval(text)
    except _NO_LITERAL:
        return text
    return value if isinstance(value, str) else text


def _coerce(cfg: CfgNode, declared: CfgNode) -> None:
    for key, value in cfg.items():
        if isinstance(value, CfgNode):
            if isinstance(declared.get(key), CfgNode):
                _coerce(value, declared[key])
        elif key in declared:
            cfg[key] = _as_declared(declared[key], value)


def _merge_override(cfg: CfgNode, key: str, text: str) -> None:
    declared = flatten(cfg)
    if key not in declared:
        raise InputError(
            "command line",
            f"there is no config key {one_line(key)}",
            f"did you mean {nearest_key(cfg, key[:SHOWN])}?",
        )
    if isinstance(declared[key], str):
        *path, leaf = key.split(".")
        functools.reduce(CfgNode.__getitem__, path, cfg)[leaf] = _as_text(text)
        return
    try:
        cfg.merge_from_list([key, _as_declared(declared[key], text)])
    except (KeyError, AssertionError, *_NO_LITERAL) as error:
        raise InputError(
            "command line",
            f"{key} is {one_line(repr(text))}, its default is {flatten(get_cfg())[key]!r}",
            "give a value of the same type",
        ) from error


def load_cfg(config_file: str | Path | None, opts: list[str] = ()) -> CfgNode:
    """Defaults, then a YAML file (with ``_BASE_``), then ``KEY VALUE`` overrides.

    Raises:
        InputError: missing or unreadable file, unknown key (with the nearest real one),
            wrong type, an override without a value, a YAML tag that would run code.
    """
    cfg = get_cfg()
    if config_file:
        _merge_file(cfg, str(config_file))
    override(cfg, opts)
    _count_as_typed(cfg.SOLVER, opts[::2])
    _keep_typed(cfg.SOLVER, opts[::2])
    _check(cfg, str(config_file or "command line"), opts[::2])
    return cfg


def _check(cfg: CfgNode, source: str, typed: list[str]) -> None:
    """`check_cfg`; what was typed is not the file's fault."""
    try:
        check_cfg(cfg, source)
    except InputError as error:
        if any(key in error.found for key in typed):
            raise InputError("command line", error.found, error.mend) from error
        raise


def _count_as_typed(solver: CfgNode, keys: list[str]) -> None:
    """Iterations that are typed go before a recipe's epochs; both cannot be meant."""
    for iterations, epochs, none in (("MAX_ITER", "MAX_EPOCHS", 0.0), ("STEPS", "EPOCH_STEPS", ())):
        if f"SOLVER.{iterations}" not in keys or not solver[epochs]:
            continue
        if f"SOLVER.{epochs}" in keys:
            raise InputError(
                "command line",
                f"SOLVER.{iterations} and SOLVER.{epochs} are both given",
                "give one of them: iterations or epochs",
            )
        solver[epochs] = none
    if "SOLVER.STEPS" in keys and solver.MAX_EPOCHS > 0:
        raise InputError(
            "command line",
            f"SOLVER.STEPS counts iterations, and SOLVER.MAX_EPOCHS is {solver.MAX_EPOCHS:g}",
            "give SOLVER.EPOCH_STEPS, in epochs, or SOLVER.MAX_ITER as well",
        )


def _keep_typed(solver: CfgNode, keys: list[str]) -> None:
    """What is typed beside another batch than the recipe's is meant for that batch.

    Not so where the reference is typed too: the rest is then meant for it.
    """
    for group, node in (("SOLVER", solver), *((f"SOLVER.{k}", v) for k, v in solver.items())):
        if not (isinstance(node, CfgNode) and "REFERENCE_BATCH" in node):
            continue
        follows = node.REFERENCE_BATCH not in (0, node.IMS_PER_BATCH)
        if follows and f"{group}.REFERENCE_BATCH" not in keys:
            # A group of one network has no warm-up of its own: SOLVER's is meant.
            typed = [k for k in SCHEDULE if f"{group if k in node else 'SOLVER'}.{k}" in keys]
            node.REFERENCE_KEEPS = tuple(dict.fromkeys([*node.REFERENCE_KEEPS, *typed]))


def override(cfg: CfgNode, opts: list[str]) -> None:
    """Merge ``KEY VALUE`` pairs from a command line. Raises InputError as `load_cfg`."""
    joined = next((word for word in opts[::2] if "=" in word), None)
    if joined:
        key, _, value = joined.partition("=")
        raise InputError(
            "command line",
            f"the override {one_line(joined)} is one word",
            f"write {one_line(key)} {one_line(value)}, with a space between them",
        )
    if len(opts) % 2:
        raise InputError(
            "command line",
            f"the override {one_line(opts[-1])} has no value",
            "write overrides as KEY VALUE pairs",
        )
    for key, text in zip(opts[::2], opts[1::2], strict=True):
        _merge_override(cfg, key, text)
    _check_values(cfg, "command line")


def _check_values(cfg: CfgNode, source: str) -> None:
    """Refuse what yacs lets pass: null, NaN, text that no message can show, and entries of a
    sequence of another kind.
    """
    declared = flatten(get_cfg())
    for key, value in flatten(cfg).items():
        if (default := declared.get(key)) is None:
            continue
        kinds = {_kind(entry) for entry in _entries(default)} or {_ENTRIES.get(key)}
        for entry in _entries(value):
            kind = _kind(entry)
            if kind in _NEVER or (None not in kinds and kind not in kinds):
                raise InputError(
                    source,
                    f"{key} is {one_line(repr(value))}, its default is {default!r}",
                    "give the key a value of its own type (text in quotes)",
                )


def _entries(value: Any) -> list:
    """A value, or those of a list of lists of them."""
    if not isinstance(value, list | tuple):
        return [value]
    return [entry for part in value for entry in _entries(part)]


def _kind(value: Any) -> str:
    if value is None or value != value:
        return "null" if value is None else "NaN"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "number"
    if isinstance(value, str):
        odd = len(value) > _LONGEST_TEXT or any(category(c) in _UNPRINTABLE for c in value)
        return "unprintable" if odd else "text"
    return type(value).__name__


def _merge_file(cfg: CfgNode, path: str) -> None:
    if not Path(path).is_file():
        there = [file.name for file in sorted(Path(path).parent.glob("*.yaml"))]
        near = difflib.get_close_matches(Path(path).name, there, n=1)
        mend = f"did you mean {Path(path).with_name(near[0])}?" if near else _GIVE_YAML
        raise InputError(path, "the config file does not exist", mend)
    try:
        given = CfgNode(load_yaml(path))
        _coerce(given, cfg)
        cfg.merge_from_other_cfg(given)
    except InputError:
        raise
    except (yaml.YAMLError, OSError, UnicodeDecodeError, RecursionError, MemoryError) as error:
        raise unreadable(path, error) from error
    except (KeyError, AssertionError, ValueError, TypeError, AttributeError) as error:
        raise _merge_error(cfg, path, error) from error
    _check_values(cfg, path)


def stored_for_test(text: str, source: str, opts: list[str] = ()) -> CfgNode:
    """A run's stored config for testing its weights: then ``opts``.

    The device is the default again, the first GPU: the machine may be another.

    Raises:
        InputError: as `cfg_from_text` and `load_cfg`.
    """
    cfg = cfg_from_text(text, source)
    cfg.MODEL.DEVICE = get_cfg().MODEL.DEVICE
    override(cfg, opts)
    check_cfg(cfg, source)
    return cfg


def cfg_from_text(text: str, source: str) -> CfgNode:
    """A config from the YAML text that travels in a weights file's record."""
    cfg = get_cfg()
    try:
        cfg.merge_from_other_cfg(CfgNode(yaml.safe_load(checked(text, source))))
    except (yaml.YAMLError, InputError, RecursionError, MemoryError) as error:
        raise InputError(source, "its stored config is not YAML", "give --config-file") from error
    except (KeyError, AssertionError, ValueError, TypeError, AttributeError) as error:
        raise _merge_error(cfg, f"{source} (its stored config)", error) from error
    _check_values(cfg, f"{source} (its stored config)")
    return cfg
