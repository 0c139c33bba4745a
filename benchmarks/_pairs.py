"""What the benchmarks share: alternated runs, medians with their spread, the machine."""

import json
import os
import statistics
import time
from collections.abc import Callable, Container
from functools import partial

import torch

from resnext_det.compat import describe_environment
from resnext_det.engine.memory import keep_freed_memory
from resnext_det.engine.run import write_json
from resnext_det.machine import processor

GEMM = 2048  # side of the matrices that the ceiling is measured with


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def alternate(
    runs: dict[str, Callable[[], object]],
    repeats: int,
    device: str = "cpu",
    kept: Container[str] = (),
) -> dict[str, dict[str, float]]:
    """Every run once to warm up, then all in turn, ``repeats`` times.

    In turn, so that a machine that slows down slows all of them.

    Args:
        kept: those that run in memory that was kept for them, as this package's tools do on a CPU.

    Returns:
        {name: {"median", "min", "max"}}, seconds.
    """
    measures = {}
    for name, run in runs.items():
        is_kept = device == "cpu" and name in kept
        measures[name] = (
            partial(seconds_in_kept_memory, run) if is_kept else partial(seconds_of, run, device)
        )
    return in_turn(measures, repeats)


def seconds_of(run: Callable[[], object], device: str = "cpu") -> float:
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def seconds_in_kept_memory(run: Callable[[], object]) -> float:
    """As `seconds_of` on a CPU, in memory that a run before has freed and that was kept for it.

    Behind it the process gives memory back again, as glibc does by itself; what it holds at that
    moment, a peer that runs next may use.
    """
    keep_freed_memory()
    run()
    taken = seconds_of(run)
    keep_freed_memory(False)
    return taken


def in_turn(measures: dict[str, Callable[[], float]], repeats: int) -> dict[str, dict[str, float]]:
    """As `alternate`, of runs that take their own time and return it (seconds)."""
    times: dict[str, list[float]] = {name: [] for name in measures}
    for number in range(repeats + 1):
        for name, measure in measures.items():
            taken = measure()
            if number:
                times[name].append(taken)
    return {name: spread(values) for name, values in times.items()}


def spread(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 6),
        "min": round(min(values), 6),
        "max": round(max(values), 6),
    }


def milliseconds(times: dict[str, dict[str, float]], items: int) -> dict[str, dict[str, float]]:
    """Seconds of a run over so many items as milliseconds an item."""
    return {
        name: {key: round(1e3 * value / items, 5) for key, value in found.items()}
        for name, found in times.items()
    }


def ratio(times: dict[str, dict[str, float]], slow: str, fast: str) -> float:
    """How many times as long ``slow`` takes, by medians."""
    return round(times[slow]["median"] / times[fast]["median"], 3)


def ceilings(device: str = "cpu") -> dict[str, float]:
    """TFLOP/s of a product of large matrices, which no convolution exceeds, by type."""
    found = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a = torch.randn(GEMM, GEMM, device=device).to(dtype)
        with torch.no_grad():
            times = alternate({name: lambda a=a: a @ a}, 9, device)
        found[name] = round(2 * GEMM**3 / times[name]["median"] / 1e12, 3)
    return found


def report(name: str, *, output: str | None = None, **values: object) -> None:
    """Print one JSON object with machine and versions; ``output`` names a file for it as well."""
    found = {
        "benchmark": name,
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "versions": describe_environment(),
        **values,
    }
    print(json.dumps(found, indent=1))
    if output:
        write_json(output, found)


def machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{processor()}, {os.cpu_count()} cores"
