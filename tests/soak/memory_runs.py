"""How memory goes in a long training: resident size every so many iterations, and its slope.

python tests/soak/memory_runs.py [--iterations 5000] [--evaluations 0] [--json]
Each network is trained in a process of its own by the tool that trains it, on a few noise pictures,
with a data worker, checkpoints and, if asked for, evaluations; the slope is that of a least-squares
line. Evaluations leave the heap of the process some larger, less and less the more there were.
"""

import argparse
import json
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
for folder in (ROOT, ROOT / "tests", ROOT / "tests" / "soak"):
    sys.path.insert(0, str(folder))

from killed_sets import classification, detection  # noqa: E402

NETWORKS = ("classification", "detection")


def pipeline_of(name: str, folder: Path, iterations: int, evaluations: int):
    """The tool and its arguments; the detector shares its features, so that all heads train."""
    common = {"SOLVER.CHECKPOINT_PERIOD": 250, "TEST.EVAL_PERIOD": 0}
    if evaluations:
        common["TEST.EVAL_PERIOD"] = iterations // evaluations
    if name == "classification":
        own = {"SOLVER.MAX_ITER": iterations, "SOLVER.BASE_LR": 0.01}
        return classification(folder, **own, **common)
    own = {"MODEL.META_ARCHITECTURE": "SharedRCNN", "SOLVER.JOINT.MAX_ITER": iterations}
    own |= {"SOLVER.JOINT.IMS_PER_BATCH": 2, "SOLVER.JOINT.REFERENCE_BATCH": 0}
    return detection(folder, **own, **common, **{"SOLVER.JOINT.BASE_LR": 0.001})


def resident(pid: int | str) -> int:
    """KiB of a process's resident memory, 0 where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmRSS:")), 0)


def of_children(pid: int) -> int:
    """KiB of the processes that it started; pages that they share count for each."""
    children = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = path.read_text().rsplit(")", 1)[1].split()[1]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(parent) == pid:
            children.append(path.parent.name)
    return sum(map(resident, children))


def slope(samples: list[tuple[int, int]], warm_up: int) -> float:
    """KiB for 1,000 iterations, by least squares over the samples (iteration, KiB) behind it."""
    iterations, sizes = np.array([s for s in samples if s[0] > warm_up], dtype=float).T
    return float(1000 * np.polyfit(iterations, sizes, 1)[0])


def train_here(args: argparse.Namespace) -> dict[str, list]:
    """Train in this process; {"process", "workers"}: samples of (iteration, KiB)."""
    from resnext_det.classification import trainer as of_classification
    from resnext_det.detection import stages as of_detection
    from resnext_det.engine.trainer import Trainer

    samples: dict[str, list] = {"process": [], "workers": []}

    class Sampled(Trainer):
        def after_step(self) -> None:
            super().after_step()
            if (done := self.iter + 1) % args.every == 0:
                samples["process"].append((done, resident("self")))
                samples["workers"].append((done, of_children(os.getpid())))

    of_classification.Trainer = of_detection.Trainer = Sampled
    folder = args.folder
    made = pipeline_of(args.network, folder / "data", args.iterations, args.evaluations)
    tool, *words = made.words
    sys.argv = [tool, *words, "OUTPUT_DIR", str(folder / "run")]
    runpy.run_path(str(ROOT / "tools" / tool), run_name="__main__")
    return samples


def measure(
    name: str, iterations: int, every: int = 100, warm_up: int = 1000, evaluations: int = 0
) -> dict:
    """Train in a process of its own; sizes in MiB and slopes in KiB for 1,000 iterations."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["--network", name, "--iterations", iterations, "--every", every]
        words += ["--evaluations", evaluations, "--folder", folder]
        done = subprocess.run(
            [sys.executable, "-W", "ignore", __file__, *map(str, words)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"{name}: exit {done.returncode}: {done.stderr[-2000:]}")
        samples = json.loads(Path(folder, "samples.json").read_text())
    process = dict(samples["process"])
    return {
        "network": name,
        "iterations": iterations,
        "evaluations": evaluations,
        "samples": len(process),
        "first_mib": round(process[min(i for i in process if i >= warm_up)] / 1024, 1),
        "last_mib": round(process[max(process)] / 1024, 1),
        "slope_kib": round(slope(samples["process"], warm_up), 1),
        "slope_of_workers_kib": round(slope(samples["workers"], warm_up), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=5000)
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--warm-up", type=int, default=1000)
    parser.add_argument("--evaluations", type=int, default=0, help="during training")
    parser.add_argument("--network", choices=NETWORKS, help="one alone")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--folder", type=Path, help="train here, and leave samples.json there")
    args = parser.parse_args()
    if args.folder:
        samples = train_here(args)
        (args.folder / "samples.json").write_text(json.dumps(samples))
        return
    for name in (args.network,) if args.network else NETWORKS:
        found = measure(name, args.iterations, args.every, args.warm_up, args.evaluations)
        if args.json:
            print(json.dumps(found), flush=True)
            continue
        print(
            "{network}: {iterations} iterations, {evaluations} evaluations; {first_mib} MiB behind "
            "the warm-up, {last_mib} at the end; slope {slope_kib} KiB for 1,000 iterations, of "
            "the data workers {slope_of_workers_kib}".format(**found),
            flush=True,
        )


if __name__ == "__main__":
    main()
