"""Error against parameters, a line a series of networks (paper, Fig. 7)."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from .. import paper, plots, runs
from ..errors import InputError
from ..models import Architecture, build_resnext
from .curves import network_of

ROW = ("mean", "standard_error")
PRINTED = {10: "cifar10", 100: "cifar100"}  # by the number of classes


@dataclass(frozen=True)
class Point:
    """A row of a study; ``run`` is its first seed's folder, None where that is not there."""

    network: Architecture
    mean: float
    standard_error: float
    run: runs.Run | None

    @property
    def label(self) -> str:
        return f"{self.network.cardinality}x{self.network.bottleneck_width}d"

    @property
    def data(self) -> tuple[str, int | None]:
        """Name of DATA.ROOT and number of classes."""
        root = Path(self.run.cfg.DATA.ROOT).name
        return root, runs.read_counts(self.run)["classes"]


def read_study(path: Path) -> Iterator[Point]:
    """The rows of a study.json (`studies.write_rows`)."""
    mend = "give a study.json that tools/reproduce.py wrote"
    for name, row in runs.read_object(path, mend).items():
        mean, bar = (row.get(k) if isinstance(row, dict) else None for k in ROW)
        bar = math.nan if bar is None else bar  # one seed
        if type(mean) not in (int, float) or type(bar) not in (int, float):
            raise InputError(path, f"{name} has no mean error", mend)
        folder = path.parent / name / "seed0"
        run = runs.read_run(folder) if (folder / "run.json").is_file() else None
        yield Point(network_of(run) if run else network_named(name, path), mean, bar, run)


def network_named(row: str, path: Path) -> Architecture:
    """ "X29_8x64d_cifar10" begins with a network's name."""
    words = row.split("_")
    for count in range(len(words), 1, -1):
        try:
            return Architecture.from_name("_".join(words[:count]))
        except InputError:
            continue
    raise InputError(
        path,
        f"row {row} names no network, and {path.parent / row / 'seed0'} is no run folder",
        "leave the study's folders beside its study.json",
    )


def check_alike(points: list[Point]) -> None:
    """Raises InputError where two points are of different data or of one network."""
    data = sorted({point.data for point in points if point.run}, key=str)
    if len(data) > 1:
        (one, few), (other, many) = data[:2]
        found = f"are of different data: {one} ({few} classes) and {other} ({many} classes)"
        raise InputError("the studies", found, "draw each data set by itself")
    name, count = Counter(point.network.name for point in points).most_common(1)[0]
    if count > 1:
        raise InputError("the studies", f"hold {name} {count} times", "give one study of each")


def parameters(network: Architecture, num_classes: int) -> float:
    """In millions."""
    with torch.device("meta"):
        built = build_resnext(**network.as_dict(), num_classes=num_classes)
    return sum(weight.numel() for weight in built.parameters()) / 1e6


def series_of(points: list[Point]) -> dict[str, list[Point]]:
    """Fig. 7's two series, and what is in neither; a line for each depth and width multiplier."""
    families: dict[str, list[Point]] = {}
    for point in points:
        families.setdefault(re.sub(r"_\d+x\d+d", "", point.network.name[1:]), []).append(point)
    series = {}
    for family, members in families.items():
        after = f" ({family})" if len(families) > 1 else ""
        grown = [p for p in members if p.network.bottleneck_width == 64]
        wider = [p for p in members if p.network.cardinality == 1]
        rest = [p for p in members if p not in grown and p not in wider]
        if len(wider) == 1 and wider[0] in grown:
            wider = []
        series[f"cardinality C grows, d = 64{after}"] = grown
        series[f"width d grows, C = 1{after}"] = wider
        series[f"other C x d{after}"] = rest
    return {name: members for name, members in series.items() if members}


def draw_params(
    studies: Sequence[str | Path],
    output: str | Path,
    *,
    num_classes: int | None = None,
    without_paper: bool = False,
) -> None:
    """Errors with their bars against millions of parameters, into one picture.

    Args:
        studies: study.json files; all of one data set.
        output: the picture; its ending says which kind.
        num_classes: of the data, for the size of the heads; None: as the first run logged, or 10.
        without_paper: leave the points of Table 7 out.

    Raises:
        InputError: a study is damaged, or they do not belong into one picture.
        OSError: the picture cannot be written.
    """
    points = [point for path in studies for point in read_study(Path(path))]
    if not points:
        raise InputError(studies[0], "holds no row", "give a finished study")
    check_alike(points)
    known = [point.data[1] for point in points if point.run]
    num_classes = num_classes or next(filter(None, known), 10)
    series = {
        name: sorted(
            (parameters(p.network, num_classes), p.mean, p.standard_error, p.label) for p in members
        )
        for name, members in series_of(points).items()
    }
    plots.errors_with_bars(
        series,
        Path(output),
        xlabel="parameters (millions)",
        printed={}
        if without_paper or not in_the_papers_range(points)
        else printed_points(num_classes),
    )


def in_the_papers_range(points: list[Point]) -> bool:
    """Whether a network is one of Fig. 7's; beside far smaller ones its points say nothing."""
    return any(p.network.depth == 29 and p.network.width_multiplier == 1 for p in points)


def printed_points(num_classes: int) -> dict[str, list[tuple[float, float, str]]]:
    """The networks of Table 7 that are the package's, on CIFAR of so many classes."""
    if num_classes not in PRINTED:
        return {}
    points = [
        (row.parameters / 1e6, getattr(row, PRINTED[num_classes]), name.partition("_")[2])
        for name, row in paper.TABLE_7.items()
        if name not in paper.OTHERS
    ]
    return {f"paper, Table 7 (CIFAR-{num_classes})": points}
