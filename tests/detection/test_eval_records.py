"""Guard what an evaluation leaves: its own folder, its own record, nothing in another run's."""

import json

import pytest
import yaml
from test_pipeline import refusal
from tiny import make_cfg, write_start_weights

from resnext_det.detection import pipeline


@pytest.fixture(scope="module")
def run(demo_set, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    weights = write_start_weights(tmp_path_factory.mktemp("classification"))
    pipeline.run(make_cfg(demo_set, folder, weights), resume=False)
    return folder


def evaluate(run, folder, **test):
    weights = str(run / "model_final.safetensors")
    cfg = pipeline.evaluation_cfg(None, weights)
    cfg.OUTPUT_DIR = str(folder)
    for key, value in test.items():
        cfg.TEST[key] = value
    pipeline.evaluate_only(cfg, weights)


def test_an_evaluation_has_a_record(run, tmp_path):
    evaluate(run, tmp_path)
    about = json.loads((tmp_path / "run.json").read_text())
    assert about["kind"] == "evaluation" and about["precision"] == "fp32"
    trained = json.loads((run / "run.json").read_text())
    assert trained["kind"] == "training" and trained["precision"] == "fp32"


def test_a_second_one_takes_its_place(run, tmp_path):
    evaluate(run, tmp_path)
    first = json.loads((tmp_path / "results.json").read_text())
    evaluate(run, tmp_path, DETECTIONS_PER_IMAGE=1)
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert config["TEST"]["DETECTIONS_PER_IMAGE"] == 1
    assert json.loads((tmp_path / "results.json").read_text()) != first


def test_not_into_the_run_that_trained(run):
    before = {p.name: p.stat().st_mtime_ns for p in run.iterdir() if p.is_file()}
    refusal(lambda: evaluate(run, run), "training run")
    assert {p.name: p.stat().st_mtime_ns for p in run.iterdir() if p.is_file()} == before
    weights = run / "model_final.safetensors"
    assert pipeline.evaluation_cfg(None, str(weights)).OUTPUT_DIR == str(run / "eval")


def test_other_settings_have_another_folder(run):
    """The same evaluation takes the place of its former self; one with another cap does not."""
    weights = str(run / "model_final.safetensors")
    for opts, name in (([], "eval"), (["TEST.DETECTIONS_PER_IMAGE", "1"], "eval_2"), ([], "eval")):
        cfg = pipeline.evaluation_cfg(None, weights, opts)
        assert cfg.OUTPUT_DIR == str(run / name)
        pipeline.evaluate_only(cfg, weights)
    kept = [json.loads((run / name / "results.json").read_text()) for name in ("eval", "eval_2")]
    assert kept[0] == json.loads((run / "results.json").read_text()) != kept[1]


def test_an_unknown_class_leaves_no_folder(run):
    weights = str(run / "model_final.safetensors")
    cfg = pipeline.evaluation_cfg(None, weights, ["TEST.CLASSES", "unicorn"])
    refusal(lambda: pipeline.evaluate_only(cfg, weights), "TEST.CLASSES", "unicorn", "choose from")
    assert not (run / cfg.OUTPUT_DIR).exists()


def test_an_unknown_class_is_told_before_training(demo_set, tmp_path):
    cfg = make_cfg(demo_set, tmp_path / "run", "")
    cfg.TEST.CLASSES = ("unicorn",)
    refusal(lambda: pipeline.prepare(cfg), "TEST.CLASSES", "unicorn", "val.json")


def test_missing_weights_are_told_before_the_data_are_read(demo_set, tmp_path):
    cfg = make_cfg(demo_set, tmp_path / "run", "none.pth")
    cfg.DATASETS.COCO_JSON = [["demo_train", "none.json", "nowhere"]]
    refusal(lambda: pipeline.prepare(cfg), "none.pth")
