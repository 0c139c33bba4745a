"""Proposal files in another form: Detectron2's pickles read, without running them, and written.

Imported by `proposals`; docs/proposals.md has both forms.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ..data.proposal_pickle import FORM, proposals_in, write_pickle
from ..data.proposals import ProposalFile, parts_of, write_proposals
from ..engine.folders import OTHER_OUTPUT, make_folder, new_file
from ..engine.lock import lock_folder, unlock_folder
from ..errors import InputError
from ..weights.machine import MAX_INSTRUCTIONS, Refused, mapped, phrase, told_of
from ..weights.pickles import NumpyPickle

FORMATS = ("resnext_det", "detectron2")


@contextmanager
def alone(output: str | Path, main: bool = True) -> Iterator[None]:
    """Let one tool at a time make the proposals of a file; what a failed one leaves is removed.

    Args:
        main: False in all processes of a run but one.

    Raises:
        InputError: another one is at it, or has just finished.
    """
    parts = parts_of(output)
    if main:
        lock_folder(make_folder(parts, OTHER_OUTPUT), OTHER_OUTPUT)
    try:
        if main:
            new_file(output)
        yield
    finally:
        if main:
            unlock_folder(parts)
            shutil.rmtree(parts, ignore_errors=True)


class ProposalPickle(NumpyPickle):
    """A pickle of lists of arrays: more instructions than a file of weights may have."""

    def __init__(self, stream, size: int):
        super().__init__(stream, size)
        self.calls["detectron2.structures.boxes.BoxMode"] = self._box_mode
        # Detectron2's files take about 50 an image, and an image has 20 bytes a box.
        self.limit = self.values = MAX_INSTRUCTIONS + size // 8

    def _box_mode(self, value) -> int:
        if type(value) is not int:
            raise ValueError("a BoxMode is no whole number")
        return value

    def admit(self, name: str):
        if name not in self.calls and name not in self.mentions:
            raise Refused(f"asks for {phrase(name)}, which a proposal file has no use for")
        return super().admit(name)


def read_pickled(path: str | Path) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Image id, boxes and logits of a Detectron or Detectron2 file; nothing in it is run.

    Raises:
        InputError: see ``weights.pickles.read_pickle`` and ``data.proposal_pickle.proposals_in``.
    """
    with told_of(path), mapped(path) as stream:
        try:
            content = ProposalPickle(stream, len(stream)).run()
        except Refused as error:
            raise InputError(path, error.found, FORM) from error
    return proposals_in(path, content)


def convert(source: str | Path, output: str | Path, form: str) -> int:
    """Turn a proposal file, told from its contents, into the other form; the number of images.

    Raises:
        InputError: ``source`` is neither, or has that form already; ``output`` is there.
    """
    output = new_file(output)
    is_ours = _is_safetensors(source)
    if form == FORMATS[not is_ours]:
        raise InputError(
            source, f"is in the form {form} already", f"give --format {FORMATS[is_ours]}"
        )
    if is_ours:
        stored = ProposalFile(source)
        write_pickle(output, stored)
        return len(stored)
    with alone(output):
        write_proposals(output, read_pickled(source), f"converted from {Path(source).name}")
    return len(ProposalFile(output))


def _is_safetensors(path: str | Path) -> bool:
    """By the JSON that follows its own length, 8 bytes."""
    try:
        with open(path, "rb") as file:
            return file.read(9)[8:] == b"{"
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})", "check the path") from error
