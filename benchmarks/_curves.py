"""Time against size: what is timed, the slope in logarithms, and why it is expected."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from _pairs import alternate

STEEP = 1.25  # a slope that is told as above linear; time measured twice differs by some tenths


@dataclass(frozen=True)
class Curve:
    """One cost by one size.

    Args:
        what: is timed.
        by: what grows.
        runs: {program: {size: a run}}; the first program is ours, sizes ascend.
        why: the slope is expected to be what it is.
    """

    what: str
    by: str
    runs: dict[str, dict[int, Callable[[], object]]]
    why: str


def slope(sizes: list[int], seconds: list[float]) -> float:
    """Of log(seconds) by log(size), least squares: 1 is linear, 0 constant, 2 quadratic."""
    return round(float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0]), 3)


def measured(curve: Curve, repeats: int) -> dict:
    """Medians, slopes over all sizes and over the last two, and peers' times over ours."""
    flat = {(who, n): run for who, runs in curve.runs.items() for n, run in runs.items()}
    times = alternate(flat, repeats)
    seconds = {who: {n: times[who, n] for n in runs} for who, runs in curve.runs.items()}
    medians = {who: [x["median"] for x in of.values()] for who, of in seconds.items()}
    ours, *peers = curve.runs
    sizes = list(curve.runs[ours])
    last = {who: slope(sizes[-2:], of[-2:]) for who, of in medians.items()}
    return {
        "by": curve.by,
        "seconds": seconds,
        "slope": {who: slope(sizes, of) for who, of in medians.items()},
        "slope of the last step": last,
        "is above linear": last[ours] > STEEP,
        "why": curve.why,
        "ratios": {
            f"{peer} / ours": {
                n: round(b / a, 3)
                for n, a, b in zip(sizes, medians[ours], medians[peer], strict=True)
            }
            for peer in peers
        },
    }
