"""Guard what is read from run folders: as the tools leave them, and one line where they are not."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from tiny_classifier import TINY_CLASSIFIER

from resnext_det import runs
from resnext_det.classification import trainer
from resnext_det.config import load_cfg
from resnext_det.detection import pipeline
from resnext_det.engine.run import record_run, start_run
from resnext_det.errors import InputError

ROOT = Path(__file__).parents[1]
CLASSIFY = ROOT / "configs" / "demo" / "classification.yaml"
DETECT = ROOT / "configs" / "demo" / "detection.yaml"
IMAGENET = ROOT / "configs" / "imagenet" / "X50_32x4d.yaml"
COCO = ROOT / "configs" / "faster_rcnn_X50_32x4d.yaml"
TINY = {
    **TINY_CLASSIFIER,
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 32,
    "SOLVER.MAX_EPOCHS": 1.0,
    "SOLVER.WARMUP_ITERS": 1,
    "TEST.EVAL_PERIOD": 2,
}


def options(**values):
    """KEY VALUE pairs; a key's dots are written as two underscores."""
    return [str(word) for k, v in values.items() for word in (k.replace("__", "."), v)]


@pytest.fixture(scope="module")
def trained(demo_set, tmp_path_factory):
    """A folder that the classification tool's own functions left."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    keys = {**TINY, "DATA.ROOT": demo_set / "classification", "OUTPUT_DIR": folder}
    cfg = load_cfg(CLASSIFY, options(**keys))
    start_run(cfg, new=True)
    trainer.train(cfg, resume=False)
    return folder


@pytest.fixture
def copied(trained, tmp_path):
    """The same, to be damaged."""
    return Path(shutil.copytree(trained, tmp_path / "copied"))


def refusal(call, *words):
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


# ---- as the tools leave them ----


def test_a_classification_run(trained):
    run = runs.read_run(trained)
    assert run.task == "classification" and run.cfg.MODEL.RESNETS.WIDTH_MULTIPLIER == 0.125
    assert run.started[:2] == "20" and run.environment["torch"]
    # conftest's demo set: 6 classes of 16 and 6 crops
    counts = {"train_images": 96, "val_images": 36, "classes": 6}
    assert runs.read_counts(run) == counts
    assert runs.iterations_per_epoch(run) == run.cfg.SOLVER.MAX_ITER == 3
    results = json.loads((trained / "results.json").read_text())
    errors = {f"classification/{k}": v for k, v in results["classification"].items()}
    assert runs.read_results(run) == errors and len(errors) == 2
    assert runs.read_evaluation(run) == results["evaluation"]
    assert run.precision == "fp32"


def test_a_detection_run(demo_set, tmp_path):
    entries = [
        [f"some+{split}", str(demo_set / "annotations" / f"{split}.json"), str(demo_set / split)]
        for split in ("train", "val")
    ]
    keys = {"DATASETS.COCO_JSON": entries, "DATASETS.TRAIN": "('some+train',)"}
    keys |= {"DATASETS.TEST": "('some+val',)", "MODEL.WEIGHTS": "", "OUTPUT_DIR": tmp_path / "run"}
    cfg = load_cfg(DETECT, options(**keys))
    start_run(cfg, new=True)
    pipeline.prepare(cfg)
    record_run(cfg)
    run = runs.read_run(tmp_path / "run")
    assert run.task == "detection"
    assert runs.read_counts(run) == {"train_images": 12, "val_images": 6, "classes": 6}
    refusal(lambda: runs.read_results(run), "results.json: ", "does not exist", "finish")


def test_a_run_of_an_earlier_version(copied):
    """Neither the arithmetic nor the test was recorded, and the log said it shorter."""
    record = json.loads((copied / "run.json").read_text())
    for name in ("kind", "precision"):
        del record[name]
    (copied / "run.json").write_text(json.dumps(record))
    results = json.loads((copied / "results.json").read_text())
    del results["evaluation"]
    (copied / "results.json").write_text(json.dumps(results))
    (copied / "log.txt").write_text("a INFO: top-1 .. among 6 classes; 35 images (crop 224)\n")
    run = runs.read_run(copied)
    assert run.precision is None and runs.read_evaluation(run) == {}
    record = runs.record_of(run, "X14")
    assert (record.val_images, record.precision, record.evaluation) == (35, None, {})


def test_results_of_several_test_sets_and_none(copied):
    (copied / "results.json").write_text('{"a": {"bbox": {"AP": 1, "APs": null}}, "b": {"x": 2}}')
    assert runs.read_results(runs.read_run(copied)) == {"a/bbox/AP": 1.0, "b/x": 2.0}


def test_the_logs_last_word_counts(copied):
    lines = "a INFO: 10 images, 2 iterations an epoch: ..\na INFO: X with 3 classes, 1.00 M par\n"
    (copied / "log.txt").write_text(lines + lines.replace("10", "20").replace("3 c", "4 c"))
    counts = runs.read_counts(runs.read_run(copied))
    assert counts == {"train_images": 20, "val_images": None, "classes": 4}


def test_an_epoch_of_a_run_that_counts_iterations(copied):
    text = (copied / "config.yaml").read_text()
    (copied / "config.yaml").write_text(text.replace("MAX_EPOCHS: 1.0", "MAX_EPOCHS: 0.0"))
    assert runs.iterations_per_epoch(runs.read_run(copied)) == 3  # 96 images by 32
    (copied / "log.txt").unlink()
    assert runs.iterations_per_epoch(runs.read_run(copied)) is None


# ---- damaged ones ----

DAMAGES = {
    "no run": ("run.json", None, ["is no run folder", "run.json", "OUTPUT_DIR"]),
    "no JSON": ("run.json", "{", ["run.json: ", "is not JSON"]),
    "no object": ("run.json", "[3]", ["run.json: ", "[3]", "not an object"]),
    "nothing": ("run.json", "{}", ["run.json: ", "has no command"]),
    "another type": ("run.json", '{"command": "x"}', ["run.json: ", "command is 'x'"]),
    "deep": ("run.json", "[" * 100000, ["run.json: ", "is not JSON"]),
    "a long number": ("run.json", "9" * 5000, ["run.json: ", "is not JSON"]),
    "no text": ("run.json", b"\xff\xfe", ["run.json: ", "cannot be read"]),
    "no config": ("config.yaml", None, ["config.yaml: ", "does not exist"]),
    "arithmetic": (
        "run.json",
        '{"command": [], "started": "", "environment": {}, "precision": 16}',
        ["run.json: ", "precision is 16"],
    ),
    "an empty config": ("config.yaml", " \n", ["config.yaml: ", "is empty"]),
    "an unknown key": ("config.yaml", "MODEL: {DEPT: 3}", ["config.yaml", "MODEL.DEPT"]),
    "no mapping": ("config.yaml", "3", ["config.yaml", "not a mapping"]),
    "no YAML": ("config.yaml", "a: [", ["config.yaml: ", "not YAML"]),
}


@pytest.mark.parametrize("name, text, words", DAMAGES.values(), ids=DAMAGES)
def test_a_folder_that_is_no_run(copied, name, text, words):
    (copied / name).unlink()
    if text is not None:
        (copied / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    refusal(lambda: runs.read_run(copied), str(copied), *words)


RESULTS = {
    "none yet": (None, ["does not exist", "--resume"]),
    "text": ('{"bbox": {"AP": "high"}}', ["bbox/AP is 'high'", "number"]),
    "a list": ('{"bbox": [1]}', ["bbox is [1]"]),
    "not finite": ('{"bbox": {"AP": NaN}}', ["bbox/AP is nan"]),
    "true": ('{"bbox": {"AP": true}}', ["bbox/AP is True"]),
    "empty": ('{"bbox": {"AP": null}}', ["holds no result"]),
    # the same folder, scored again with another crop
    "of a later evaluation": (
        '{"classification": {"top1_error": 101.5}}',
        ["classification/top1_error is 101.5", "training ended with", "OUTPUT_DIR of its own"],
    ),
}


@pytest.mark.parametrize("text, words", RESULTS.values(), ids=RESULTS)
def test_results_that_are_none(copied, text, words):
    (copied / "results.json").unlink()
    if text is not None:
        (copied / "results.json").write_text(text)
    refusal(lambda: runs.read_results(runs.read_run(copied)), "results.json: ", *words)


@pytest.mark.parametrize(
    "entry, words",
    [("[1]", ["evaluation is [1]"]), ('{"protocol": 5}', ["protocol is 5"])]
    + [('{"protocol": "single", "precision": "fp32"}', ["has no images"])],
)
def test_a_damaged_evaluation(copied, entry, words):
    (copied / "results.json").write_text(f'{{"evaluation": {entry}}}')
    refusal(lambda: runs.read_evaluation(runs.read_run(copied)), "results.json: ", *words)


def test_a_cut_off_evaluation_is_passed_over(copied):
    with open(copied / "metrics.json", "a") as file:
        file.write('3\n{"classification/top1_error": 101.5, "ite')
    assert runs.read_results(runs.read_run(copied))


# ---- settings ----


def differing(config, **keys):
    ours, theirs = load_cfg(config, options(**keys)), load_cfg(config)
    return runs.differences(runs.settings_of(ours), runs.settings_of(theirs))


MATTERS = [
    (IMAGENET, "SOLVER.MAX_EPOCHS", 10.0),
    (IMAGENET, "SOLVER.EPOCH_STEPS", "(1, 2)"),
    (IMAGENET, "SOLVER.IMS_PER_BATCH", 64),
    (IMAGENET, "SOLVER.WEIGHT_DECAY_NORM", 0.5),
    (IMAGENET, "SOLVER.ACCUMULATE", 2),
    (IMAGENET, "DATA.CROP_SIZE", 320),
    (IMAGENET, "DATA.COLOR_JITTER", 0.5),
    (IMAGENET, "DATA.TEST_PROTOCOL", "dense"),
    (IMAGENET, "MODEL.PRECISION", "bf16"),
    (IMAGENET, "MODEL.RESNETS.NORM", "SyncBN"),
    (IMAGENET, "MODEL.PIXEL_MEAN", "[0.0, 0.0, 0.0]"),
    (COCO, "MODEL.WEIGHTS", "other.pth"),
    (COCO, "SOLVER.RPN.MAX_ITER", 5),
    (COCO, "SOLVER.FAST_RCNN.BASE_LR", 0.5),
    (COCO, "INPUT.MIN_SIZE_TEST", 800),
    (COCO, "PROPOSALS.POST_NMS_TOPK", 300),
    (COCO, "MODEL.ROI_HEADS.NMS_THRESH_TEST", 0.5),
    (COCO, "MODEL.BACKBONE.FREEZE_AT", 0),
    (COCO, "DATASETS.DROP_EMPTY_BOXES", False),
]
FREE = [
    (IMAGENET, "OUTPUT_DIR", "there"),
    (IMAGENET, "SEED", 5),
    (IMAGENET, "MODEL.DEVICE", "cpu"),
    (IMAGENET, "MODEL.RESNETS.FORM", "a"),
    (IMAGENET, "DATA.ROOT", "there"),
    (IMAGENET, "DATA.TEST_BATCH_SIZE", 5),
    (IMAGENET, "DATALOADER.NUM_WORKERS", 1),
    (IMAGENET, "TEST.EVAL_PERIOD", 7),
    (IMAGENET, "SOLVER.REFERENCE_BATCH", 0),
    (IMAGENET, "SOLVER.REFERENCE_KEEPS", "('STEPS',)"),
    (IMAGENET, "SOLVER.RPN.MAX_ITER", 5),
    (COCO, "DATASETS.TRAIN", "('other',)"),
    (COCO, "MODEL.ROI_HEADS.NUM_CLASSES", 3),  # counted in the data
    (COCO, "SOLVER.RPN.REFERENCE_BATCH", 0),
    (COCO, "DATA.CROP_SIZE", 320),
    (COCO, "TEST.IMS_PER_BATCH", 4),
]


@pytest.mark.parametrize("config, key, value", MATTERS)
def test_settings_that_change_what_comes_out(config, key, value):
    assert list(differing(config, **{key: value})) == [key]


@pytest.mark.parametrize("config, key, value", FREE)
def test_settings_that_do_not(config, key, value):
    assert differing(config, **{key: value}) == {}


def test_mini_batches_count_where_there_are_no_epochs():
    config = ROOT / "configs" / "imagenet5k" / "X50_32x4d.yaml"
    assert differing(config, SOLVER__MAX_ITER=5) == {"SOLVER.MAX_ITER": (5, 500500)}


def test_what_training_left_equals_its_config(demo_set, trained):
    """The schedule that follows from the number of images is no other setting."""
    cfg = load_cfg(CLASSIFY, options(**TINY))
    left = runs.settings_of(runs.read_run(trained).cfg)
    assert runs.differences(left, runs.settings_of(cfg)) == {}


def test_of_the_test_only():
    keys = {"DATA.CROP_SIZE": 320, "SOLVER.MAX_EPOCHS": 5.0, "MODEL.PRECISION": "bf16"}
    ours = runs.settings_of(load_cfg(IMAGENET, options(**keys)))
    theirs = runs.settings_of(load_cfg(IMAGENET))
    assert runs.differences(ours, theirs, of_the_test=True) == {"DATA.CROP_SIZE": (320, 224)}


def test_keys_of_another_release_are_not_compared():
    assert runs.differences({"A": 1, "NEW": 2}, {"A": 1, "OLD": 3}) == {}


# ---- records ----


def test_a_record_is_read_as_written(trained, tmp_path):
    record = runs.record_of(runs.read_run(trained), "X14_4x8d_w0.125")
    path = tmp_path / "one.json"
    path.write_text(runs.as_json(record))
    assert runs.read_record(path) == record
    assert runs.read_record(path).path == path
    assert (record.task, record.data_set, record.train_images) == (
        "classification",
        "classification",
        96,
    )
    assert record.output == str(trained) and record.seed == 0 and not record.is_evaluation
    assert record.settings["DATA.CROP_SIZE"] == 32
    assert record.precision == "fp32" and record.evaluation["images"] == record.val_images == 36
    assert record.evaluation["weights"] == "model_final.safetensors"


def test_a_record_of_an_earlier_version(tmp_path, fields):
    for name in ("precision", "evaluation"):
        del fields[name]
    (tmp_path / "a.json").write_text(json.dumps(fields))
    (record,) = runs.read_records(tmp_path)
    assert (record.precision, record.evaluation) == (None, {})


COMMANDS = {
    "in the checkout": (["tools/a.py", "--config-file", "configs/b.yaml"], "configs/b.yaml"),
    "elsewhere": (["/x/y/tools/a.py", "--config-file", "/x/y/configs/b.yaml"], "configs/b.yaml"),
    "as one word": (["/x/y/tools/a.py", "--config-file=/x/y/configs/b.yaml"], "configs/b.yaml"),
    "none": (["tools/a.py", "SEED", "3"], None),
}


@pytest.mark.parametrize("words, config", COMMANDS.values(), ids=COMMANDS)
def test_a_command_names_no_folder_of_one_machine(trained, words, config):
    run = dataclasses.replace(runs.read_run(trained), command=tuple(words))
    record = runs.record_of(run, "X14", "my data")
    assert record.config_file == config and record.data_set == "my data"
    assert record.command.startswith("python tools/a.py") and "/x/y" not in record.command


def test_a_command_can_be_given_to_a_shell(trained):
    run = dataclasses.replace(
        runs.read_run(trained), command=("tools/a.py", "DATASETS.TRAIN", "()")
    )
    assert runs.record_of(run, "X14").command == "python tools/a.py DATASETS.TRAIN '()'"


@pytest.fixture
def fields(trained):
    return json.loads(runs.as_json(runs.record_of(runs.read_run(trained), "X14_4x8d_w0.125")))


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("seed", "one", ["seed is 'one'"]),
        ("results", [], ["results is []"]),
        ("results", {"a": "b"}, ["a is 'b'"]),
        ("train_images", 1.5, ["train_images is 1.5"]),
        ("command", None, ["command is None"]),
        ("notes", "x", ["unknown field notes"]),
        ("precision", 16, ["precision is 16"]),
        ("evaluation", "single", ["evaluation is 'single'"]),
    ],
)
def test_a_record_with_another_field(tmp_path, fields, name, value, words):
    (tmp_path / "a.json").write_text(json.dumps({**fields, name: value}))
    refusal(lambda: runs.read_records(tmp_path), "a.json: ", *words)


@pytest.mark.parametrize("name", ["task", "results", "settings", "data_set", "started"])
def test_a_record_without_a_field(tmp_path, fields, name):
    del fields[name]
    (tmp_path / "a.json").write_text(json.dumps(fields))
    refusal(lambda: runs.read_records(tmp_path), "a.json: ", f"has no {name}")


def test_a_record_that_is_no_json(tmp_path):
    (tmp_path / "a.json").write_text('{"task": ')
    refusal(lambda: runs.read_records(tmp_path), "a.json: ", "is not JSON", "--add")


def test_records_come_by_name(tmp_path, fields):
    for name in ("b", "c", "a"):
        (tmp_path / f"{name}.json").write_text(json.dumps({**fields, "data_set": name}))
    (tmp_path / "notes.txt").write_text("no record")
    assert [record.data_set for record in runs.read_records(tmp_path)] == ["a", "b", "c"]
    assert runs.read_records(tmp_path / "none") == []
