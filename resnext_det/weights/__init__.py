"""Weights files: what they hold, how they are read safely, and where their tensors go."""

from .files import fingerprint, read_record, read_weights, save_weights
from .load import LoadReport, load_all, load_trunk, load_weights
from .record import WeightsRecord

__all__ = [
    "LoadReport",
    "WeightsRecord",
    "fingerprint",
    "load_all",
    "load_trunk",
    "load_weights",
    "read_record",
    "read_weights",
    "save_weights",
]
