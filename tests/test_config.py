"""Guard the one config system: refusals that name key and mend, and the recipes in configs/.

The figures are the paper's (Appendix B) or, where it is silent, py-faster-rcnn's.
"""

import json
import os
import re
import shlex
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg as plain_cfg
from detectron2.modeling import build_model

from resnext_det.classification.classifier import build_classifier
from resnext_det.classification.trainer import with_epochs
from resnext_det.config import (
    IMAGENET_MEAN,
    NETWORKS,
    cfg_from_text,
    check_cfg,
    check_detection_solver,
    check_sizes,
    checks,
    flatten,
    get_cfg,
    load_cfg,
    override,
    protocol_of,
    reading,
    stage_cfg,
    trunk_arguments,
)
from resnext_det.detection import pipeline, scorer_backends
from resnext_det.detection.backbone import check_detector
from resnext_det.engine import batch
from resnext_det.errors import InputError
from resnext_det.models import blocks, precision
from resnext_det.weights import names

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
CLASSIFICATION = ("cifar", "imagenet", "imagenet5k")
RUNNABLE = [path for path in CONFIGS if not path.name.startswith("Base-")]
PAPER = ROOT / "configs" / "faster_rcnn_X50_32x4d.yaml"


def by_name(path):
    return str(path.relative_to(ROOT / "configs"))


def write(folder, text, name="mine.yaml"):
    path = folder / name
    path.write_text(text)
    return path


def assert_refused(load, *words):
    with pytest.raises(InputError) as refused:
        load()
    text = str(refused.value)
    assert "\n" not in text and len(text) < 400, text
    for word in words:
        assert str(word) in text


# ---- keys that are not there ----

NEAREST = [
    ("MODEL.RESNETS.DEPHT", "MODEL.RESNETS.DEPTH"),  # misspelt
    ("MODEL.DEPTH", "MODEL.RESNETS.DEPTH"),  # misplaced
    ("SOLVER.DEPTH", "MODEL.RESNETS.DEPTH"),
    ("MODEL.PRECISON", "MODEL.PRECISION"),
    ("SOLVER.FASTRCNN.STEPS", "SOLVER.FAST_RCNN.STEPS"),
    ("CROP_SIZE", "DATA.CROP_SIZE"),
    ("DATASETS.COCO", "DATASETS.COCO_JSON"),
]


def nested(key, value):
    """A.B: value, as YAML in braces."""
    for part in reversed(key.split(".")):
        value = f"{{{part}: {value}}}"
    return value


@pytest.mark.parametrize("key, nearest", NEAREST)
def test_unknown_key_on_the_command_line(key, nearest):
    words = ("command line: ", f"no config key {key};", f"did you mean {nearest}?")
    assert_refused(lambda: load_cfg(None, [key, "1"]), *words)


@pytest.mark.parametrize("key, nearest", [pair for pair in NEAREST if "FASTRCNN" not in pair[0]])
def test_unknown_key_in_a_file(tmp_path, key, nearest):
    path = write(tmp_path, nested(key, 1))
    words = (f"{path}: ", f"no config key {key};", f"did you mean {nearest}?")
    assert_refused(lambda: load_cfg(path), *words)


def test_unknown_group_in_a_file(tmp_path):
    path = write(tmp_path, "SOLVER: {FASTRCNN: {STEPS: (1,)}}")
    assert_refused(lambda: load_cfg(path), "SOLVER.FASTRCNN;", "did you mean SOLVER.")


# ---- values ----


@pytest.mark.parametrize(
    "key, text",
    [
        ("SOLVER.MAX_ITER", "many"),
        ("SOLVER.MAX_ITER", "2.5"),
        ("SOLVER.BASE_LR", "fast"),
        ("MODEL.MASK_ON", "1"),
    ],
)
def test_wrong_type(tmp_path, key, text):
    """From either place the message holds key, value and default."""
    default = repr(flatten(get_cfg())[key])
    words = (key, text, f"its default is {default}", "type")
    assert_refused(lambda: load_cfg(None, [key, text]), "command line: ", *words)
    path = write(tmp_path, nested(key, text))
    assert_refused(lambda: load_cfg(path), f"{path}: ", *words)


@pytest.mark.parametrize("text", ["MODEL: 5", "MODEL:\nSOLVER: {MAX_ITER: 5}", "SOLVER: {RPN: 1}"])
def test_a_value_for_a_group(tmp_path, text):
    """Without the group's hundred keys in the message (a group left empty is the usual case)."""
    path = write(tmp_path, text)
    assert_refused(lambda: load_cfg(path), f"{path}: ", "a group of keys")


