"""The losses of a run: read from the device together, averaged over processes, checked, logged."""

import logging
import math
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage

from ..errors import InputError
from .run import write_json

logger = logging.getLogger(__name__)

MOST_NAMED = 8  # images in a message


def images_of(batch: Any) -> list[dict]:
    """Who is in a batch: image id and file of Detectron2's input dicts, [] for other batches."""
    if not isinstance(batch, list | tuple):
        return []
    fields = ("image_id", "file_name")
    return [{key: x[key] for key in fields if key in x} for x in batch if isinstance(x, dict)]


class LossLog:
    """Keeps losses where they are until `flush`, so that a step never waits for a GPU.

    `flush` puts ``total_loss``, every loss by name (means over processes) and ``data_time`` (the
    slowest process's, seconds) into Detectron2's storage, under the iteration they belong to.

    Args:
        folder: where ``nonfinite_loss.json`` goes.
        solver: what messages call the group of the learning rate.
    """

    def __init__(self, folder: str | Path, solver: str = "SOLVER"):
        self.folder, self.solver = Path(folder), solver
        self.rows: list[tuple[int, list[str], torch.Tensor, float, list[dict]]] = []

    def add(
        self,
        iteration: int,
        losses: dict[str, torch.Tensor],
        data_time: float,
        images: list[dict],
    ) -> None:
        values = torch.stack([loss.detach().float() for loss in losses.values()])
        self.rows.append((iteration, list(losses), values, data_time, images))

    def flush(self) -> None:
        """Called by all processes at the same iteration.

        Raises:
            InputError: a loss is infinite or no number, in any process; names the iteration, the
                loss and the images, which nonfinite_loss.json keeps.
        """
        own = [
            (iteration, dict(zip(names, values.tolist(), strict=True)), waited, images)
            for iteration, names, values, waited, images in self.rows
        ]
        self.rows = []
        for rows in zip(*comm.all_gather(own), strict=True):
            self._check(rows)
            if comm.is_main_process():
                _store(rows)

    def _check(self, rows: tuple) -> None:
        bad = {name for _, losses, *_ in rows for name, v in losses.items() if not math.isfinite(v)}
        if not bad:
            return
        iteration, names = rows[0][0], ", ".join(sorted(bad))
        images = [image for row in rows for image in row[3]]
        path = self.folder / "nonfinite_loss.json"
        if comm.is_main_process():
            losses = [{name: str(v) for name, v in row[1].items()} for row in rows]
            write_json(path, {"iteration": iteration, "losses": losses, "images": images})
        raise InputError(
            path,
            f"{names} became infinite or no number at iteration {iteration}{_in_words(images)}",
            "look at these images and their boxes (tools/check_data.py); if they are right, lower "
            f"{self.solver}.BASE_LR or set SOLVER.CLIP_GRADIENTS.ENABLED True, and add --resume",
        )


def _in_words(images: list[dict]) -> str:
    ids = [str(image["image_id"]) for image in images if "image_id" in image]
    if not ids:
        return ""
    more = f" and {len(ids) - MOST_NAMED} more" if len(ids) > MOST_NAMED else ""
    return f", on the images with id {', '.join(ids[:MOST_NAMED])}{more}"


def _store(rows: tuple) -> None:
    storage, iteration = get_event_storage(), rows[0][0]
    storage.put_scalar("data_time", max(row[2] for row in rows), cur_iter=iteration)
    means = {name: sum(row[1][name] for row in rows) / len(rows) for name in rows[0][1]}
    storage.put_scalar("total_loss", sum(means.values()), cur_iter=iteration)
    if len(means) > 1:
        storage.put_scalars(cur_iter=iteration, **means)
