"""A detector's classes and a data set's brought together by their names."""

import re
from collections.abc import Iterable

import torch
from detectron2.data import MetadataCatalog
from torch import nn

from ..data.coco import class_names
from ..errors import InputError
from ..weights import WeightsRecord
from .scorer import check_class_names

SHOWN = 6  # names in a message


def _plain(name: str) -> str:
    """Names that people would call the same: "Traffic_Light" and "traffic light"."""
    return re.sub(r"[\s_\-]+", " ", name).strip().casefold()


def match(theirs: list[str], ours: list[str]) -> list[int]:
    """For each of the detector's classes its number among the data set's, -1 where it has none.

    Names are compared as they are, then without regard to case, spaces, "_" and "-". A name that
    several classes have then is left out of the second comparison.
    """
    exact = {name: number for number, name in enumerate(ours)}
    plain = {_plain(name): number for number, name in enumerate(ours)}
    forms = [_plain(name) for name in (*theirs, *ours)]
    twice = {form for form in forms if forms.count(form) > 2}
    return [
        exact.get(name, -1 if _plain(name) in twice else plain.get(_plain(name), -1))
        for name in theirs
    ]


def check_wanted(wanted: Iterable[str], dataset: str) -> None:
    """Raises InputError for a name of TEST.CLASSES that a loaded data set has no class of."""
    file = MetadataCatalog.get(dataset).get("json_file", dataset)
    check_class_names(tuple(wanted), class_names(dataset)[0], file)


def matching(
    record: WeightsRecord, path: object, dataset: str, wanted: tuple[str, ...] = ()
) -> list[int] | None:
    """How a detector's classes have to be renumbered for a loaded data set.

    Args:
        record: of the detector's file.
        path: the file, for messages.
        wanted: TEST.CLASSES, the data set's classes that count; () is all.

    Returns:
        `match`'s numbers; None where classes and their ids are the same already.

    Raises:
        InputError: the detector does not know a class that counts, or the data set has none of
            the name.
    """
    names, ids = class_names(dataset)
    check_wanted(wanted, dataset)
    if list(record.class_names) == names and list(record.class_ids) == ids:
        return None
    numbers = match(list(record.class_names), names)
    known = {names[number] for number in numbers if number >= 0}
    unknown = [name for name in (wanted or names) if name not in known]
    if unknown:
        rest = f", or name the others in TEST.CLASSES ({len(known)} match)" if known else ""
        raise InputError(
            MetadataCatalog.get(dataset).json_file,
            f"has the categories {_brief(names)}, {path} was trained on "
            f"{_brief(record.class_names)}: it does not know {_brief(unknown)}",
            f"give the categories the detector's names{rest}",
        )
    return numbers


def _brief(names) -> str:
    names = list(names)
    return f"{', '.join(names[:SHOWN])}{' ...' if len(names) > SHOWN else ''} ({len(names)})"


class Renumbered(nn.Module):
    """A detector whose classes have another data set's numbers; those it lacks are dropped.

    Args:
        numbers: from `matching`.
    """

    def __init__(self, model: nn.Module, numbers: list[int]):
        super().__init__()
        self.model = model
        self.register_buffer("numbers", torch.tensor(numbers), persistent=False)

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        outputs = self.model(batched_inputs)
        return [{**output, "instances": self._renumber(output["instances"])} for output in outputs]

    def _renumber(self, found):
        numbers = self.numbers.to(found.pred_classes.device)[found.pred_classes]
        found = found[numbers >= 0]
        found.pred_classes = numbers[numbers >= 0]
        return found