@pytest.mark.parametrize("opts", [["SOLVER.MAX_ITER"], ["SEED", "1", "SOLVER.MAX_ITER"]])
def test_missing_value(opts):
    assert_refused(lambda: load_cfg(None, opts), "SOLVER.MAX_ITER has no value", "KEY VALUE pairs")


@pytest.mark.parametrize(
    "key, text, value",
    [
        ("OUTPUT_DIR", "5", "5"),
        ("OUTPUT_DIR", "2026-11-25", "2026-11-25"),
        ("OUTPUT_DIR", "1e5", "1e5"),
        ("OUTPUT_DIR", "[1]", "[1]"),
        ("OUTPUT_DIR", "True", "True"),
        ("OUTPUT_DIR", "'mine'", "mine"),  # quotes that a shell left
        ("MODEL.WEIGHTS", "", ""),
    ],
)
def test_text_may_look_like_a_number(key, text, value):
    assert flatten(load_cfg(None, [key, text]))[key] == value


def test_a_number_for_text_in_a_file(tmp_path):
    """YAML has lost how it was written: 010 would be folder 8."""
    path = write(tmp_path, "OUTPUT_DIR: 010")
    assert_refused(lambda: load_cfg(path), "OUTPUT_DIR is 8", "its default is './output'", "quotes")
    assert load_cfg(write(tmp_path, 'OUTPUT_DIR: "010"')).OUTPUT_DIR == "010"


MEANT = [
    ("SOLVER.STEPS", "100", (100,)),  # one value for a sequence
    ("DATASETS.TRAIN", "mine", ("mine",)),
    ("MODEL.WEIGHTS_ALLOW_MISSING", "'*.res5.*'", ("*.res5.*",)),
    ("INPUT.MIN_SIZE_TRAIN", "(320, 352)", (320, 352)),
    ("SOLVER.STEPS", "()", ()),
    ("SOLVER.BASE_LR", "1", 1.0),  # a whole number for a real one
    ("SOLVER.BASE_LR", "1e-4", 1e-4),  # which YAML takes for text
    ("MODEL.PIXEL_STD", "[1.0, 1.0, 1.0]", [1.0, 1.0, 1.0]),
]


@pytest.mark.parametrize("key, text, value", MEANT)
def test_what_users_mean(tmp_path, key, text, value):
    from_command = flatten(load_cfg(None, [key, text]))[key]
    from_file = flatten(load_cfg(write(tmp_path, nested(key, f'"{text}"'))))[key]
    for found in (from_command, from_file):
        assert found == value and type(found) is type(value)


def test_plain_yaml_values(tmp_path):
    text = "SOLVER: {STEPS: 100, BASE_LR: 1, MAX_ITER: 7}\nINPUT: {MIN_SIZE_TRAIN: [320, 352]}"
    cfg = load_cfg(write(tmp_path, text))
    assert (cfg.SOLVER.STEPS, cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER) == ((100,), 1.0, 7)
    assert isinstance(cfg.SOLVER.BASE_LR, float)
    assert tuple(cfg.INPUT.MIN_SIZE_TRAIN) == (320, 352)


def test_override_later_ones_count():
    cfg = get_cfg()
    override(cfg, ["SEED", "1", "SEED", "2"])
    assert cfg.SEED == 2


# ---- files ----


def test_base(tmp_path):
    """Relative to the file that names it; later files and the command line win."""
    (tmp_path / "deep").mkdir()
    write(tmp_path, "SEED: 1\nSOLVER: {MAX_ITER: 1, STEPS: 5}", "base.yaml")
    write(tmp_path, "_BASE_: ../base.yaml\nSOLVER: {MAX_ITER: 2}", "deep/middle.yaml")
    top = write(tmp_path, "_BASE_: deep/middle.yaml\nOUTPUT_DIR: here")
    cfg = load_cfg(top, ["OUTPUT_DIR", "there"])
    assert (cfg.SEED, cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (1, 2, (5,))
    assert cfg.OUTPUT_DIR == "there"


def test_missing_file(tmp_path):
    path = tmp_path / "none.yaml"
    assert_refused(lambda: load_cfg(path), f"{path}: ", "does not exist", "those in configs/")
    path = ROOT / "configs" / "demo" / "detection.yml"
    assert_refused(lambda: load_cfg(path), f"did you mean {path.with_suffix('.yaml')}?")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("TEST: {EVAL_PERIOD: -5}", "TEST.EVAL_PERIOD is -5; set it to 0"),
        (
            "{MODEL: {META_ARCHITECTURE: SharedRCNN}, PROPOSALS: {ONLINE: True}}",
            "SharedRCNN makes its proposals itself; leave PROPOSALS.ONLINE away",
        ),
    ],
)
def test_keys_without_a_meaning(tmp_path, text, words):
    path = write(tmp_path, text)
    assert_refused(lambda: load_cfg(path), f"{path}: ", words)


