"""Guard exact resume: a run's batches depend on seed, process and iteration alone."""

import itertools
import random
from collections import Counter

import numpy as np
import pytest
import torch
from detectron2.utils import comm

from resnext_det.engine.sampler import ResumableBatches, SeededDataset, training_loader
from resnext_det.engine.seeding import own_stream, seed_all

SIZE = 23


def take(batches, count):
    return list(itertools.islice(iter(batches), count))


def draws_of(batches, count):
    return [draw for batch in take(batches, count) for draw in batch]


def as_rank(monkeypatch, rank, world_size):
    monkeypatch.setattr(comm, "get_rank", lambda: rank)
    monkeypatch.setattr(comm, "get_world_size", lambda: world_size)


@pytest.fixture(params=[None, 0.3], ids=["one group", "two groups"])
def groups(request):
    if request.param is None:
        return None
    return (np.random.default_rng(0).random(SIZE) < request.param).astype(int).tolist()


@pytest.mark.parametrize("start", [0, 1, 5, 40])
def test_starting_later_equals_skipping(groups, start):
    whole = ResumableBatches(SIZE, 4, seed=3, groups=groups)
    later = ResumableBatches(SIZE, 4, seed=3, groups=groups, start=start)
    assert take(later, 12) == take(whole, start + 12)[start:]


@pytest.mark.parametrize("rank", [0, 1])
def test_starting_later_equals_skipping_on_every_process(monkeypatch, groups, rank):
    as_rank(monkeypatch, rank, 2)
    whole = ResumableBatches(SIZE, 4, seed=3, groups=groups)
    later = ResumableBatches(SIZE, 4, seed=3, groups=groups, start=7)
    assert take(later, 5) == take(whole, 12)[7:]


def test_every_epoch_covers_every_sample_once():
    draws = draws_of(ResumableBatches(SIZE, 1, seed=0), 4 * SIZE)
    epochs = [[draw.index for draw in draws[i * SIZE : (i + 1) * SIZE]] for i in range(4)]
    assert all(sorted(epoch) == list(range(SIZE)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4  # shuffled anew each time


def test_positions_number_the_stream():
    """The position seeds a sample's augmentation, so it may never come twice."""
    draws = draws_of(ResumableBatches(SIZE, 4, seed=0), 20)
    assert [draw.position for draw in draws] == list(range(80))


def test_seed_changes_the_order():
    assert take(ResumableBatches(SIZE, 4, seed=0), 5) != take(ResumableBatches(SIZE, 4, seed=1), 5)


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_partition_the_stream(monkeypatch, world_size):
    alone = draws_of(ResumableBatches(SIZE, 1, seed=5), 6 * SIZE)
    shares = []
    for rank in range(world_size):
        as_rank(monkeypatch, rank, world_size)
        shares.append(draws_of(ResumableBatches(SIZE, 1, seed=5), 6 * SIZE // world_size))
    assert sorted(sum(shares, []), key=lambda draw: draw.position) == alone
    assert not set(shares[0]) & set(shares[1])


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_groups_never_mix(groups, batch_size):
    groups = groups or [0] * SIZE
    batches = take(ResumableBatches(SIZE, batch_size, seed=2, groups=groups), 60)
    assert all(len(batch) == batch_size for batch in batches)
    assert all(len({groups[draw.index] for draw in batch}) == 1 for batch in batches)
    seen = Counter(draw.index for batch in batches for draw in batch)
    assert set(seen) == set(range(SIZE))


def read(index):
    """A random read that touches all three random states, as augmentations do."""
    return index, random.random(), np.random.rand(), torch.rand(2).tolist()


def loaded(num_workers, start=0, seed=4):
    batches = ResumableBatches(SIZE, 3, seed=seed, start=start)
    loader = training_loader(read, batches, num_workers=num_workers, collate=list)
    return take(loader, 12 - start)


def test_workers_do_not_change_the_samples():
    alone = loaded(0)
    assert loaded(2) == alone
    assert loaded(2, start=5) == alone[5:]
    assert loaded(0, seed=5) != alone


def test_same_image_is_drawn_anew_each_time():
    """One augmentation for an image over all epochs would be none."""
    data = SeededDataset(read, seed=0)
    draws = draws_of(ResumableBatches(SIZE, 1, seed=0), 2 * SIZE)
    values = {data[draw][1] for draw in draws}
    assert len(values) == len(draws)


def random_numbers():
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_own_stream_puts_the_states_back():
    seed_all(1)
    expected = [random_numbers() for _ in range(2)]
    seed_all(1)
    first = random_numbers()
    with own_stream(7, 8):
        inside = random_numbers()
    assert [first, random_numbers()] == expected
    with own_stream(7, 8):
        assert random_numbers() == inside
    with own_stream(8, 7):
        assert random_numbers() != inside


def test_own_stream_puts_the_states_back_after_an_error():
    seed_all(1)
    expected = random_numbers()
    seed_all(1)
    with pytest.raises(KeyError), own_stream(2):
        random_numbers()
        raise KeyError
    assert random_numbers() == expected
