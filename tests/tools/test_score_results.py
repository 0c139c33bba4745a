"""Guard the figures of a foreign results file: pycocotools' own, and a line for what is wrong."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

TOOL = str(Path(__file__).parents[2] / "tools" / "score_results.py")
KEYS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR@1", "AR@10", "AR", "ARs", "ARm", "ARl")


@pytest.fixture(scope="module")
def files(demo_set, tmp_path_factory):
    """Results that lie near the objects of the demo's validation images, and their file."""
    truth = demo_set / "annotations" / "val.json"
    content, random = json.loads(truth.read_text()), np.random.default_rng(0)
    results = [
        {
            "image_id": entry["image_id"],
            "category_id": entry["category_id"],
            "bbox": (np.abs(entry["bbox"] + random.normal(0, 2, 4))).tolist(),
            "score": float(random.uniform()),
        }
        for entry in content["annotations"]
        for _ in range(2)
    ]
    path = tmp_path_factory.mktemp("results") / "results.json"
    path.write_text(json.dumps(results))
    return path, truth


def run(monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", [TOOL, *map(str, args)])
    runpy.run_path(TOOL, run_name="__main__")


def test_the_twelve_figures(monkeypatch, capsys, files, tmp_path):
    run(monkeypatch, *files, "--json", tmp_path / "out.json")
    figures = json.loads((tmp_path / "out.json").read_text())["bbox"]
    truth = COCO(str(files[1]))
    reference = COCOeval(truth, truth.loadRes(str(files[0])), "bbox")
    reference.evaluate()
    reference.accumulate()
    reference.summarize()
    expected = [100 * value if value > -1 else None for value in reference.stats]
    assert [figures[key] for key in KEYS] == pytest.approx(expected, abs=1e-9)
    assert 5 < figures["AP"] < 95
    out = capsys.readouterr().out
    assert f"{figures['AP']:.3f}" in out and "at most 100" in out


def test_some_classes_with_another_cap(monkeypatch, capsys, files, tmp_path):
    name = json.loads(files[1].read_text())["categories"][0]["name"]
    more = ["--classes", name, "--max-detections", 1, "--scorer", "pycocotools"]
    run(monkeypatch, *files, *more, "--json", tmp_path / "out.json")
    figures = json.loads((tmp_path / "out.json").read_text())["bbox"]
    assert [key for key in figures if key.startswith("AP-")] == [f"AP-{name}"]
    assert figures["AP"] == figures[f"AP-{name}"]
    assert "at most 1 of an image and class, by pycocotools" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("results", "words"),
    [
        ('[{"image_id": 987654, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}]', "987654"),
        ('{"bbox": {}}', "no list of results"),
        ("[" * 100_000, "nested too deeply"),
        (
            f'[{{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1{"0" * 400}}}]',
            "no number",
        ),
        ('[{"image_id": 1, "category_id": 1, "bbox": [0, 0, -1, 1], "score": 1}]', "negative"),
    ],
)
def test_what_cannot_be_scored(monkeypatch, capsys, files, tmp_path, results, words):
    path = tmp_path / "results.json"
    path.write_text(results)
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, path, files[1])
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error.startswith(f"error: {path}: ") and words in error
    assert error.count("\n") == 1 and len(error) < 1000
