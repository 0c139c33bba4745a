"""docs/refusals.md: every refusal of the sources, with the test that meets it.

    make refusals        # runs the suite with this file as a plugin, then writes the document

A refusal is a place that makes an `InputError`, or a kind of fault that `Findings` counts as one
that stops. Where it is met, and by which test, is recorded while the suite runs; tests of tools
in processes of their own are not seen. tests/test_docs.py compares document and sources.
"""

import ast
import fcntl
import json
import os
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "refusals.md"
RECORD = "RESNEXT_DET_REFUSALS"  # path of what a run of the suite met, a JSON object a line
HEAD = """# What is refused, and the test of each refusal

Every place that ends a command with one line (file, what was found, what to do; exit status 2), as
the sources have it. `<..>` stands for what is filled in, `a / b` for one of two texts. A test met
the refusal in a run of the suite; of several, the one that meets fewest others is named. Made by
`make refusals`; `tests/test_docs.py` compares it with the sources.
"""


@dataclass(frozen=True)
class Site:
    """A place in the sources: lines ``first`` to ``last`` of ``path`` (from the root)."""

    path: str
    function: str
    found: str
    mend: str
    first: int
    last: int

    @property
    def row(self) -> tuple[str, str, str]:
        return self.function, self.found, self.mend


def _text(node: ast.expr) -> str:
    match node:
        case ast.Constant(value=str(value)):
            return value
        case ast.JoinedStr(values=parts):
            return "".join(map(_text, parts))
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _text(left) + _text(right)
        case ast.IfExp(body=body, orelse=orelse):
            return f"{_text(body)} / {_text(orelse)}"
        case ast.FormattedValue(value=ast.Name(id=name)) | ast.Name(id=name):
            return f"<{name.strip('_').lower()}>"
        case ast.FormattedValue(value=ast.Attribute(attr=name)) | ast.Attribute(attr=name):
            return f"<{name.lower()}>"
    return "<..>"


def _refusal(call: ast.Call) -> tuple[str, str] | None:
    """(found, mend) of a call that refuses."""
    args = call.args
    match call.func:
        case ast.Name(id="InputError") if args:
            texts = [_text(arg) for arg in args[1:3]]
            return (texts[0] if texts else "<..>", texts[1] if len(texts) > 1 else "<..>")
        case ast.Attribute(attr="add") if len(args) >= 5 and "STOPS" in ast.unparse(args[1]):
            return _text(args[0]), _text(args[4])
    return None


class _Finder(ast.NodeVisitor):
    def __init__(self, path: str):
        self.path, self.names, self.sites = path, [], []

    def _inside(self, node: ast.AST) -> None:
        self.names.append(node.name)
        self.generic_visit(node)
        self.names.pop()

    visit_FunctionDef = visit_ClassDef = _inside

    def visit_Call(self, node: ast.Call) -> None:
        texts = _refusal(node)
        if texts:
            name = ".".join(self.names)
            self.sites.append(Site(self.path, name, *texts, node.lineno, node.end_lineno))
        self.generic_visit(node)


def sites() -> list[Site]:
    """All refusals of the package and its tools, in the order of the files and lines."""
    found = []
    for folder in ("resnext_det", "tools"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            finder = _Finder(str(path.relative_to(ROOT)))
            finder.visit(ast.parse(path.read_text()))
            found += finder.sites
    return found


# ---- while the suite runs ----


_notes: list[dict] = []  # of this process; a test may have made files that cannot grow


def _note(frame) -> None:
    test = os.environ.get("PYTEST_CURRENT_TEST", "")
    path = Path(frame.f_code.co_filename)
    if not test or not path.is_relative_to(ROOT):
        return
    line = {"path": str(path.relative_to(ROOT)), "line": frame.f_lineno}
    line["test"] = test.rsplit(" (", 1)[0].split("[", 1)[0]
    _notes.append(line)


def pytest_unconfigure(config) -> None:
    if RECORD in os.environ:
        with open(os.environ[RECORD], "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.writelines(json.dumps(line) + "\n" for line in _notes)
        _notes.clear()


def pytest_configure(config) -> None:
    """As a plugin (``-p refusals``): note where refusals are made."""
    if RECORD not in os.environ:
        return
    from resnext_det.data.findings import STOPS, Findings
    from resnext_det.errors import InputError

    make, add = InputError.__init__, Findings.add

    def noted(self, *args, **kwargs):
        _note(sys._getframe(1))
        make(self, *args, **kwargs)

    def noted_add(self, kind, severity, entries, *args, **kwargs):
        if severity == STOPS and len(entries):
            _note(sys._getframe(1))
            _note(sys._getframe(2))  # a reader may have a method of its own for it
        add(self, kind, severity, entries, *args, **kwargs)

    InputError.__init__, Findings.add = noted, noted_add


# ---- the document ----


def _tests_of(all_sites: list[Site], lines: list[dict]) -> dict[Site, str]:
    met: dict[tuple[str, int], set[str]] = defaultdict(set)
    for line in lines:
        met[line["path"], line["line"]].add(line["test"])
    tests = {
        site: set().union(*(met[site.path, n] for n in range(site.first, site.last + 1)))
        for site in all_sites
    }
    breadth: dict[str, int] = defaultdict(int)
    for names in tests.values():
        for name in names:
            breadth[name] += 1
    return {
        site: min(names, key=lambda name: (breadth[name], name))
        for site, names in tests.items()
        if names
    }


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def page(all_sites: list[Site], tests: dict[Site, str]) -> str:
    lines, path = [HEAD], None
    for site in all_sites:
        if site.path != path:
            path = site.path
            lines += [f"\n## {path}\n", "| in | found | what to do | test |", "|---|---|---|---|"]
        test = f"`{tests[site]}`" if site in tests else "none"
        lines.append(f"| {' | '.join(map(cell, site.row))} | {test} |")
    return "\n".join(lines) + "\n"


def rows_of(text: str) -> list[tuple[str, tuple[str, ...], str]]:
    """(path, cells of `Site.row`, test) of every row of the document."""
    rows, path = [], ""
    for line in text.splitlines():
        if line.startswith("## "):
            path = line[3:]
        elif line.startswith("| ") and not line.startswith("| in |"):
            *cells, test = line.strip("| ").replace("\\|", "\0").split(" | ")
            rows.append((path, tuple(cell.replace("\0", "\\|") for cell in cells), test.strip("`")))
    return rows


def main() -> None:
    lines = [json.loads(line) for line in Path(os.environ[RECORD]).read_text().splitlines()]
    all_sites = sites()
    tests = _tests_of(all_sites, lines)
    PAGE.write_text(page(all_sites, tests))
    print(f"{len(all_sites)} refusals, {len(all_sites) - len(tests)} without a test: {PAGE}")


if __name__ == "__main__":
    main()
