"""The rows of the paper's tables, the config that carries each, and the runs that fill it."""

import fnmatch
import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode

from .. import paper, runs
from ..config import architecture_arguments, load_cfg, protocol_of
from ..errors import InputError
from ..models import Architecture
from ..runs import Record

ROOT = Path(__file__).resolve().parents[2]  # the checkout, for its configs
TOP1, TOP5 = "classification/top1_error", "classification/top5_error"


@dataclass(frozen=True)
class DataSet:
    """Told by its numbers, and never by a name.

    Args:
        train: least and largest number of training images.
        val: number of validation images.
        configs: pattern of the configs that train on it.
        root: the name of DATA.ROOT in them, where the folder holds several data sets'.
    """

    name: str
    train: tuple[int, int]
    val: int
    classes: int
    configs: str
    root: str | None = None

    def is_of(self, record: Record) -> bool:
        if (record.val_images, record.classes) != (self.val, self.classes):
            return False
        least, most = self.train
        return record.is_evaluation or least <= (record.train_images or 0) <= most


IMAGENET = DataSet("ImageNet-1K", (1281167, 1281167), 50000, 1000, "configs/imagenet/*")
# "6.8 million"; there is no official list.
IMAGENET_5K = DataSet("ImageNet-5K", (6750000, 6849999), 50000, 5000, "configs/imagenet5k/*")
CIFAR = {
    k: DataSet(f"CIFAR-{k}", (50000, 50000), 10000, k, "configs/cifar/*", root)
    for k, root in ((10, "cifar-10-batches-py"), (100, "cifar-100-python"))
}
COCO = DataSet("COCO", (118287, 118287), 5000, 80, "configs/faster_rcnn_*")


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Args:
        network: name of the architecture, or the paper's name of another one.
        part: which of several numbers of that network it is; "" where there is one.
        paper: numbers as printed.
        measures: the results they are compared with, in the same order.
        opts: KEY VALUE pairs of an evaluation after training; () where training's own counts.
    """

    network: str
    paper: tuple[float, ...]
    measures: tuple[str, ...]
    data: DataSet
    part: str = ""
    opts: tuple[str, ...] = ()

    @property
    def config(self) -> str | None:
        """The file that carries it, from the repository's root."""
        for path, cfg in recipes().items():
            if (
                fnmatch.fnmatchcase(path, self.data.configs)
                and self.data.root in (None, Path(cfg.DATA.ROOT).name)
                and network_of(cfg) == self.network
            ):
                return path
        return None


@dataclass(frozen=True)
class Table:
    """One table of the paper.

    Args:
        numbers: what they are, of which data and test.
        part: the header of its rows' parts, if they have any.
        digits: decimals that the paper prints.
    """

    title: str
    numbers: str
    rows: list[Row]
    part: str = ""
    digits: int = 1


@functools.cache
def recipes() -> dict[str, CfgNode]:
    """{path from the repository's root: config}, without the files that only hold shared facts.

    Raises:
        InputError: there are none; the package was installed without its repository.
    """
    found = sorted((ROOT / "configs").rglob("*.yaml"))
    if not found:
        raise InputError(
            ROOT / "configs", "holds no config", "run it from a checkout of the repository"
        )
    return {
        path.relative_to(ROOT).as_posix(): load_cfg(path)
        for path in found
        if not path.name.startswith("Base")
    }


@functools.cache
def settings_in(config: str, opts: tuple[str, ...] = ()) -> dict:
    return runs.settings_of(load_cfg(ROOT / config, list(opts)))


@functools.cache
def protocol_in(config: str, opts: tuple[str, ...] = ()) -> dict:
    return protocol_of(load_cfg(ROOT / config, list(opts)))


def is_tested_as(record: Record, config: str, opts: tuple[str, ...]) -> bool:
    """By the protocol and the sizes that its results name; where they name none, by settings."""
    expected, found = protocol_in(config, opts), record.evaluation
    sizes = ("protocol", "crop", "resize", "scales")
    return not found or all(found.get(name) == expected.get(name) for name in sizes)


def network_of(cfg: CfgNode) -> str:
    return Architecture(**architecture_arguments(cfg)).name


def command_in(config: str) -> str:
    """The command that the file's first comment gives."""
    text = re.sub(r"\\\n#\s*", "", (ROOT / config).read_text())
    return next(line[2:].strip() for line in text.splitlines() if line.startswith("# python "))


def top1_rows(printed: dict[str, float]) -> list[Row]:
    return [Row(name, (error,), (TOP1,), IMAGENET) for name, error in printed.items()]


