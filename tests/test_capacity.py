"""Guard the capacity tables: what the tool prints, the document made of it, and its refusals."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest

from resnext_det import capacity
from resnext_det.errors import InputError

ROOT = Path(__file__).parents[1]
TOOL = str(ROOT / "tools" / "analyze_model.py")
DOCUMENT = ROOT / "docs" / "capacity.md"
EXAMPLES = re.findall(
    r"^    python tools/analyze_model\.py (.*)\n\n((?:.+\n|\n(?!    python|## ))*)",
    DOCUMENT.read_text(),
    re.MULTILINE,
)


@pytest.fixture
def call(monkeypatch, capsys):
    def call(*words):
        monkeypatch.setattr(sys, "argv", ["analyze_model.py", *words])
        runpy.run_path(TOOL, run_name="__main__")
        return capsys.readouterr().out

    return call


def refusal(call, capsys, *words):
    with pytest.raises(SystemExit) as caught:
        call(*words)
    message = capsys.readouterr().err
    assert caught.value.code == 2 and message.startswith("error: ") and message.count("\n") == 1
    return message


@pytest.mark.parametrize("number", capacity.TABLES)
def test_every_table_prints(call, number):
    text = call("--table", str(number))
    assert text.startswith(f"Table {number}") and text.count("|") > 20


@pytest.mark.parametrize(
    "number, cells",
    [
        (1, ["25,557,032", "25,028,904", "[1x1, 128; 3x3, 128, C=32; 1x1, 256] x 3"]),
        (2, ["71,456", "69,632", "112"]),
        (3, ["44,177,704", "22.2", "21.2"]),
        (4, ["64,666,152", "85,611,336", "20.4", "5.3"]),
        (7, ["34,426,698", "68,155,210", "3.65", "17.31"]),
    ],
)
def test_known_cells(call, number, cells):
    text = call("--table", str(number))
    for cell in cells:
        assert cell in text


def test_a_network_stage_by_stage(call):
    text = call("X50_32x4d")
    assert "25,028,904" in text and "4,230,479,872" in text
    assert all(f"| {stage} " in text for stage in ("stem", "res2", "res3", "res4", "res5"))


def test_cifar_has_sizes_of_its_own(call):
    assert call("X29_8x64d").startswith("X29_8x64d: 32 x 32 pixels, classes: 10\n")
    assert "34,518,948" in call("X29_8x64d", "--num-classes", "100")


def test_image_size_changes_work_not_parameters(call):
    small, large = (
        json.loads(call("R50_1x64d", "--image-size", size, "--json")) for size in ("224", "448")
    )
    (first,), (second,) = small, large
    assert first != second
    assert "25557032" in json.dumps(first) and "25557032" in json.dumps(second)


def test_json_holds_the_numbers_not_rounded(call):
    (table,) = json.loads(call("--table", "4", "--json"))
    rows = {row["model"]: row for row in table["rows"]}
    assert rows["R200_1x64d"]["parameters"] == 64_666_152
    single, double = (rows[name]["multiply-adds"] for name in ("R101_1x64d", "X101_64x4d"))
    assert rows["X101_64x4d"]["x R101_1x64d"] == double / single
    assert table["notes"] and table["title"].startswith("Table 4")
    (table, *others) = json.loads(call("X29_8x64d", "--table", "7", "--json"))
    assert table["rows"][-1]["parameters"] == 34_426_698
    (cifar,) = others
    assert cifar["rows"][0]["parameters, 10 classes"] is None  # Wide ResNet is not ours


def test_eq_4_solved(call):
    assert re.search(
        r"\|\s+8 \|\s+14 \|\s+112 \|\s+71,456 \|", call("--cardinality", "8", "--budget", "70000")
    )


@pytest.mark.parametrize(
    "words, found",
    [
        (["X50_1x64d"], "R50_1x64d"),
        (["resnext50"], "resnext50"),
        (["X51_32x4d"], "50, 101, 152"),
        (["X50_32x4d", "--image-size", "0"], "image size"),
        (["X50_32x4d", "--image-size", "ten"], "--image-size"),
        (["X50_32x4d", "--image-size", "1e30"], "--image-size"),
        (["X50_32x4d", "--image-size", "65537"], "65536 at most"),
        (["X50_32x4d", "--image-size", "31"], "has a stride of 32; give 32 or more"),
        (["X29_8x64d", "--image-size", "3"], "has a stride of 4; give 4 or more"),
        (["X50_32x4d", "--num-classes", "0"], "number of classes: found 0"),
        (["--num-classes", "10", "--table", "3"], "without a network"),
        (["X50_65536x65536d_w65536"], "too large to count"),
        (["--budget", "70000"], "--cardinality"),
        (["--cardinality", "x", "--budget", "70000"], "--cardinality is 'x'"),
        (["--cardinality", "8"], "--budget"),
        (["--cardinality", "64", "--budget", "3"], "budget"),
        (["--image-size", "224"], "without a network"),
        ([], "nothing is asked for"),
    ],
)
def test_refusals(call, capsys, words, found):
    assert found in refusal(call, capsys, *words)


def test_another_table(call):
    with pytest.raises(SystemExit) as caught:
        call("--table", "5")
    assert caught.value.code == 2
    with pytest.raises(InputError, match="1, 2, 3, 4, 7"):
        capacity.paper_table(5)


def test_the_document_has_examples():
    assert len(EXAMPLES) == 7


@pytest.mark.parametrize("words, printed", EXAMPLES, ids=lambda text: text[:20])
def test_the_document_is_what_the_tool_prints(call, words, printed):
    assert printed.strip() == call(*words.split()).strip()
