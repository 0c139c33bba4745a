"""The two commands that are killed, and when: kills planned by name or drawn by a generator."""

import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from kill_runs import ROOT, Event, Kill, Moment, Pipeline
from tiny_classifier import TINY_CLASSIFIER

sys.path.insert(0, str(Path(__file__).parents[1] / "field"))
from tiny_sets import TINY, plain_set  # noqa: E402

DETECTION = {
    **TINY,
    "DATALOADER.NUM_WORKERS": 1,
    "SOLVER.CHECKPOINT_PERIOD": 2,
    "SOLVER.RPN.MAX_ITER": 30,
    "SOLVER.FAST_RCNN.MAX_ITER": 26,
    "TEST.EVAL_PERIOD": 10,
}
CLASSIFICATION = {
    "MODEL.DEVICE": "cpu",
    **TINY_CLASSIFIER,
    "DATA.TEST_BATCH_SIZE": 4,
    "DATALOADER.NUM_WORKERS": 1,
    "SOLVER.IMS_PER_BATCH": 4,
    "SOLVER.MAX_EPOCHS": 0.0,
    "SOLVER.MAX_ITER": 60,
    "SOLVER.WARMUP_ITERS": 5,
    "SOLVER.CHECKPOINT_PERIOD": 2,
    "TEST.EVAL_PERIOD": 15,
}
DETECTION_EVENTS = (
    Event("rpn begins", line="Starting training from iteration"),
    Event("rpn checkpoint", files="rpn/*model_0*.pth*"),
    Event("rpn best weights", files="rpn/*model_best.pth*"),
    Event("rpn final weights", files="rpn/*model_final.safetensors*"),
    Event("proposals begin", files="proposals/*.parts/*"),
    Event("proposals written", files="proposals/*train.safetensors*"),
    Event("fast_rcnn begins", line="stage fast_rcnn:"),
    Event("fast_rcnn checkpoint", files="fast_rcnn/*model_0*.pth*"),
    Event("fast_rcnn final weights", files="fast_rcnn/*model_final.safetensors*"),
    Event("join", files="*model_*.safetensors*"),
    Event("evaluation", line="joined detector: "),
    Event("results", files="*results.json*"),
    Event("pictures", files="pictures/*"),
)
CLASSIFICATION_EVENTS = (
    Event("training begins", line="Starting training from iteration"),
    Event("checkpoint", files="*model_0*.pth*"),
    Event("evaluation", line="Start inference on"),
    Event("best weights", files="*model_best.pth*"),
    Event("last checkpoint", files="*model_final.pth*"),
    Event("final weights", files="*model_final.safetensors*"),
    Event("results", files="*results.json*"),
)


def _words(values: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(word) for pair in values.items() for word in pair)


def detection(folder: Path, **others: Any) -> Pipeline:
    """RPN, proposals, Fast R-CNN, joining, evaluation; writes its data set to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    file = plain_set(folder)
    config = str(ROOT / "configs" / "custom" / "small.yaml")
    flags = []
    for split in ("train", "val"):
        flags += [f"--{split}-json", str(file), f"--{split}-images", str(folder)]
    words = ("train_net.py", "--config-file", config, *flags, *_words({**DETECTION, **others}))
    return Pipeline("detection", words, DETECTION_EVENTS, ("rpn", "fast_rcnn"))


def classification(folder: Path, **others: Any) -> Pipeline:
    """Training and scoring on a .npz of 24 and 12 noise pictures of three classes."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, content = np.random.default_rng(0), {"class_names": np.array(["a", "b", "c"])}
    for split, number in (("train", 24), ("test", 12)):
        content[f"{split}_images"] = rng.integers(0, 256, (number, 32, 32, 3), dtype=np.uint8)
        content[f"{split}_labels"] = np.arange(number) % 3
    np.savez(folder / "set.npz", **content)
    config = str(ROOT / "configs" / "demo" / "classification.yaml")
    values = {"DATA.ROOT": folder / "set.npz", **CLASSIFICATION, **others}
    words = ("pretrain_imagenet.py", "--config-file", config, *_words(values))
    return Pipeline("classification", words, CLASSIFICATION_EVENTS, (".",))


# ---- when ----

NUMBERS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
TO_GROUP = (signal.SIGKILL, signal.SIGINT)  # SIGTERM would end the data workers
LATEST = 0.03  # seconds behind an event


def planned_kills(
    pipeline: Pipeline,
    plan: tuple[tuple[str, signal.Signals, bool], ...],
    rng: np.random.Generator,
    seconds: float,
) -> Iterator[Kill]:
    """Kills at events given by their names, each a drawn time behind its event; or at a "time".

    Args:
        seconds: an undisturbed run's, from its first line on; a time is drawn of its first third.
    """
    for name, number, to_group in plan:
        moment = Moment(None, delay=rng.uniform(0, seconds / 3))
        if name != "time":
            moment = Moment(pipeline.event(name), delay=rng.uniform(0, LATEST))
        yield moment, number, to_group


def drawn_kills(
    pipeline: Pipeline, rng: np.random.Generator, seconds: float, most: int
) -> Iterator[Kill]:
    """Kills at drawn events, in their order, and between them at drawn times.

    Args:
        seconds: an undisturbed run's, from its first line on.
        most: kills.
    """
    number_of_events = len(pipeline.events)
    chosen = sorted(rng.choice(number_of_events, min(most, number_of_events), replace=False))
    first = rng.integers(len(NUMBERS))
    for k, event in enumerate(pipeline.events[i] for i in chosen):
        moment = Moment(event, delay=rng.uniform(0, LATEST))
        if "checkpoint" in event.name:
            moment = Moment(event, int(rng.integers(1, 9)), moment.delay)
        if rng.random() < 0.3:
            moment = Moment(None, delay=rng.uniform(0, seconds / 2))
        number = NUMBERS[(first + k) % len(NUMBERS)]
        yield moment, number, bool(number in TO_GROUP and rng.random() < 0.4)
