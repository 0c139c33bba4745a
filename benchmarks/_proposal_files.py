"""Stored proposals by two programs: our file, and the pickle that Detectron2's loader reads."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
from detectron2.data.build import load_proposals_into_dataset
from detectron2.structures import BoxMode

from resnext_det.data.proposals import ProposalFile, write_proposals

NAMES = {"ours": "proposals.safetensors", "Detectron2": "proposals.pkl"}

Images = list[tuple[int, np.ndarray, np.ndarray]]  # image id, boxes (N, 4), logits (N,)


def write_ours(path: Path, images: Images) -> None:
    write_proposals(path, images, "a benchmark")


def write_theirs(path: Path, images: Images) -> None:
    ids, boxes, logits = (list(column) for column in zip(*images, strict=True))
    content = {"ids": ids, "boxes": boxes, "objectness_logits": logits}
    with open(path, "wb") as file:
        pickle.dump({**content, "bbox_mode": BoxMode.XYXY_ABS}, file, pickle.HIGHEST_PROTOCOL)


def open_theirs(path: Path, ids: list[int]) -> dict[int, dict]:
    """Every image's record, with its proposals."""
    records = [{"image_id": image_id} for image_id in ids]
    return {x["image_id"]: x for x in load_proposals_into_dataset(records, str(path))}


def opener(name: str, path: Path, ids: list[int]) -> Callable[[], Callable[[int], tuple]]:
    """A call that opens the file and gives what reads one image: boxes and logits."""

    def ours() -> Callable[[int], tuple]:
        return ProposalFile(path).__getitem__

    def theirs() -> Callable[[int], tuple]:
        records = open_theirs(path, ids)
        return lambda i: (records[i]["proposal_boxes"], records[i]["proposal_objectness_logits"])

    return ours if name == "ours" else theirs


def look_through(read: Callable[[int], tuple], ids: list[int]) -> None:
    """Read images and touch every number, as a training step would."""
    for image_id in ids:
        boxes, logits = read(image_id)
        boxes.sum(), logits.sum()


WRITERS = {"ours": write_ours, "Detectron2": write_theirs}
