"""Guard the capacity tables: what the tool prints, the document made of it, and its refusals."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest

from resnext_det import capacity
from resnext_det.capacity.layers import layers_of
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
        (1, ["25,557,032", "25,028,904", "[1x1, 128; 3x3, 128, C=32; 1x1, 256] x 3", "112 x 112"]),
        (2, ["71,456", "69,632", "112", "0.22 G"]),
        (3, ["44,177,704", "22.2", "21.2", "4.1 G", "7.8 G"]),
        (4, ["64,666,152", "85,611,336", "20.4", "5.3", "15 G"]),
        (7, ["34,426,698", "68,155,210", "3.65", "17.31"]),
    ],
)
def test_known_cells(call, number, cells):
    text = call("--table", str(number))
    for cell in cells:
        assert cell in text


def rows_of(number):
    return [row for table in capacity.paper_table(number) for row in table.as_dict()["rows"]]


def test_table_1_row_by_row():
    """conv1 to the head, both networks: what is built is what the paper lists."""
    rows = [row for row in rows_of(1) if "stage" in row]
    names = ["conv1", "conv2", "conv3", "conv4", "conv5", "head"]
    assert [row["stage"] for row in rows] == 2 * names
    assert rows[0]["paper output"] == (112, 112) and rows[0]["layers"] == "7x7, 64, stride 2"
    for row in rows:
        assert row["output"] == row["paper output"] and row["layers"] == row["paper layers"]


def test_layers_are_read_from_the_network():
    """Those of another member are its own."""
    column = layers_of("X152_16x8d_w0.5")
    assert column.conv1 == (112, 7, 32, 2) and column.pooling == (3, 2)
    assert list(column.stages) == ["res2", "res3", "res4", "res5"]
    assert column.stages["res3"] == (28, (128, 128, 256), 16, 8, (1, 3, 1))


# Table -> (our column, the paper's) and how far the paper's rounding may be from ours.
BESIDE = {
    1: [("parameters", "paper parameters", 0.06e6), ("multiply-adds", "paper FLOPs", 0.05e9)],
    2: [
        ("d", "paper d", 0),
        ("width C x d", "paper width", 0),
        ("parameters (Eq. 4)", "paper, about", 1.5e3),
        ("multiply-adds at 56 x 56", "paper FLOPs, about", 0.005e9),
    ],
    3: [("multiply-adds", "paper FLOPs, about", 0.3e9)],
    4: [
        ("multiply-adds", "paper FLOPs, about", 0.5e9),
        ("x R101_1x64d", "paper, x", 0.1),
    ],
    7: [("parameters, 10 classes", "paper parameters", 0.06e6)],
}


def test_every_table_is_compared():
    assert set(BESIDE) == set(capacity.TABLES)


@pytest.mark.parametrize("number", BESIDE)
def test_the_papers_numbers_stand_beside_ours(number):
    for ours, papers, apart in BESIDE[number]:
        pairs = [(row[ours], row[papers]) for row in rows_of(number) if ours in row]
        assert len(pairs) >= 2
        for counted, printed in pairs:
            assert counted is None or abs(counted - printed) <= apart, (ours, counted, printed)


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
