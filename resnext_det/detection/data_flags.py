"""The data flags of the tools: annotations and image folder of a split, not by config keys."""

import argparse
from collections.abc import Sequence

from detectron2.config import CfgNode

from ..errors import InputError

SPLITS = {"train": "TRAIN", "val": "TEST"}  # a flag's name -> the key of DATASETS that it sets
WHERE = "command line"


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """--train-json, --train-images, --val-json, --val-images."""
    for split in SPLITS:
        parser.add_argument(f"--{split}-json", help=f"COCO-format annotations ({split})")
        parser.add_argument(f"--{split}-images", help=f"image folder ({split})")


def given_pair(args: argparse.Namespace, split: str) -> tuple[str, str] | None:
    """(JSON, image folder) of ``split``, "train" or "val"; None where neither is given.

    Raises:
        InputError: one is given without the other.
    """
    json_file, images = getattr(args, f"{split}_json"), getattr(args, f"{split}_images")
    if bool(json_file) != bool(images):
        given, lacking = ("json", "images") if json_file else ("images", "json")
        raise InputError(WHERE, f"--{split}-{given} is given alone", f"add --{split}-{lacking}")
    return (json_file, images) if json_file else None


def use_own_data(cfg: CfgNode, args: argparse.Namespace, opts: Sequence[str], scores: bool) -> None:
    """Put the flags' data sets into DATASETS.

    Args:
        opts: the command's ``KEY VALUE`` overrides.
        scores: finished weights are scored (``--eval-only``), nothing is trained.

    Raises:
        InputError: half a pair, a training set where nothing is trained, or own training data
            that would be scored on data of the config's recipe.
    """
    pairs = {split: given_pair(args, split) for split in SPLITS}
    if scores and pairs["train"]:
        raise InputError(
            WHERE,
            "--train-json is given with --eval-only, which trains nothing",
            "give what is to be scored as --val-json and --val-images",
        )
    own = {name for name, *_ in cfg.DATASETS.COCO_JSON}
    for split, key in SPLITS.items():
        if pairs[split]:
            name = f"custom_{split}"
            cfg.DATASETS.COCO_JSON = [*cfg.DATASETS.COCO_JSON, [name, *pairs[split]]]
            cfg.DATASETS[key] = (name,)
        elif any(pairs.values()) and not (scores or own.issuperset(cfg.DATASETS[key])):
            _require_typed(f"DATASETS.{key}", split, opts)


def _require_typed(key: str, split: str, opts: Sequence[str]) -> None:
    """One split is the user's own, the other the recipe's: mostly a forgotten flag."""
    if key not in opts[::2]:
        other = next(name for name in SPLITS if name != split)
        raise InputError(
            WHERE,
            f"--{other}-json is given and --{split}-json is missing",
            f"add --{split}-json and --{split}-images, or {key} with the name of a data set",
        )
