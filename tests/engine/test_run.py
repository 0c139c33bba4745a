"""Guards the frame of a run: no line is logged twice, a used folder is refused, JSON has no NaN."""

import json
import logging

import pytest

from resnext_det.config import load_cfg
from resnext_det.engine.run import start_run, write_json
from resnext_det.errors import InputError


def run_in(folder):
    cfg = load_cfg(None, ["OUTPUT_DIR", str(folder), "MODEL.DEVICE", "cpu"])
    start_run(cfg, new=True)
    return cfg


def test_two_runs_of_one_process_log_each_line_once(tmp_path, capsys):
    run_in(tmp_path / "first")
    run_in(tmp_path / "second")
    capsys.readouterr()
    logging.getLogger("resnext_det").info("a line of the second run")
    assert capsys.readouterr().out.count("a line of the second run") == 1
    logs = [tmp_path.joinpath(name, "log.txt") for name in ("first", "second")]
    for handler in logging.getLogger("resnext_det").handlers:
        handler.flush()
    found = [path.exists() and "a line of the second run" in path.read_text() for path in logs]
    assert found == [False, True]


def test_folder_of_another_run_is_refused(tmp_path):
    write_json(tmp_path / "run.json", {})
    with pytest.raises(InputError, match=f"{tmp_path}: holds a run already.*--resume"):
        run_in(tmp_path)


def test_unset_seed_becomes_zero(tmp_path):
    assert run_in(tmp_path).SEED == 0


def test_nan_is_written_as_null(tmp_path):
    write_json(tmp_path / "a.json", {"AP": float("nan"), "list": [1.5, float("nan")]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"AP": None, "list": [1.5, None]}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
