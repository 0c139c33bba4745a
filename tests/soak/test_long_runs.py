"""Guard that memory stays flat in long trainings, and bounded in large evaluations.

``pytest -m long tests/soak/test_long_runs.py``: 5,000 iterations of two networks; 5,000 images with
100 detections each in 80 classes, by one process and by two. The scripts print the same figures.
"""

import json

import evaluation_stress
import memory_runs
import pytest

SLOPE = 1024  # KiB for 1,000 iterations
SHORT = 12  # MiB in 200 iterations; a kept batch of the classifier is 50 KB, its network 80 KB
# MiB over the memory with the data set read. 23 are the packed detections themselves; what the
# scorer needs comes on top, on the main process alone.
GROWTH = {"hotcoco": 500, "pycocotools": 2000}
HEAP = 16  # MiB; evaluations leave the heap larger, up to some size: 2 in the last 50 of 100


@pytest.fixture
def say(capsys):
    def line(value):
        with capsys.disabled():
            print("\n" + json.dumps(value))

    return line


@pytest.mark.long
@pytest.mark.parametrize("name", memory_runs.NETWORKS)
def test_memory_is_flat_over_5000_iterations(name, say):
    found = memory_runs.measure(name, 5000)
    say(found)
    assert found["samples"] == 50
    assert found["slope_kib"] < SLOPE and found["slope_of_workers_kib"] < SLOPE


@pytest.mark.long
def test_memory_of_many_evaluations(say):
    """Behind the first 50."""
    found = memory_runs.measure("detection", 2000, evaluations=100)
    say(found)
    assert found["last_mib"] - found["first_mib"] < HEAP


@pytest.mark.slow
def test_memory_of_a_short_run():
    found = memory_runs.measure("classification", 300, every=20, warm_up=100)
    assert found["samples"] == 15
    assert found["last_mib"] - found["first_mib"] < SHORT


def test_a_slope():
    samples = [(100, 9000), *((i, 5000 + i // 10) for i in range(1000, 2000, 100))]
    assert memory_runs.slope(samples, 500) == pytest.approx(100)
    assert memory_runs.slope(samples, 0) < 0


def one_and_two(*size, **others):
    return [evaluation_stress.measure(*size, processes=n, **others) for n in (1, 2)]


def check_equal(one, two):
    assert two["figures"] == one["figures"] and two["confusion"] == one["confusion"]
    assert 1 < one["figures"]["bbox"]["AP"] < 99 and one["figures"]["proposals"]["AR@100"] > 1
    assert two["detections"] == one["detections"]
    assert len(one["growth_mib"]) == 1 and len(two["growth_mib"]) == 2


@pytest.mark.slow
def test_two_processes_are_one():
    one, two = one_and_two(31, 20, 5)  # an odd number: shares differ
    assert one["detections"] == 31 * 20
    check_equal(one, two)


@pytest.mark.long
@pytest.mark.parametrize("scorer", GROWTH)
def test_an_evaluation_of_5000_images(scorer, say):
    pytest.importorskip(scorer)
    one, two = one_and_two(5000, 100, 80, scorer=scorer)
    for found in (one, two):
        say({key: value for key, value in found.items() if key not in ("figures", "confusion")})
    check_equal(one, two)
    assert one["detections"] == 500_000
    assert max(one["growth_mib"] + two["growth_mib"]) < GROWTH[scorer]
    assert two["growth_mib"][1] < one["growth_mib"][0] / 2  # it holds its share, and scores nothing
