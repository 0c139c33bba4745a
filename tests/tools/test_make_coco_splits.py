"""Guard the command that makes minival and valminusminival: what it writes, prints and refuses."""

import json
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def write(path, ids):
    images = [{"id": i, "file_name": f"{i:012d}.jpg", "width": 8, "height": 6} for i in ids]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "person"}]}
    path.write_text(json.dumps(content))


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "instances_train2017.json", [9, 391895])
    write(tmp_path / "instances_val2017.json", [139])
    write(tmp_path / "instances_val2014.json", [139, 391895])
    return tmp_path


def run(monkeypatch, *args):
    """In this process, which saves the seconds of the imports."""
    monkeypatch.setattr(sys, "argv", ["make_coco_splits.py", *map(str, args)])
    runpy.run_path(str(ROOT / "tools" / "make_coco_splits.py"), run_name="__main__")


def test_what_it_says(folder, monkeypatch, capsys):
    run(monkeypatch, folder, "--to", folder / "made")
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        f"{folder}/made/instances_minival2014.json: 1 images, 0 annotations",
        f"{folder}/made/instances_valminusminival2014.json: 1 images, 0 annotations",
        "minival == val2017: 1 image ids",
        "trainval35k == train2017: 1 + 1 = 2 image ids",
    ]
    assert lines[4:] and all(line.startswith("note: ") for line in lines[4:])
    made = json.loads((folder / "made" / "instances_valminusminival2014.json").read_text())
    assert [entry["file_name"] for entry in made["images"]] == ["COCO_val2014_000000391895.jpg"]


def test_a_refusal_is_one_line(folder, monkeypatch, capsys):
    (folder / "instances_val2014.json").unlink()
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, folder)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {folder}: has neither instances_val2014.json")
    assert error.count("\n") == 1