def test_missing_base(tmp_path):
    path = write(tmp_path, "_BASE_: none.yaml")
    assert_refused(lambda: load_cfg(path), f"{path}: ", tmp_path / "none.yaml")


@pytest.mark.parametrize("tag", ["python/object/apply:os.mkdir", "python/object/new:os.mkdir"])
@pytest.mark.parametrize("key", ["OUTPUT_DIR", "MINE"])
def test_yaml_that_would_run_code(tmp_path, tag, key):
    made = tmp_path / "made"
    text = f"{key}: !!{tag} ['{made}']"
    path = write(tmp_path, text)
    assert_refused(lambda: load_cfg(path), f"{path}: ", "not readable as a YAML config", tag)
    base = write(tmp_path, "_BASE_: mine.yaml", "top.yaml")
    assert_refused(lambda: load_cfg(base), f"{base}: ", tag)
    with pytest.raises(InputError, match="x.safetensors.*stored config"):
        cfg_from_text(text, "x.safetensors")
    assert not made.exists()


@pytest.mark.parametrize("content", [b"SEED: [", b"SEED: 1\n\tDATA: 2", b"\xff\xfe\x00", b"a: *b"])
def test_no_yaml(tmp_path, content):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    assert_refused(lambda: load_cfg(path), f"{path}: ", "not readable as a YAML config")


@pytest.mark.parametrize("text", ["", "5", "- SEED", "just text", "5: 6"])
def test_yaml_of_another_kind(tmp_path, text):
    path = write(tmp_path, text)
    assert_refused(lambda: load_cfg(path), f"{path}: ", "not a mapping", '"KEY: value"')


def test_a_file_that_names_itself_as_base(tmp_path):
    path = write(tmp_path, "_BASE_: mine.yaml")
    assert_refused(lambda: load_cfg(path), f"{path}: ")


# ---- a config inside a weights file ----


def test_text_gives_the_config_back():
    cfg = load_cfg(PAPER, ["SEED", "7"])
    again = cfg_from_text(cfg.dump(), "x.safetensors")
    assert again.SEED == 7
    assert json.dumps(flatten(again)) == json.dumps(flatten(cfg))  # a tuple inside one may change
    assert (again.SOLVER.RPN.STEPS, again.INPUT.MIN_SIZE_TRAIN) == ((120000,), (600,))


@pytest.mark.parametrize(
    "text, word", [("[", "not YAML"), ("MODEL: {DEPTH: 5}", "RESNETS.DEPTH"), ("5", "mapping")]
)
def test_text_that_is_no_config(text, word):
    assert_refused(lambda: cfg_from_text(text, "x.safetensors"), "x.safetensors", word)


# ---- checks across keys ----


@pytest.mark.parametrize(
    "key, text, mend",
    [
        ("MODEL.PRECISION", "fp8", "fp32, bf16, fp16, auto"),
        ("MODEL.DEVICE", "5", "cuda, cuda:1"),
        ("MODEL.DEVICE", "gpu", "cuda, cuda:1"),
        ("MODEL.RESNETS.NORM", "BNN", 'BN, SyncBN, FrozenBN, GN, LN, or to ""'),
        ("INPUT.FORMAT", "GRB", "RGB, BGR"),
        ("INPUT.FORMAT", "L", "RGB, BGR"),
        ("SOLVER.AMP.ENABLED", "True", 'MODEL.PRECISION "bf16"'),
        ("SOLVER.RPN.MAX_ITER", "0", "1 or more"),
        ("SOLVER.FAST_RCNN.IMS_PER_BATCH", "-8", "1 or more"),
        ("SOLVER.IMS_PER_BATCH", "0", "1 or more"),
    ],
)
def test_check_cfg(key, text, mend):
    assert_refused(lambda: load_cfg(PAPER, [key, text]), "command line: ", key, text, mend)


@pytest.mark.parametrize("norm", ["", *checks.NORMS, "naiveSyncBN"])
def test_norms_that_detectron2_knows(norm):
    assert load_cfg(None, ["MODEL.RESNETS.NORM", norm]).MODEL.RESNETS.NORM == norm


