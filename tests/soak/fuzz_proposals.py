"""Hostile proposal files: ours (safetensors), Detectron's and Detectron2's pickles."""

import json
import pickle
from pathlib import Path
from random import Random

import numpy as np
from fuzz_inputs import LONG, Reader, changed_bytes, changed_tree, hostile_pickle, require

from resnext_det.data.proposal_pickle import write_pickle
from resnext_det.data.proposals import ProposalFile, open_proposals, write_proposals
from resnext_det.detection.proposal_exchange import read_pickled

IDS = (5, 2, 9)


def _prepare(folder: Path) -> tuple[bytes, list[bytes]]:
    generator = np.random.default_rng(0)
    path, pickled = folder / "p.safetensors", folder / "p.pkl"
    rows = [
        (i, np.cumsum(generator.random((n, 4)), 1), generator.normal(size=n))
        for n, i in enumerate(IDS)
    ]
    write_proposals(path, rows, "mine")
    write_pickle(pickled, ProposalFile(path))
    boxes = [row[1].astype(np.float32) for row in rows]
    tree = {"ids": list(map(str, IDS)), "boxes": boxes, "scores": [r[2] for r in rows]}
    tree["bbox_mode"] = 1
    pickles = [pickle.dumps(tree, protocol) for protocol in (2, 4, 5)]
    return path.read_bytes(), [pickled.read_bytes(), *pickles]


def _lying_header(random: Random, data: bytes) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
    what = random.random()
    if what < 0.5:
        header = changed_tree(random, header)
    else:
        entry = header[random.choice([name for name in header if name != "__metadata__"])]
        field = random.choice(list(entry))
        other = ([0], [3], [4], [0, 0], [3, 4], [2**40, 4], [0, 2**62], [8, 24], ["F64"])
        entry[field] = random.choice(("I32", "F16", "F64", "U8")) if field == "dtype" else (
            random.choice(other)
        )  # fmt: skip
    text = json.dumps(header).encode()
    length = random.choice(LONG) if random.random() < 0.1 else len(text)
    return (length % 2**64).to_bytes(8, "little") + text + rest


def _lying_numbers(random: Random, data: bytes) -> bytes:
    """Ids, offsets, boxes and logits of other values; the header is right."""
    start = 8 + int.from_bytes(data[:8], "little")
    numbers = bytearray(data[start:])
    for _ in range(random.choice((1, 2, 5))):
        place = 4 * random.randrange(len(numbers) // 4)
        word = random.choice((b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\xff" * 4, b"\1\0\0\0", bytes(4)))
        numbers[place : place + 4] = word
    return data[:start] + bytes(numbers)


def _make(random: Random, made_from: tuple[bytes, list[bytes]], folder: Path) -> Path:
    ours, pickles = made_from
    if random.random() < 0.5:
        path = folder / "p.safetensors"
        path.write_bytes(
            random.choice((_lying_header, _lying_numbers, changed_bytes))(random, ours)
        )
        return path
    path = folder / "p.pkl"
    path.write_bytes(hostile_pickle(random, random.choice(pickles)))
    return path


def _check(image_id: int, boxes: np.ndarray, logits: np.ndarray) -> None:
    require(isinstance(image_id, int), f"the image id {image_id!r}")
    require(boxes.dtype == logits.dtype == np.float32, f"{boxes.dtype}, {logits.dtype}")
    require(boxes.shape == (len(logits), 4) and logits.ndim == 1, f"boxes {boxes.shape}")
    finite = np.isfinite(boxes).all() and np.isfinite(logits).all()
    require(bool(finite), f"image {image_id} has proposals that are not finite")


def _read(path: Path) -> None:
    if path.suffix == ".pkl":
        for found in read_pickled(path):
            _check(*found)
        return
    stored = open_proposals([path])
    for image_id in stored.image_ids:
        _check(image_id, *stored[image_id])
    stored.check_covers(stored.image_ids)


PROPOSALS = Reader("proposals", _prepare, _make, _read, ("p.safetensors", "p.pkl"))
