"""Run folders, and the small records of them that stay when the folders are gone."""

from .folders import (
    Run,
    iterations_per_epoch,
    read_counts,
    read_evaluation,
    read_object,
    read_results,
    read_run,
)
from .records import Record, as_json, read_record, read_records, record_of
from .settings import differences, settings_of, task_of

__all__ = [
    "Record",
    "Run",
    "as_json",
    "differences",
    "iterations_per_epoch",
    "read_counts",
    "read_evaluation",
    "read_object",
    "read_record",
    "read_records",
    "read_results",
    "read_run",
    "record_of",
    "settings_of",
    "task_of",
]
