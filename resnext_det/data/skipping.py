"""Training on past images that cannot be read: DATA.SKIP_UNREADABLE."""

import logging
import math

import torch
from detectron2.utils import comm
from torch.utils.data import Dataset, get_worker_info

from ..errors import InputError

logger = logging.getLogger(__name__)

MOST_IN_A_ROW = 100  # then it is not a few damaged files: a folder is gone, or a disk


class SkippingSet(Dataset):
    """A training set in which the next readable image takes the place of an unreadable one.

    The replacement is the same in every epoch and every run, and carries its own label. Each
    unreadable image is named in the log once, by the data worker that met it (by both, if two meet
    it at the same moment), with the number met so far by all of them; that number is logged again
    each time so many images were read as an epoch has. A forked worker writes to the run's log,
    one that starts afresh to standard error. Several training processes have a log each.

    Args:
        data: items as the readers of this package give them, of any store.

    Raises:
        InputError: on access, where `MOST_IN_A_ROW` images one after the other are unreadable.
    """

    def __init__(self, data: Dataset):
        self.data, self.classes, self.root = data, data.classes, data.root
        # One byte an image that all data workers see. Known ones are not tried again.
        self.is_unreadable = torch.zeros(len(data), dtype=torch.bool).share_memory_()
        self.epoch = math.ceil(len(data) / comm.get_world_size())  # images of this process
        self.reads = 0

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple:
        self._report_epochs()
        tries = min(len(self), MOST_IN_A_ROW)
        for place in range(index, index + tries):
            place %= len(self)
            if self.is_unreadable[place]:
                continue
            try:
                return self.data[place]
            except InputError as error:
                self._note(place, error)
        raise InputError(
            self.root,
            f"{tries} images in a row, from image {index} on, cannot be read",
            "mend the first ones that the log names; DATA.SKIP_UNREADABLE is for single files",
        )

    def _note(self, place: int, error: InputError) -> None:
        self.is_unreadable[place] = True
        count = int(self.is_unreadable.sum())
        logger.warning("%s. The next readable image takes its place (%d so far)", error, count)

    def _report_epochs(self) -> None:
        """In one worker for all; batches are dealt out to them in turn."""
        worker = get_worker_info()
        if worker and worker.id:
            return
        self.reads += worker.num_workers if worker else 1
        if self.reads >= self.epoch:
            self.reads = 0
            if count := int(self.is_unreadable.sum()):
                of_all = f"{count} of {len(self)} images cannot be read and are replaced"
                logger.warning("%s: %s", self.root, of_all)
