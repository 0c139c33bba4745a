"""Weights files: what they hold, how they are read safely, and where their tensors go."""

from .export import export_weights
from .facts import Facts
from .files import fingerprint, read_record, read_source, read_weights, save_weights
from .fit import check_fit
from .layout import architecture_from
from .load import LoadReport, load_all, load_trunk, load_weights
from .reading import Source
from .record import WeightsRecord

__all__ = [
    "Facts",
    "LoadReport",
    "Source",
    "WeightsRecord",
    "architecture_from",
    "check_fit",
    "export_weights",
    "fingerprint",
    "load_all",
    "load_trunk",
    "load_weights",
    "read_record",
    "read_source",
    "read_weights",
    "save_weights",
]