def test_choices_are_those_of_the_rooms_that_take_them():
    """The config room may import none of these."""
    assert checks.PRECISIONS == (*precision.DTYPES, "auto")
    assert checks.NORMS == blocks.NORMS
    assert checks.SCORERS == scorer_backends.CHOICES
    assert reading.SCHEDULE == batch.FOLLOWING
    assert tuple(f"{name}." for name in NETWORKS) == names.NETWORKS


@pytest.mark.parametrize(
    "key, text, shown",
    [
        ("DATA.CROP_SIZE", "31", "31"),
        ("DATA.TEST_SCALES", "(224, 16)", "(224, 16)"),
        ("INPUT.MIN_SIZE_TRAIN", "(600, 31)", "(600, 31)"),
    ],
)
def test_sizes_below_the_stride(key, text, shown):
    cfg = load_cfg(None, [key, text])
    words = f"{key} is {shown}, and the network needs 32 pixels", "set it to 32 or more"
    assert_refused(lambda: check_sizes(cfg, ["SEED", key], 32), *words)
    check_sizes(cfg, [key], 16)


@pytest.mark.parametrize(
    "key, text", [("INPUT.MIN_SIZE_TRAIN", "(31,)"), ("INPUT.MIN_SIZE_TEST", "8")]
)
def test_a_detectors_images_below_the_stride(key, text):
    """At the start of a training; test images also at the start of an evaluation."""
    cfg = load_cfg(PAPER, [key, text, "MODEL.WEIGHTS", ""])
    words = f"{key} is {text}, and the network needs 32 pixels", "set it to 32 or more"
    assert_refused(lambda: check_detector(cfg), *words)
    assert_refused(lambda: pipeline.evaluate_only(cfg, "none.safetensors"), *words)


def test_sizes_of_zero_are_not_resized():
    check_sizes(load_cfg(None, ["INPUT.MIN_SIZE_TEST", "0"]), ["INPUT.MIN_SIZE_TEST"], 32)


PROTOCOLS = [
    ([], {"protocol": "single", "crop": 224, "resize": 256}),
    (["DATA.PAD", "4", "DATA.CROP_SIZE", "32"], {"protocol": "single", "crop": 32}),
    (["DATA.TEST_PROTOCOL", "ten_crop"], {"protocol": "ten_crop", "crop": 224, "resize": 256}),
    (
        ["DATA.TEST_PROTOCOL", "dense", "DATA.TEST_SCALES", "(64, 96)"],
        {"protocol": "dense", "crop": 224, "scales": [64, 96]},
    ),
]


@pytest.mark.parametrize("opts, expected", PROTOCOLS)
def test_protocol_of(opts, expected):
    assert protocol_of(load_cfg(None, opts)) == expected


# ---- a schedule typed beside another batch than the recipe's ----

IMAGENET = ROOT / "configs" / "imagenet" / "X50_32x4d.yaml"


def followed(config, opts, stage=None):
    cfg = load_cfg(config, opts)
    return batch.follow_batch(stage_cfg(cfg, stage) if stage else cfg).SOLVER


def test_what_is_typed_is_meant_as_typed():
    quarter = ["SOLVER.IMS_PER_BATCH", "64"]
    assert followed(IMAGENET, quarter).BASE_LR == 0.025
    typed = followed(IMAGENET, [*quarter, "SOLVER.BASE_LR", "0.05", "SOLVER.MAX_ITER", "10"])
    assert (typed.BASE_LR, typed.MAX_ITER) == (0.05, 10)
    assert (typed.REFERENCE_BATCH, typed.REFERENCE_KEEPS) == (64, ())


def test_what_is_typed_with_its_reference_follows():
    opts = ["SOLVER.IMS_PER_BATCH", "64", "SOLVER.BASE_LR", "0.4", "SOLVER.REFERENCE_BATCH", "512"]
    assert followed(IMAGENET, opts).BASE_LR == 0.05


def test_what_is_typed_for_one_network_is_not_for_the_other():
    opts = ["SOLVER.RPN.IMS_PER_BATCH", "4", "SOLVER.FAST_RCNN.IMS_PER_BATCH", "4"]
    opts += ["SOLVER.RPN.MAX_ITER", "50", "SOLVER.WARMUP_ITERS", "100"]
    before = load_cfg(PAPER).SOLVER
    rpn, fast_rcnn = (followed(PAPER, opts, stage) for stage in NETWORKS)
    assert (rpn.MAX_ITER, rpn.WARMUP_ITERS) == (50, 100)
    assert rpn.STEPS == tuple(4 * step for step in before.RPN.STEPS)
    assert fast_rcnn.MAX_ITER == 2 * before.FAST_RCNN.MAX_ITER
    assert fast_rcnn.WARMUP_ITERS == 100


