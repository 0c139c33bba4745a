"""The paper's claim in miniature: cardinality against error at equal complexity (Table 3)."""

import logging
from dataclasses import replace
from pathlib import Path

from detectron2.config import CfgNode
from tabulate import tabulate

from .. import plots
from ..config import architecture_arguments
from ..data import sets
from ..models import Architecture, build_resnext
from ..models.complexity import totals
from ..writing import write_text
from . import studies

logger = logging.getLogger(__name__)

# C x d of Table 2 that a quarter of the width still gives in whole channels (8 x 14d does not).
SETTINGS = ((1, 64), (2, 40), (4, 24), (32, 4))


def architectures(cfg: CfgNode) -> list[Architecture]:
    """One a setting; depth and width multiplier are the config's."""
    base = Architecture(**architecture_arguments(cfg))
    return [replace(base, cardinality=c, bottleneck_width=d) for c, d in SETTINGS]


def study(
    tool: Path, config_file: Path, cfg: CfgNode, seeds: int, opts: list[str], jobs: int
) -> list[studies.Row]:
    """Train every setting with every seed; write study.json, table.md and figure.png.

    Raises:
        InputError: the data set cannot be used; see also `studies.run_all`.
    """
    members = architectures(cfg)
    num_classes = len(sets.open_both(cfg)[0].classes)  # a fault shows here, not in every log
    settings = [
        studies.Setting(
            f"{a.cardinality}x{a.bottleneck_width}d",
            config_file,
            ("MODEL.RESNETS.NUM_GROUPS", str(a.cardinality))
            + ("MODEL.RESNETS.WIDTH_PER_GROUP", str(a.bottleneck_width)),
        )
        for a in members
    ]
    output = Path(cfg.OUTPUT_DIR)
    rows = studies.run_all(tool, settings, seeds, output, opts, jobs)
    studies.write_rows(rows, output / "study.json")
    text = table(members, rows, cfg.DATA.CROP_SIZE, num_classes)
    write_text(output / "table.md", text + "\n")
    draw(members, rows, output / "figure.png")
    logger.info("written: %s/study.json, table.md, figure.png\n%s", output, text)
    return rows


def table(
    members: list[Architecture], rows: list[studies.Row], image_size: int, num_classes: int
) -> str:
    """Setting, parameters, multiply-adds at ``image_size`` and error of each row, as Markdown."""
    lines = []
    for member, row in zip(members, rows, strict=True):
        size = totals(build_resnext(**member.as_dict(), num_classes=num_classes), image_size)
        lines.append(
            (
                row.name,
                f"{size.parameters:,}",
                f"{size.multiply_adds / 1e6:.2f} M",
                studies.with_bar(row),
                ", ".join(f"{error:.2f}" for error in row.errors),
            )
        )
    headers = ("C x d", "parameters", "multiply-adds", "top-1 error, %", "of the seeds")
    return tabulate(lines, headers, tablefmt="github", disable_numparse=True)


def draw(members: list[Architecture], rows: list[studies.Row], path: Path) -> None:
    points = [
        (member.cardinality, row.mean, row.standard_error, row.name)
        for member, row in zip(members, rows, strict=True)
    ]
    plots.errors_with_bars({"equal complexity": points}, path, xlabel="cardinality", log_x=True)
