"""The order in which a training run sees its samples, as a function of the iteration alone."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch.utils.data
from detectron2.data.samplers import TrainingSampler
from detectron2.utils import comm

from .seeding import own_stream
from .workers import WatchedLoader


class Draw(NamedTuple):
    """One sample of the stream: which item, and the number that seeds its augmentation."""

    index: int
    position: int


class ResumableBatches(torch.utils.data.Sampler):
    """An endless stream of batches, one process's share, that can start at any iteration.

    Detectron2's `TrainingSampler` gives the order (a permutation an epoch, joined end to
    end, every process taking each n-th). Images are grouped by shape here instead of in
    the loader, because a group's half-filled batches can then be found again on resume by
    replaying indices, without reading one image.

    Args:
        size: number of samples of the set.
        batch_size: samples a batch on this process.
        seed: non-negative; the same on all processes.
        groups: for each sample a group number; a batch holds one group only. None: one group.
        start: number of batches to skip.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        *,
        groups: Sequence[int] | None = None,
        start: int = 0,
    ):
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.groups, self.start = groups, start

    def _draws(self) -> Iterator[Draw]:
        rank, world_size = comm.get_rank(), comm.get_world_size()
        for number, index in enumerate(TrainingSampler(self.size, shuffle=True, seed=self.seed)):
            yield Draw(index, number * world_size + rank)

    def _batches(self) -> Iterator[list[Draw]]:
        waiting: dict[int, list[Draw]] = {}
        for draw in self._draws():
            batch = waiting.setdefault(self.groups[draw.index] if self.groups else 0, [])
            batch.append(draw)
            if len(batch) == self.batch_size:
                yield batch[:]
                batch.clear()

    def __iter__(self) -> Iterator[list[Draw]]:
        return islice(self._batches(), self.start, None)


class SeededDataset(torch.utils.data.Dataset):
    """Calls ``read(index)`` under a random stream that only seed and position decide."""

    def __init__(self, read: Callable[[int], Any], seed: int):
        self.read, self.seed = read, seed

    def __getitem__(self, draw: Draw) -> Any:
        with own_stream(self.seed, draw.position):
            return self.read(draw.index)


def training_loader(
    read: Callable[[int], Any],
    batches: ResumableBatches,
    *,
    num_workers: int,
    collate: Callable[[list], Any],
) -> WatchedLoader:
    """The loader both trainers use: seeded samples in resumable batches."""
    return WatchedLoader(
        SeededDataset(read, batches.seed),
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=collate,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
    )