def test_a_file_keeps_no_key_of_its_own(tmp_path):
    """A recipe's numbers are for its own batch, until something else is typed."""
    path = write(tmp_path, f"_BASE_: {IMAGENET}\nSOLVER: {{IMS_PER_BATCH: 512, BASE_LR: 0.2}}")
    assert followed(path, []).BASE_LR == 0.4
    assert load_cfg(path).SOLVER.REFERENCE_KEEPS == ()


# ---- iterations or epochs ----


def test_typed_iterations_go_before_epochs():
    """A recipe of 100 epochs, for 20 iterations: 20 it is, and rates still fall by epochs."""
    solver = load_cfg(IMAGENET, ["SOLVER.MAX_ITER", "20"]).SOLVER
    assert (solver.MAX_EPOCHS, solver.MAX_ITER, solver.EPOCH_STEPS) == (0, 20, (30, 60, 90))
    assert with_epochs(load_cfg(IMAGENET, ["SOLVER.MAX_ITER", "20"]), 51200).SOLVER.MAX_ITER == 20
    longer = with_epochs(load_cfg(IMAGENET, ["SOLVER.MAX_ITER", "7000"]), 51200).SOLVER
    assert (longer.MAX_ITER, longer.STEPS) == (7000, (6000,))
    typed = load_cfg(IMAGENET, ["SOLVER.MAX_ITER", "20", "SOLVER.STEPS", "(8,)"])
    assert with_epochs(typed, 51200).SOLVER.STEPS == (8,)
    assert load_cfg(IMAGENET, ["SOLVER.MAX_EPOCHS", "3"]).SOLVER.MAX_EPOCHS == 3


def test_a_rule_does_not_speak_of_what_epochs_say(caplog):
    opts = ["SOLVER.IMS_PER_BATCH", "128"]
    with caplog.at_level("INFO"):
        cfg = with_epochs(load_cfg(IMAGENET, opts), 12800)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR) == (100 * 100, 0.05)
    assert "BASE_LR" in caplog.text and "MAX_ITER" not in caplog.text
    assert "STEPS" not in caplog.text


@pytest.mark.parametrize(
    "opts, words",
    [
        (["MAX_ITER", "9", "SOLVER.MAX_EPOCHS", "2"], ["MAX_ITER and SOLVER.MAX_EPOCHS are both"]),
        (["STEPS", "(9,)"], ["SOLVER.STEPS counts iterations", "SOLVER.EPOCH_STEPS"]),
    ],
)
def test_iterations_and_epochs_at_once(opts, words):
    assert_refused(lambda: load_cfg(IMAGENET, ["SOLVER." + opts[0], *opts[1:]]), *words)


@pytest.mark.parametrize("key, value", [("IMS_PER_BATCH", "4"), ("BASE_LR", "0.1")])
def test_a_schedule_for_all_networks_at_once(key, value):
    cfg = load_cfg(PAPER, [f"SOLVER.{key}", value])
    words = (f"SOLVER.{key} is {value}", f"SOLVER.RPN.{key} and SOLVER.FAST_RCNN.{key}")
    assert_refused(lambda: check_detection_solver(cfg), *words)
    check_detection_solver(load_cfg(PAPER, [f"SOLVER.RPN.{key}", value]))


def test_epochs_in_detection():
    cfg = load_cfg(PAPER, ["SOLVER.MAX_EPOCHS", "12"])
    assert_refused(lambda: check_detection_solver(cfg), "SOLVER.MAX_EPOCHS is 12", "RPN.MAX_ITER")


def test_what_is_typed_is_not_the_files_fault(tmp_path):
    path = write(tmp_path, f"_BASE_: {PAPER}\nMODEL: {{PRECISION: fp64}}")
    assert_refused(lambda: load_cfg(path, ["SEED", "3"]), f"{path}: MODEL.PRECISION")
    assert_refused(
        lambda: load_cfg(PAPER, ["MODEL.PRECISION", "fp64"]), "command line: MODEL.PRECISION"
    )
    opts = ["SOLVER.MAX_ITER", "5", "SOLVER.MAX_ITER", "many"]
    assert_refused(lambda: load_cfg(None, opts), "is 'many', its default is 40000")


@pytest.mark.parametrize(
    "typed, meant",
    [("MODEL.DEPHT", "MODEL.RESNETS.DEPTH"), ("SOLVER.BASELR", "SOLVER.BASE_LR")],
)
def test_the_last_part_counts_most(typed, meant):
    assert_refused(lambda: load_cfg(None, [typed, "1"]), f"did you mean {meant}?")


