"""What the benchmarks share: alternated runs, medians with their spread, the machine."""

import json
import os
import statistics
import time
from collections.abc import Callable

import torch

from resnext_det.compat import describe_environment
from resnext_det.models.measured import processor

GEMM = 2048  # side of the matrices that the ceiling is measured with


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def alternate(
    runs: dict[str, Callable[[], object]], repeats: int, device: str = "cpu"
) -> dict[str, dict[str, float]]:
    """Every run once to warm up, then all in turn, ``repeats`` times.

    In turn, so that a machine that slows down slows all of them.

    Returns:
        {name: {"median", "min", "max"}}, seconds.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(repeats + 1):
        for name, run in runs.items():
            synchronize(device)
            start = time.perf_counter()
            run()
            synchronize(device)
            if number:
                times[name].append(time.perf_counter() - start)
    return {name: spread(values) for name, values in times.items()}


def spread(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 6),
        "min": round(min(values), 6),
        "max": round(max(values), 6),
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


def report(name: str, **values: object) -> None:
    """Print one JSON object with machine and versions."""
    found = {
        "benchmark": name,
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "versions": describe_environment(),
        **values,
    }
    print(json.dumps(found, indent=1))


def machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{processor()}, {os.cpu_count()} cores"
