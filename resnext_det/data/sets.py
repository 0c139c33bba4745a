"""The two splits of a classification data set, whatever it is stored as, chosen by DATA's keys."""

from pathlib import Path

from detectron2.config import CfgNode
from torch import nn
from torch.utils.data import Dataset

from ..errors import InputError
from . import arrays, augment, class_folders, lists, shards
from .skipping import SkippingSet


def open_split(cfg: CfgNode, split: str) -> Dataset:
    """Items (input, label); ``.classes`` names the labels, ``.root`` the source.

    DATA.ROOT is a ``.npz`` file, a folder with an official CIFAR archive, tar shards or class
    folders (docs/images.md); with DATA.TRAIN_LIST or DATA.VAL_LIST, the folder of the images that
    the list names.

    Args:
        split: "train" (augmented; DATA.SKIP_UNREADABLE holds for it) or "val" (the views of
            DATA.TEST_PROTOCOL; an image left out would be another error, so each must be read).

    Raises:
        InputError: see the readers; also for a DATA key with an unknown value.
    """
    augment.check_keys(cfg)
    lists.check_keys(cfg)
    transform = augment.training_transform(cfg) if split == "train" else augment.test_transform(cfg)
    data = _stored(cfg, split, transform)
    return SkippingSet(data) if cfg.DATA.SKIP_UNREADABLE and split == "train" else data


def _stored(cfg: CfgNode, split: str, transform: nn.Module) -> Dataset:
    if lists.list_of(cfg, split):
        return lists.open_list(cfg, split, transform)
    root = Path(cfg.DATA.ROOT)
    if root.suffix == ".npz":
        if not root.is_file():
            raise InputError(root.resolve(), "the file does not exist", "check DATA.ROOT")
        return arrays.read_npz(root, split, transform)
    if arrays.archive_in(root) is not None:
        return arrays.read_archive(root, split, transform)
    if shards.shards_of(root, split):
        return shards.open_shards(cfg, split, transform)
    return class_folders.class_folder(cfg, split, transform)


def open_both(cfg: CfgNode) -> tuple[Dataset, Dataset]:
    """Training and validation split. Raises InputError where classes or their order differ."""
    train, val = open_split(cfg, "train"), open_split(cfg, "val")
    class_folders.check_same_classes(train, val)
    lists.check_same_order(train, val)
    return train, val
