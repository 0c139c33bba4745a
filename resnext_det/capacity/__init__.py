"""Capacity: what a network has, beside what the paper prints (Tables 1-4 and 7).

Everything of ours is counted from the networks themselves, on the meta device.
"""

from .computing import regrouping_table
from .networks import model_table, width_table
from .paper_tables import TABLES, paper_table
from .table import Column, Table

__all__ = [
    "TABLES",
    "Column",
    "Table",
    "model_table",
    "paper_table",
    "regrouping_table",
    "width_table",
]
