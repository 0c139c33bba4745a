"""Fields and ids of the entries of a COCO file, and what refers to what."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .coco_files import Part
from .findings import MENDED, STOPS, Findings

FIELDS = {
    "images": ("id", "file_name"),
    "categories": ("id", "name"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
}
LARGEST_ID = 2**63 - 1  # proposal files hold ids as int64
SHOWN = 20  # ids listed in a message at most
_OTHER_KINDS = {
    "caption": "give the instances_*.json of the set; this one holds captions",
    "segments_info": "give the instances_*.json of the set; this one is panoptic",
}


RENUMBER = ", or set DATASETS.RENUMBER_ANNOTATIONS True"

# ---- fields and ids ----


def check_fields(findings: Findings, part: Part, *, without_id: bool = False) -> None:
    """Take out entries that are no objects or lack a field that every entry needs.

    Args:
        without_id: an entry may lack its id.
    """
    fields = FIELDS[part.name][int(without_id) :]
    wanted = set(fields)
    at_fault = np.array(
        [not (isinstance(e, dict) and wanted <= e.keys()) for e in part.entries], dtype=bool
    )

    def say(number: int) -> tuple[str, str]:
        entry = part.entries[number]
        if not isinstance(entry, dict):
            return part.where(number), f"is {entry!r:.40}, not an object"
        lacking = next(field for field in fields if field not in entry)
        return part.where(number), f"has no {lacking}"

    numbers = np.flatnonzero(at_fault)
    mend = _mend_field(part, part.entries[numbers[0]]) if len(numbers) else ""
    findings.add("missing field", STOPS, numbers, say, mend)
    part.take_out(at_fault)


def _mend_field(part: Part, entry: Any) -> str:
    if part.name != "annotations" or not isinstance(entry, dict):
        return "add it"
    for key, mend in _OTHER_KINDS.items():
        if key in entry:
            return mend
    return "add it" if "id" in entry else f"add it{RENUMBER}"


def _is_id(value: Any) -> bool:
    return type(value) is int and -LARGEST_ID <= value <= LARGEST_ID


def stated_ids(part: Part) -> np.ndarray:
    """Every id of the list, int64, also those of entries at fault (numbers written as text too):
    what refers to them is no second fault.
    """
    values = [entry.get("id") for entry in part.entries if isinstance(entry, dict)]
    values = [int(v) if isinstance(v, str) and v.isdecimal() and len(v) < 19 else v for v in values]
    return np.array([value for value in values if _is_id(value)], dtype=np.int64)


def _no_ids(values: list) -> np.ndarray:
    return np.array([not _is_id(value) for value in values], dtype=bool)


def _repeats(ids: np.ndarray) -> np.ndarray:
    """For each id the number of the first entry with the same one, int64 (N,)."""
    _, first, same = np.unique(ids, return_index=True, return_inverse=True)
    return first[same.reshape(-1)]


def check_ids(findings: Findings, part: Part, label: Callable[[dict], str], mend: str = "") -> None:
    """Take out entries without an id of their own.

    Args:
        label: what tells two entries with one id apart.
    """
    wrong = _no_ids(part.values("id"))
    findings.add(
        "id that is no whole number",
        STOPS,
        np.flatnonzero(wrong),
        lambda number: (part.where(number), f"has the id {part.entries[number].get('id')!r:.40}"),
        f"make it a whole number{mend}",
    )
    part.take_out(wrong)
    ids = np.array(part.values("id"), dtype=np.int64)
    first = _repeats(ids)
    again = first != np.arange(len(ids))

    def say(number: int) -> tuple[str, str]:
        both = [label(part.entries[n]) for n in (number, first[number])]
        found = f"repeats the id {ids[number]} of {part.where(first[number])}"
        return part.where(number), f"{found} ({both[0]}; there {both[1]})"

    mend = f"give every entry an id of its own{mend}"
    findings.add("repeated id", STOPS, np.flatnonzero(again), say, mend)
    part.take_out(again)


def check_annotation_ids(findings: Findings, annotations: Part, renumber: bool) -> bool:
    """Take out annotations without an id of their own, or with ``renumber`` give them one.

    Returns:
        Whether the ids were counted anew.
    """
    if not renumber:
        check_ids(findings, annotations, lambda entry: f"image {entry['image_id']!r:.40}", RENUMBER)
        return False
    values = annotations.values("id")
    at_fault = _no_ids(values)
    if not at_fault.any():
        at_fault = _repeats(np.array(values, dtype=np.int64)) != np.arange(len(values))
    if not at_fault.any():
        return False
    findings.add(
        "annotation ids counted anew",
        MENDED,
        np.flatnonzero(at_fault),
        lambda n: (annotations.where(n), f"has the id {values[n]!r:.40}"),
        f"nothing to do: all {len(values)} are numbered from 1 (DATASETS.RENUMBER_ANNOTATIONS)",
    )
    for number, entry in enumerate(annotations.entries):
        entry["id"] = number + 1
    return True


def free_id_zero(findings: Findings, annotations: Part, renumbered: bool) -> None:
    """pycocotools marks a match by the annotation's id, so that 0 would count as none
    (`COCOeval.evaluateImg`, `gtMatches` and `dtMatches`).
    """
    if renumbered or not annotations.entries:
        return
    ids = np.array(annotations.values("id"), dtype=np.int64)
    (numbers,) = np.nonzero(ids == 0)
    findings.add(
        "annotation id 0",
        MENDED,
        numbers,
        lambda n: (f"annotation 0 (image {annotations.entries[n]['image_id']})", "has the id 0"),
        f"nothing to do: it is taken as {int(ids.max()) + 1}, since the scorer reads 0 as no match",
    )
    for number in numbers.tolist():
        annotations.entries[number]["id"] = int(ids.max()) + 1


# ---- references ----

_UNKNOWN = {
    "image_id": (
        "unknown image",
        "belongs to no image of the file",
        "add the image or remove the annotation",
    ),
    "category_id": (
        "undeclared category",
        "has the undeclared category {}; declared are {}",
        "declare it under categories or correct the annotation",
    ),
}


def _listed(ids: np.ndarray) -> str:
    shown = sorted(ids.tolist())[:SHOWN]
    return f"{shown}" if len(ids) <= SHOWN else f"{str(shown)[:-1]}, ... {len(ids)} in all]"


def check_reference(
    findings: Findings,
    annotations: Part,
    field: str,
    ids: np.ndarray,
    name: Callable[[int], str],
) -> None:
    """Take out annotations whose image or category the file does not list.

    Args:
        field: "image_id" or "category_id".
        ids: int64, those that the file lists.
        name: how a message calls annotation number n.
    """
    values, part = annotations.values(field), "images" if field == "image_id" else "categories"
    wrong = _no_ids(values)
    example = f", as {ids[0]}" if len(ids) else ""
    findings.add(
        f"{field} that is no whole number",
        STOPS,
        np.flatnonzero(wrong),
        lambda n: (
            name(n),
            f"has the {field} {values[n]!r:.40} ({type(values[n]).__name__}), but ids under {part} "
            f"are whole numbers{example}",
        ),
        "write both as whole numbers",
    )
    annotations.take_out(wrong)
    left = np.array(annotations.values(field), dtype=np.int64)
    unknown = ~np.isin(left, ids)
    kind, found, mend = _UNKNOWN[field]
    findings.add(
        kind,
        STOPS,
        np.flatnonzero(unknown),
        lambda n: (name(n), found.format(left[n], _listed(ids))),
        mend,
    )
    annotations.take_out(unknown)


def leave_orphans(annotations: Part, images: Part, categories: Part) -> None:
    """Take out annotations of images or categories that are gone; those are recorded already."""
    for field, part in (("image_id", images), ("category_id", categories)):
        left = np.array(part.values("id"), dtype=np.int64)
        own = np.array(annotations.values(field), dtype=np.int64)
        annotations.take_out(~np.isin(own, left))