def test_a_kept_key_that_is_none():
    opts = ["SOLVER.REFERENCE_KEEPS", "MOMENTUM"]
    assert_refused(lambda: followed(IMAGENET, opts), "REFERENCE_KEEPS: names MOMENTUM", "BASE_LR")


@pytest.mark.parametrize("value", ["['a.json']", "[['a', 'a.json']]", "'a'", "[1]"])
def test_check_cfg_of_own_data(value):
    assert_refused(
        lambda: load_cfg(None, ["DATASETS.COCO_JSON", value]),
        "DATASETS.COCO_JSON",
        "[name, json file, image folder]",
    )


# ---- defaults ----


def test_defaults_are_detectron2s_but_for_four():
    ours, theirs = flatten(get_cfg()), flatten(plain_cfg())
    assert set(theirs) <= set(ours)
    assert {key for key in theirs if theirs[key] != ours[key]} == {
        "INPUT.FORMAT",
        "MODEL.PIXEL_MEAN",
        "MODEL.PIXEL_STD",
        "MODEL.RESNETS.STRIDE_IN_1X1",
    }


def test_pixel_statistics_are_torchvisions():
    """Which are on the 0..1 scale."""
    assert IMAGENET_MEAN == pytest.approx([255 * x for x in (0.485, 0.456, 0.406)], abs=1e-9)
    assert get_cfg().MODEL.PIXEL_STD == pytest.approx([255 * x for x in (0.229, 0.224, 0.225)])


def test_two_configs_share_nothing():
    first = get_cfg()
    first.SOLVER.RPN.MAX_ITER = 1
    first.MODEL.PIXEL_MEAN[0] = 0.0
    assert get_cfg().SOLVER.RPN.MAX_ITER == 180000
    assert get_cfg().MODEL.PIXEL_MEAN[0] == 123.675


# ---- configs/ ----


@pytest.mark.parametrize("path", CONFIGS, ids=by_name)
def test_every_config_loads(path):
    check_cfg(load_cfg(path), str(path))


@pytest.mark.parametrize("path", RUNNABLE, ids=by_name)
def test_header_says_how_to_run_it(path):
    """The command of the first lines names a tool that is there, this file, and known keys."""
    header = "".join(re.findall(r"^# ?(.*\n)", path.read_text(), re.MULTILINE))
    command = re.search(r"^python ((?:.*\\\n)*.*)", header, re.MULTILINE)
    tool, *words = shlex.split(command[1].replace("\\\n", " "))
    assert (ROOT / tool).is_file()
    if "--config-file" in words:
        assert words[words.index("--config-file") + 1] == f"configs/{by_name(path)}"
    else:  # a study of tools/reproduce.py knows its own config
        assert path.name in (ROOT / tool).read_text()
    keys = [word for word in words if re.fullmatch(r"[A-Z0-9_]+(\.[A-Z0-9_]+)+", word)]
    assert set(keys) <= set(flatten(get_cfg()))
    sources = (tool, "resnext_det/engine/launch.py", "resnext_det/detection/data_flags.py")
    accepted = "".join((ROOT / source).read_text() for source in sources)
    for flag in (word for word in words if word.startswith("--")):
        either = flag, re.sub("train|val", "{split}", flag)
        assert any(f'"{written}"' in accepted for written in either), flag


def build_on_meta(path):
    """The config's model: shapes without memory, so that the paper's size costs nothing."""
    cfg = load_cfg(path, ["MODEL.DEVICE", "meta"])
    with torch.device("meta"):
        if cfg.MODEL.META_ARCHITECTURE in ("NonSharedRCNN", "SharedRCNN"):
            return build_model(cfg)
        return build_classifier(cfg, num_classes=10)


@pytest.mark.parametrize("path", RUNNABLE, ids=by_name)
def test_every_config_builds(path):
    parts = {name for name, _ in build_on_meta(path).named_children()}
    classifies = path.parent.name in CLASSIFICATION or path.name == "classification.yaml"
    if load_cfg(path).MODEL.META_ARCHITECTURE == "SharedRCNN":
        assert parts == {"backbone", "proposal_generator", "roi_heads"}
        return
    assert parts == ({"trunk"} if classifies else set(NETWORKS))


def given_keys(path):
    """The keys that differ from the defaults."""
    default = flatten(get_cfg())
    return {key for key, value in flatten(load_cfg(path)).items() if value != default[key]}


