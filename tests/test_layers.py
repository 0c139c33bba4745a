"""Guard the README's "imports point down": who may import whom, read from the sources."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "resnext_det"
FACE = "the face"  # resnext_det itself
OUTSIDE = {"tools", "benchmarks", "tests"}

TASK = {"compat", "errors", "writing", "plots", "models", "config", "data", "weights", "engine"}
MAY_IMPORT = {
    "machine": set(),
    "errors": set(),
    "compat": {"machine"},
    "command_line": {"errors"},
    "writing": {"errors"},
    "plots": set(),
    "paper": set(),
    "native": {"machine", "errors"},
    "models": {"machine", "errors", "native"},
    "capacity": {"machine", "models", "paper", "errors"},
    "config": {"errors"},
    "runs": {"config", "errors"},
    "reproduction": {"config", "errors", "models", "paper", "plots", "runs", "writing"},
    "data": {"errors", "writing"},
    "weights": {"models", "errors", "writing"},
    "engine": {"compat", "errors", "native", "writing"},
    "classification": TASK,
    "detection": TASK | {"native"},
    FACE: TASK | {"detection"},
}


def room_of(parts):
    """("models", "resnext.py") is in "models"; ("config.py",) in "config"."""
    return FACE if parts == ("__init__.py",) else parts[0].removesuffix(".py")


def room_named(name):
    """ "resnext_det.models.resnext" is in "models", "tools.demo" in "tools", "torch" nowhere."""
    top, *rest = name.split(".")
    if top != PACKAGE.name:
        return top if top in OUTSIDE else None
    return rest[0] if rest and rest[0] in MAY_IMPORT else FACE


def names_imported(source, parts):
    """Every module that the source at `parts` (a path inside the package) imports, in full."""
    folder = [PACKAGE.name, *parts[:-1]]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = folder[: len(folder) + 1 - node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def rooms_imported(source, parts):
    rooms = {room_named(name) for name in names_imported(source, parts)}
    return rooms - {None, room_of(parts)}


def forbidden(source, parts):
    return rooms_imported(source, parts) - MAY_IMPORT[room_of(parts)]


def sources():
    return {path.relative_to(PACKAGE).parts: path.read_text() for path in PACKAGE.rglob("*.py")}


def test_every_room_is_in_the_table():
    assert {room_of(parts) for parts in sources()} == set(MAY_IMPORT)


@pytest.mark.parametrize("parts", sorted(sources()), ids="/".join)
def test_imports_point_down(parts):
    found = forbidden(sources()[parts], parts)
    assert not found, f"{room_of(parts)} may not import {', '.join(sorted(found))}"


def graph_of(files):
    graph = {}
    for parts, source in files.items():
        graph.setdefault(room_of(parts), set()).update(rooms_imported(source, parts))
    return graph


def test_rooms_have_no_cycle():
    graph = graph_of(sources())
    assert graph["detection"] >= {"models", "config", "errors"}  # or nothing would be compared
    tuple(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("folder", sorted(OUTSIDE - {"tests"}))
def test_nothing_imports_a_tool(folder):
    """A script holds nothing that another one would need."""
    for path in (ROOT / folder).glob("*.py"):
        names = {name.split(".")[0] for name in names_imported(path.read_text(), path.parts)}
        assert not names & (OUTSIDE - {folder} | {"tools"}), path.name


# ---- the checks above can fail ----


@pytest.mark.parametrize(
    "source, parts, found",
    [
        ("from ..config import get_cfg", ("models", "resnext.py"), {"config"}),
        ("from .. import plots", ("models", "resnext.py"), {"plots"}),
        ("def f():\n    from ..detection.rpn import x", ("engine", "run.py"), {"detection"}),
        ("from ..detection import rpn", ("classification", "trainer.py"), {"detection"}),
        ("from .classification import trainer", ("errors.py",), {"classification"}),
        ("import resnext_det.models.resnext", ("errors.py",), {"models"}),
        ("from resnext_det.weights import files", ("data", "coco.py"), {"weights"}),
        ("from resnext_det import get_cfg", ("detection", "rpn.py"), {FACE}),
        ("import resnext_det", ("detection", "rpn.py"), {FACE}),
        ("from .. import get_cfg", ("detection", "rpn.py"), {FACE}),
        ("from . import __version__", ("compat.py",), {FACE}),
        ("from ...models import x", ("detection", "deep", "file.py"), set()),
        ("from tools.demo import main", ("detection", "report.py"), {"tools"}),
        ("import benchmarks.same_minutes", ("detection", "report.py"), {"benchmarks"}),
        ("from .proposals import x", ("detection", "stages.py"), set()),
        ("from ..errors import InputError\nimport torch", ("models", "resnext.py"), set()),
    ],
)
def test_the_check_itself(source, parts, found):
    assert forbidden(source, parts) == found


def test_the_check_of_cycles_itself():
    files = {
        ("data", "coco.py"): "from ..config import get_cfg",
        ("config.py",): "from .weights import read_weights",
        ("weights", "files.py"): "from ..data.coco import x",
    }
    with pytest.raises(graphlib.CycleError):
        tuple(graphlib.TopologicalSorter(graph_of(files)).static_order())
