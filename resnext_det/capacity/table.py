"""A table of plain values that knows how to write them, as text and for JSON."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

NOTHING = "-"  # where a number does not exist
RES2_SIDE = 56  # of res2's output for a 224 x 224 image, for which Table 2 counts


@dataclass(frozen=True)
class Column:
    """A header (with the unit), and how a value of the column is written."""

    header: str
    show: Callable[[Any], str] = str


@dataclass(frozen=True)
class Table:
    """Plain values and how to write them; ``None`` stands for a number that does not exist."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple, ...]
    notes: tuple[str, ...] = ()

    def text(self) -> str:
        """Title, Markdown table and notes, with an empty line between any two."""
        cells = [
            [
                NOTHING if value is None else column.show(value)
                for column, value in zip(self.columns, row, strict=True)
            ]
            for row in self.rows
        ]
        body = tabulate(
            cells,
            [column.header for column in self.columns],
            tablefmt="github",
            disable_numparse=True,
            colalign=["left" if column.show is str else "right" for column in self.columns],
        )
        return "\n\n".join([self.title, body, *self.notes])

    def as_dict(self) -> dict:
        """For JSON: {"title", "rows": [{header: value}], "notes"}, values not rounded."""
        headers = [column.header for column in self.columns]
        rows = [dict(zip(headers, row, strict=True)) for row in self.rows]
        return {"title": self.title, "rows": rows, "notes": list(self.notes)}


# ---- how values are written ----


def fixed(digits: int, scale: float = 1, unit: str = "") -> Callable[[float], str]:
    """A writer of ``value / scale`` with so many digits behind the point, and the unit."""
    return lambda value: f"{value / scale:.{digits}f}{unit}"


def side(size: tuple[int, int]) -> str:
    """(height, width) in pixels."""
    return f"{size[0]} x {size[1]}"


WHOLE = "{:,}".format
THOUSANDS, MILLIONS = fixed(0, 1e3, " k"), fixed(1, 1e6, " M")
EXACT_GIGA = fixed(3, 1e9, " G")


def giga(value: float) -> str:
    """As the paper prints it: 4.1 G, 15 G, 0.22 G."""
    return f"{value / 1e9:g} G"


# ---- columns that several tables have ----

MODEL = Column("model")
PARAMETERS, MULTIPLY_ADDS = Column("parameters", WHOLE), Column("multiply-adds", WHOLE)
TOP1, TOP5 = (Column(f"paper top-{k} error, %", fixed(1)) for k in (1, 5))
CARDINALITY, WIDTH = Column("C", WHOLE), Column("d", WHOLE)
GROUP_WIDTH = Column("width C x d", WHOLE)
EQ4, EQ4_MULTIPLY_ADDS = (
    Column("parameters (Eq. 4)", WHOLE),
    Column(f"multiply-adds at {RES2_SIDE} x {RES2_SIDE}", WHOLE),
)