def test_the_papers_detector_has_its_size():
    """17.68 and 23.52 million trained parameters, with 12 anchors and stem and res2 frozen."""
    model = build_on_meta(PAPER)
    for network, millions in (("rpn", 17.68), ("fast_rcnn", 23.52)):
        parameters = getattr(model, network).parameters()
        trained = sum(p.numel() for p in parameters if p.requires_grad)
        assert round(trained / 1e6, 2) == millions


def test_the_papers_trunk():
    assert trunk_arguments(load_cfg(PAPER)) == {
        "depth": 50,
        "cardinality": 32,
        "bottleneck_width": 4,
        "width_multiplier": 1.0,
        "stride_in_1x1": False,
        "shortcut": True,
        "form": "c",
        "norm": "FrozenBN",
        "channels_last": True,
        "fuse": True,
        "regroup": "auto",
        "recompute": False,
    }


PAPER_VALUES = {
    "MODEL.META_ARCHITECTURE": "NonSharedRCNN",
    "MODEL.BACKBONE.FREEZE_AT": 2,
    "MODEL.RESNETS.OUT_FEATURES": ["res4"],
    "MODEL.ANCHOR_GENERATOR.OFFSET": 0.5,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 256,
    "MODEL.RPN.POSITIVE_FRACTION": 0.5,
    "MODEL.RPN.IOU_THRESHOLDS": [0.3, 0.7],
    "MODEL.RPN.BOUNDARY_THRESH": 0,
    "MODEL.RPN.NMS_THRESH": 0.7,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 6000,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 300,
    "PROPOSALS.PRE_NMS_TOPK": 0,
    "PROPOSALS.POST_NMS_TOPK": 2000,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 64,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": 0.25,
    "MODEL.ROI_HEADS.IOU_THRESHOLDS": [0.5],
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.3,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.05,
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIPool",
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 14,
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 1.0,
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": False,
    "INPUT.MIN_SIZE_TRAIN": (600,),
    "INPUT.MAX_SIZE_TRAIN": 1000,
    "INPUT.MIN_SIZE_TEST": 600,
    "INPUT.MAX_SIZE_TEST": 1000,
    "TEST.DETECTIONS_PER_IMAGE": 100,
    "SOLVER.MOMENTUM": 0.9,
    "SOLVER.WEIGHT_DECAY": 1e-4,
    "SOLVER.BIAS_LR_FACTOR": 2.0,
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.GAMMA": 0.1,
    "SOLVER.LR_SCHEDULER_NAME": "WarmupMultiStepLR",
}


@pytest.mark.parametrize("key", PAPER_VALUES)
def test_the_papers_value(key):
    assert flatten(load_cfg(PAPER))[key] == PAPER_VALUES[key]


def test_the_papers_anchors():
    """12: scales 4, 8, 16, 32 times the stride 16, three ratios."""
    cfg = load_cfg(PAPER)
    (sizes,), (ratios,) = cfg.MODEL.ANCHOR_GENERATOR.SIZES, cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS
    assert sizes == [16 * scale for scale in (4, 8, 16, 32)]
    assert ratios == [0.5, 1.0, 2.0]


def test_the_papers_smooth_l1():
    """Sigma 3 in py-faster-rcnn is beta 1/9 here."""
    assert pytest.approx(1 / 9, abs=1e-4) == load_cfg(PAPER).MODEL.RPN.SMOOTH_L1_BETA


@pytest.mark.parametrize("stage, images, rate", [("rpn", 16, 0.02), ("fast_rcnn", 8, 0.005)])
def test_the_papers_schedule(stage, images, rate):
    solver = stage_cfg(load_cfg(PAPER), stage).SOLVER
    assert (solver.IMS_PER_BATCH, solver.BASE_LR) == (images, rate)
    assert (solver.STEPS, solver.MAX_ITER) == ((120000,), 180000)


IMAGENET_VALUES = {
    "SOLVER.IMS_PER_BATCH": 256,
    "SOLVER.BASE_LR": 0.1,
    "SOLVER.MOMENTUM": 0.9,
    "SOLVER.NESTEROV": True,
    "SOLVER.WEIGHT_DECAY": 1e-4,
    "SOLVER.WEIGHT_DECAY_NORM": 1e-4,
    "SOLVER.EPOCH_STEPS": (30, 60, 90),
    "SOLVER.GAMMA": 0.1,
    "SOLVER.WARMUP_ITERS": 0,
    "DATA.CROP_SIZE": 224,
    "DATA.RESIZE_SIZE": 256,
    "DATA.MIN_CROP_AREA": 0.08,
}


@pytest.mark.parametrize("key", IMAGENET_VALUES)
def test_imagenet_value(key):
    """Paper, Section 4."""
    cfg = load_cfg(ROOT / "configs" / "imagenet" / "X50_32x4d.yaml")
    assert flatten(cfg)[key] == IMAGENET_VALUES[key]


