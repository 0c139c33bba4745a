"""Guard --train-json and its like: complete pairs, and no split that is left to the recipe."""

import argparse

import pytest

from resnext_det.config import load_cfg
from resnext_det.detection.data_flags import add_data_flags, given_pair, use_own_data
from resnext_det.errors import InputError

TRAIN = ["--train-json", "t.json", "--train-images", "t"]
VAL = ["--val-json", "v.json", "--val-images", "v"]


def flags(words):
    parser = argparse.ArgumentParser()
    add_data_flags(parser)
    return parser.parse_args(words)


def cfg_of(words, opts=(), scores=False):
    cfg = load_cfg("configs/faster_rcnn_X50_32x4d.yaml", list(opts))
    use_own_data(cfg, flags(words), opts, scores)
    return cfg


def refused(*args, **kwargs):
    with pytest.raises(InputError) as caught:
        cfg_of(*args, **kwargs)
    return str(caught.value)


def test_both_sets():
    datasets = cfg_of([*TRAIN, *VAL]).DATASETS
    assert (datasets.TRAIN, datasets.TEST) == (("custom_train",), ("custom_val",))
    assert datasets.COCO_JSON == [["custom_train", "t.json", "t"], ["custom_val", "v.json", "v"]]


def test_without_flags_the_recipe_stays():
    assert cfg_of([]).DATASETS == load_cfg("configs/faster_rcnn_X50_32x4d.yaml").DATASETS


@pytest.mark.parametrize("split", ["train", "val"])
def test_half_a_pair(split):
    for given, lacking in (("json", "images"), ("images", "json")):
        with pytest.raises(InputError, match=f"--{split}-{given} is .* add --{split}-{lacking}$"):
            given_pair(flags([f"--{split}-{given}", "x"]), split)


def test_a_forgotten_split_is_named():
    assert "--train-json is given and --val-json is missing; add --val-json" in refused(TRAIN)
    assert "--val-json is given and --train-json is missing; add --train-json" in refused(VAL)


def test_a_split_by_config_key_is_none_forgotten():
    opts = ["DATASETS.TEST", "coco_2014_minival"]
    assert cfg_of(TRAIN, opts).DATASETS.TEST == ("coco_2014_minival",)
    opts = ["DATASETS.COCO_JSON", "[['mine', 'm.json', 'm']]", "DATASETS.TEST", "mine"]
    assert cfg_of(TRAIN, opts).DATASETS.TEST == ("mine",)


def test_a_config_with_own_sets_needs_no_flag():
    cfg = load_cfg("configs/faster_rcnn_X50_32x4d.yaml")
    cfg.DATASETS.COCO_JSON, cfg.DATASETS.TEST = [["mine", "m.json", "m"]], ("mine",)
    use_own_data(cfg, flags(TRAIN), (), False)
    assert cfg.DATASETS.TEST == ("mine",)


def test_an_evaluation_takes_no_training_set():
    assert "--val-json" in refused([*TRAIN, *VAL], scores=True)
    assert cfg_of(VAL, scores=True).DATASETS.TEST == ("custom_val",)
    assert cfg_of([], scores=True).DATASETS.TEST
