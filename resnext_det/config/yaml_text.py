"""Config files as text: what is looked at before YAML is turned into values.

Tags cannot run anything (`yaml.safe_load`). What is left to look after is time and memory: anchors
inside anchors make a few lines stand for any number of values, and ``_BASE_`` may lead in a circle,
to a pipe, or to an address, from which Detectron2's reader would download.
"""

import io
import os
from typing import Any

import yaml
from detectron2.config import CfgNode

from ..errors import InputError, one_line

LARGEST = 256 << 10  # bytes of a file; all keys of a run take 15 kB
MOST_VALUES = 20_000  # with every alias counted as what it stands for
DEEPEST = 20  # mappings and lists in each other
MOST_FILES = 50  # that a config is put together from


def unreadable(source: str, reason: Any) -> InputError:
    """For a text that is no YAML, or more of it than a config needs."""
    return InputError(
        source, f"not readable as a YAML config ({one_line(reason)})", "mend the file"
    )


def load_yaml(path: str) -> Any:
    """What a config file and its ``_BASE_`` hold, merged as Detectron2 does.

    Raises:
        InputError: names the file that is missing, no file, an address, not UTF-8, too large, no
            YAML, or nested too deeply (see `checked`); or the bases are more than `MOST_FILES`.
        yaml.YAMLError, or errors of other types: YAML of values that cannot be made or merged.
    """
    opened: list[str] = []

    class Files(CfgNode):
        @classmethod
        def _open_cfg(cls, filename: str) -> io.StringIO:
            opened.append(filename)
            if len(opened) > MOST_FILES:
                found = f"its _BASE_ leads in a circle, or to more than {MOST_FILES} files"
                raise InputError(path, found, "name each file once")
            return io.StringIO(checked(_read(filename, path), filename))

    return Files.load_yaml_with_base(path, allow_unsafe=False)


def _read(path: str, first: str) -> str:
    """A file's text; ``first`` is the one whose ``_BASE_`` led here."""
    if not os.path.isfile(path):  # False as well for names that no file can have
        found = "an address" if "://" in path else "no file that is there"
        found = f"its _BASE_ {one_line(path)} is {found}"
        raise InputError(first, found, "name a YAML file, relative to the file that names it")
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise unreadable(path, f"it is larger than {LARGEST >> 10} kB")
        return data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(path, error) from error


def checked(text: str, source: str) -> str:
    """The text itself, where it stands for few enough values, not nested too deeply.

    Raises:
        InputError: it does not, or it is no YAML at all.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None:
            values, depth = _measure(node, {})
            if values > MOST_VALUES or depth > DEEPEST:
                raise unreadable(source, f"it stands for {values} values, {depth} deep")
    except RecursionError as error:
        raise unreadable(source, "it is nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise unreadable(source, error) from error
    return text


def _check_keys(node: yaml.MappingNode) -> None:
    """Raises yaml.YAMLError for a key that is there twice: the last one would count."""
    seen: set[str] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.value in seen and key.value != "<<":
            line = key.start_mark.line + 1
            raise yaml.YAMLError(f"line {line} gives {key.value} again, in one group of keys")
        seen.add(key.value if isinstance(key, yaml.ScalarNode) else "")


def _measure(node: yaml.Node, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Values and depth of a node; one that an alias stands for is met before the alias."""
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = (MOST_VALUES, DEEPEST + 1)  # until it is measured: it may hold itself
    inside = node.value if isinstance(node, yaml.CollectionNode) else []
    if isinstance(node, yaml.MappingNode):
        _check_keys(node)
        inside = [part for pair in node.value for part in pair]
    sizes = [_measure(part, known) for part in inside]
    values = 1 + sum(size for size, _ in sizes)
    known[id(node)] = (values, 1 + max((depth for _, depth in sizes), default=0))
    return known[id(node)]