def test_classification_and_detection_have_the_same_trunk():
    """Or the weights of the one would not fit the other."""
    for first, second in (
        ("imagenet/X50_32x4d.yaml", "faster_rcnn_X50_32x4d.yaml"),
        ("demo/classification.yaml", "demo/detection.yaml"),
        ("demo/classification.yaml", "custom/small.yaml"),
    ):
        ours, theirs = (trunk_arguments(load_cfg(ROOT / "configs" / x)) for x in (first, second))
        assert ours.pop("norm") == "BN" and theirs.pop("norm") in ("BN", "FrozenBN")
        assert ours == theirs
        source, wanted = (load_cfg(ROOT / "configs" / x) for x in (first, second))
        folder = os.path.dirname(wanted.MODEL.WEIGHTS)
        assert folder == os.path.normpath(source.OUTPUT_DIR)


# ---- one network's config ----


@pytest.mark.parametrize("stage", NETWORKS)
def test_stage_cfg(stage):
    cfg = load_cfg(PAPER)
    before = cfg.dump()
    one = stage_cfg(cfg, stage)
    assert cfg.dump() == before and not cfg.is_frozen()
    assert one.is_frozen()
    for key in ("IMS_PER_BATCH", "BASE_LR", "STEPS", "MAX_ITER"):
        assert one.SOLVER[key] == cfg.SOLVER[stage.upper()][key]
    expected = {
        "rpn": ("ProposalNetwork", False, "NonSharedRPN"),
        "fast_rcnn": ("GeneralizedRCNN", True, "PrecomputedProposals"),
    }
    model = one.MODEL
    found = (model.META_ARCHITECTURE, model.LOAD_PROPOSALS, model.PROPOSAL_GENERATOR.NAME)
    assert found == expected[stage]


def test_stage_cfg_of_a_frozen_config():
    cfg = load_cfg(PAPER)
    cfg.freeze()
    stage_cfg(cfg, "rpn")
    assert cfg.is_frozen()


@pytest.mark.parametrize("stage", NETWORKS)
def test_stage_cfg_changes_nothing_else(stage):
    cfg = load_cfg(PAPER)
    before, after = flatten(cfg), flatten(stage_cfg(cfg, stage))
    changed = {key for key in before if before[key] != after[key]}
    assert changed <= {
        "SOLVER.IMS_PER_BATCH",
        "SOLVER.REFERENCE_BATCH",
        "SOLVER.REFERENCE_KEEPS",
        "SOLVER.BASE_LR",
        "SOLVER.STEPS",
        "SOLVER.MAX_ITER",
        "MODEL.META_ARCHITECTURE",
        "MODEL.LOAD_PROPOSALS",
        "MODEL.PROPOSAL_GENERATOR.NAME",
    }


def test_a_plain_detectron2_config_has_a_trunk():
    """None of our keys is in it."""
    found = trunk_arguments(plain_cfg())
    assert (found["width_multiplier"], found["channels_last"]) == (1.0, False)
    assert (found["fuse"], found["regroup"]) == (False, "off")
    assert (found["depth"], found["cardinality"], found["bottleneck_width"]) == (50, 1, 64)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SOLVER.AMP.ENABLED", "True"),
        ("SOLVER.REFERENCE_WORLD_SIZE", "8"),
        ("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"),
        ("DATASETS.PROPOSAL_FILES_TRAIN", "('p.pkl',)"),
        ("TEST.AUG.ENABLED", "True"),
        ("TEST.PRECISE_BN.ENABLED", "True"),
    ],
)
def test_keys_that_nothing_reads(key, value):
    """Detectron2's own, which would be taken without a word and change nothing."""
    with pytest.raises(InputError, match="nothing here reads it") as caught:
        load_cfg("", [key, value])
    assert key in str(caught.value)


@pytest.mark.parametrize(
    "text", ["SEED: 1\nSEED: 2\n", "SOLVER:\n  RPN:\n    MAX_ITER: 1\n    MAX_ITER: 2\n"]
)
def test_a_key_that_is_there_twice(tmp_path, text):
    path = write(tmp_path, text)
    again = "SEED" if text.startswith("SEED") else "MAX_ITER"
    assert_refused(lambda: load_cfg(path), f"{path}: ", f"gives {again} again")


def test_an_override_in_one_word():
    assert_refused(
        lambda: load_cfg(None, ["SOLVER.RPN.MAX_ITER=3"]), "write SOLVER.RPN.MAX_ITER 3, with a"
    )