def rows_of_table_5() -> list[Row]:
    rows = []
    for name, printed in paper.TABLE_5.items():
        side = printed.large_side
        opts = ("DATA.RESIZE_SIZE", str(side), "DATA.CROP_SIZE", str(side))
        for part, errors, given in ((224, printed.at_224, ()), (side, printed.at_large, opts)):
            if errors is not None:
                rows.append(Row(name, errors, (TOP1, TOP5), IMAGENET, str(part), given))
    return rows


def rows_of_table_6() -> list[Row]:
    among_1000 = (f"{TOP1}_1000way", f"{TOP5}_1000way")
    return [
        Row(name, errors, measures, IMAGENET_5K, part)
        for name, printed in paper.TABLE_6.items()
        for part, errors, measures in (
            ("5K-way", printed.of_5000, (TOP1, TOP5)),
            ("1K-way", printed.of_1000, among_1000),
        )
    ]


def rows_of_table_7() -> list[Row]:
    return [
        Row(name, (error,), (TOP1,), CIFAR[k], CIFAR[k].name)
        for name, printed in paper.TABLE_7.items()
        for k, error in ((10, printed.cifar10), (100, printed.cifar100))
    ]


def tables() -> list[Table]:
    """Every table of the paper whose numbers are measured by training."""
    single = "ImageNet-1K validation set, single 224 crop"
    return [
        Table("Table 3", f"Top-1 error, %; {single}.", top1_rows(paper.TABLE_3)),
        Table(
            "Table 4",
            f"Top-1 / top-5 error, %; {single}.",
            [Row(name, e, (TOP1, TOP5), IMAGENET) for name, e in paper.TABLE_4.items()],
        ),
        Table(
            "Residual connections (Sec. 5.1)",
            f"As Table 3: {single}; top-1 error, %.",
            top1_rows(paper.SHORTCUTS),
        ),
        Table(
            "Table 5",
            "Top-1 / top-5 error, %; ImageNet-1K validation set, single crop of the side given. "
            "Crops larger than 224 are other tests of the weights that training at 224 left.",
            rows_of_table_5(),
            part="crop",
        ),
        Table(
            "Table 6",
            "Top-1 / top-5 error, %; trained on ImageNet-5K (6.8 million images), ImageNet-1K "
            "validation set, single 224 crop, among all 5,000 classes or the 1,000.",
            rows_of_table_6(),
            part="choice",
        ),
        Table(
            "Table 7",
            "Test error, %, 32 x 32 images; the paper's are means of 10 runs.",
            rows_of_table_7(),
            part="data set",
            digits=2,
        ),
        Table(
            "Table 8",
            "AP / AP50, %; COCO, trained on trainval35k (= train2017), tested on minival "
            "(= val2017, 5,000 images), from ImageNet-1K weights of the config named there.",
            [
                Row(name, (r.ap, r.ap50), ("bbox/AP", "bbox/AP50"), COCO)
                for name, r in paper.TABLE_8.items()
            ],
        ),
    ]


def runs_of(row: Row, records: list[Record]) -> list[Record]:
    """Those of the same network, data, settings and test; for an evaluation, of such weights.

    Whose weights they are is told by that run's OUTPUT_DIR.
    """
    if row.config is None:
        return []
    near = [r for r in records if r.architecture == row.network and row.data.is_of(r)]
    near = [r for r in near if all(name in r.results for name in row.measures)]
    expected = settings_in(row.config)
    trained = [
        r for r in near if not r.is_evaluation and not runs.differences(r.settings, expected)
    ]
    if not row.opts:
        return [r for r in trained if is_tested_as(r, row.config, ())]
    weights = {f"{r.output}/model_final.safetensors" for r in trained}
    expected = settings_in(row.config, row.opts)
    return [
        r
        for r in near
        if r.is_evaluation and r.weights in weights and is_tested_as(r, row.config, row.opts)
        if not runs.differences(r.settings, expected, of_the_test=True)
    ]


def alike(record: Record) -> str:
    """Equal for runs that differ in their seed only."""
    data = (record.data_set, record.train_images, record.val_images, record.classes)
    what = (record.task, record.architecture, *data, record.config_file, record.is_evaluation)
    return json.dumps((*what, record.weights, record.settings), sort_keys=True)


def nearest_recipe(record: Record) -> str | None:
    """The config with the fewest other settings, for a command that names none."""
    candidates = {
        path: len(runs.differences(record.settings, settings_in(path)))
        for path, cfg in recipes().items()
        if network_of(cfg) == record.architecture and runs.task_of(cfg) == record.task
    }
    return min(candidates, key=lambda path: (candidates[path], path), default=None)


def is_here(config: str | None) -> bool:
    return config in recipes()
