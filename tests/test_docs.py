"""Guard the documents: figures are those of the records, links and named files lead somewhere."""

import json
import re
import statistics
from pathlib import Path

import pytest
from refusals import PAGE, cell, rows_of, sites

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def study_rows():
    """{"1x64d": ("34.63 +- 0.35", "34.85, 35.10, 33.95"), ...} of docs/studies.md."""
    text = (ROOT / "docs" / "studies.md").read_text()
    rows = re.findall(
        r"^\| (\d+x\d+d) +\|.*\| +([\d.]+ \+- [\d.]+) +\| +([\d., ]+?) +\|$", text, re.M
    )
    return {name: (mean, errors) for name, mean, errors in rows}


def test_the_study_has_rows():
    assert list(study_rows()) == ["1x64d", "2x40d", "4x24d", "32x4d"]


@pytest.mark.parametrize("setting", study_rows())
def test_the_study_is_what_was_recorded(setting):
    files = sorted((ROOT / "docs" / "records").glob(f"cardinality_{setting}_seed*.json"))
    records = [json.loads(file.read_text()) for file in files]
    assert [record["seed"] for record in records] == [0, 1, 2]
    errors = [record["results"]["classification/top1_error"] for record in records]
    bar = statistics.stdev(errors) / len(errors) ** 0.5
    mean = f"{statistics.fmean(errors):.2f} +- {bar:.2f}"
    assert study_rows()[setting] == (mean, ", ".join(f"{error:.2f}" for error in errors))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", document.read_text())
    for link in links:
        assert "://" in link or (document.parent / link).exists(), link


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_named_files_are_there(document):
    text = document.read_text()
    for name in re.findall(
        r"\b(?:tools|benchmarks|configs|tests|docs)/[\w./-]*\w\.(?:py|yaml|md)", text
    ):
        assert (ROOT / name).exists(), name


# ---- refusals ----


def test_every_refusal_is_listed():
    """`make refusals` writes the document anew."""
    assert [row[:2] for row in rows_of(PAGE.read_text())] == [
        (site.path, tuple(map(cell, site.row))) for site in sites()
    ]


def test_the_tests_of_refusals_are_there():
    rows = rows_of(PAGE.read_text())
    for test in {test for *_, test in rows} - {"none"}:
        file, *names = test.split("::")
        text = (ROOT / file).read_text()
        assert all(f"{name}(" in text or f"class {name}" in text for name in names), test
    without = [row for row in rows if row[2] == "none"]
    assert len(without) < 0.1 * len(rows), without


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_nothing_is_left_to_fill_in(document):
    assert not re.findall(r"@[A-Z]{3,}@|\bTODO\b|\bTBD\b", document.read_text())
