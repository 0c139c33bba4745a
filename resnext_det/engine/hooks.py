"""What both trainers need at each step and Detectron2's hooks lack."""

import contextlib
import logging
import math
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, JSONWriter

from ..errors import InputError, Interrupted
from ..writing import told_of_writing
from .losses import LossLog
from .seeding import seed_all

logger = logging.getLogger(__name__)

LOWER_IS_BETTER = ("error", "loss")


class StoppedEarly(BaseException):
    """Training ends, as it was asked to, before its last iteration."""


class SeedEachStep(HookBase):
    """Random choices of a step (sampled anchors, RoIs) depend on seed, rank and iteration only."""

    def __init__(self, seed: int):
        self.seed = seed

    def before_step(self) -> None:
        # 1 keeps this stream apart from the samples' streams, which are (seed, position).
        seed_all(self.seed, 1, comm.get_rank(), self.trainer.iter)


class LogLosses(HookBase):
    """Flushes a `LossLog` before anything is written, saved or scored.

    Args:
        periods: iterations; 0 is left out.
    """

    def __init__(self, losses: LossLog, periods: Sequence[int]):
        self.losses, self.periods = losses, [period for period in periods if period > 0]

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter or any(done % period == 0 for period in self.periods):
            self.losses.flush()


class Evaluate(hooks.EvalHook):
    """Detectron2's, but a run that was stopped in its last step is not scored before it ends.

    `Trainer`'s iteration is ``max_iter`` only where training came to its end; Detectron2 also
    takes the one before for it, and would score weights that a loss has spoiled.
    """

    def after_train(self) -> None:
        if self.trainer.iter < self.trainer.max_iter:
            self._eval_after_train = False
        super().after_train()


class WriteMetrics(hooks.PeriodicWriter):
    """Detectron2's, whose estimate of the time left fails where an iteration is written twice.

    That is when a run is stopped behind an iteration that has just been written.

    Args:
        folder: where the writers' files are, for messages.

    Raises:
        InputError: after a step or the training, that the disk is full.
    """

    written: int | None = None

    def __init__(self, writers: list[EventWriter], folder: str | Path, period: int):
        super().__init__(writers, period)
        self.folder = Path(folder)

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self._period == 0 or done == self.trainer.max_iter:
            self._write()
            self.written = self.trainer.iter

    def after_train(self) -> None:
        if self.written != self.trainer.iter:
            self._write()
        for writer in self._writers:
            with told_of_writing(self._file_of(writer)):
                writer.close()

    def _write(self) -> None:
        for writer in list(self._writers):
            try:
                with told_of_writing(self._file_of(writer)):
                    writer.write()
            except InputError:
                self._writers.remove(writer)  # or it would fail again while the run ends
                with contextlib.suppress(OSError):  # of the figures that it still holds
                    writer.close()
                raise

    def _file_of(self, writer: EventWriter) -> Path:
        return self.folder / ("metrics.json" if isinstance(writer, JSONWriter) else "events.out.*")


class KeepBest(HookBase):
    """Saves model_best.pth at each evaluation that is better than all before; may end the run.

    Unlike Detectron2's ``BestCheckpointer`` it goes on with the same best after a resume. Stands
    behind the evaluation hook.

    Args:
        metric: as the evaluation hook stores it, for instance "bbox/AP".
        patience: evaluations in a row without a better figure that end training; 0: never.
    """

    def __init__(self, checkpointer, period: int, metric: str, patience: int = 0):
        self.checkpointer, self.period = checkpointer, period
        self.metric, self.patience = metric, patience
        self.sign = -1 if metric.endswith(LOWER_IS_BETTER) else 1
        self.best: float | None = None
        self.iteration, self.behind = -1, 0

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self.period == 0 and done != self.trainer.max_iter:
            self._look()
            if self.patience and self.behind >= self.patience:
                raise StoppedEarly(
                    f"stopped at iteration {done}: {self.metric} was not better than {self.best:g} "
                    f"(iteration {self.iteration + 1}) in {self.behind} evaluations "
                    "(SOLVER.EARLY_STOP)"
                )

    def after_train(self) -> None:
        if self.trainer.iter >= self.trainer.max_iter:
            self._look()

    def _look(self) -> None:
        """All processes judge the main one's figure, so that they stop together."""
        iteration = min(self.trainer.iter, self.trainer.max_iter - 1)  # the last one done
        value = comm.all_gather(self.trainer.storage.latest().get(self.metric, (math.nan,))[0])[0]
        if not math.isfinite(value):
            logger.warning("%s is no number: no best weights are kept of it", self.metric)
            self.behind += 1
        elif self.best is None or self.sign * value > self.sign * self.best:
            self.best, self.iteration, self.behind = value, iteration, 0
            logger.info("best %s so far: %.2f, kept in model_best.pth", self.metric, value)
            if comm.is_main_process():
                self.checkpointer.save("model_best", iteration=iteration)
        else:
            self.behind += 1

    def state_dict(self) -> dict:
        return {"best": self.best, "iteration": self.iteration, "behind": self.behind}

    def load_state_dict(self, state: dict) -> None:
        self.best, self.iteration = state["best"], state["iteration"]
        self.behind = state["behind"]


def goes_on(iteration: int) -> Interrupted:
    """What a run ends with that was asked to stop, and has saved this iteration."""
    return Interrupted(f"saved iteration {iteration}; the same command with --resume goes on")


class StopOnSignal(HookBase):
    """SIGINT and SIGTERM end the run after the step at hand, with a checkpoint; twice ends now.

    Behind the last step all is saved already: there, as outside of training, they end it at once.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)
    # Several processes must agree to stop; asking each other at every step would cost time.
    AGREE_EVERY = 10

    def __init__(self, checkpointer, losses: LossLog):
        self.checkpointer, self.losses = checkpointer, losses
        self.received: int | None = None
        self.previous: dict[int, object] = {}
        self.process = os.getpid()

    def before_train(self) -> None:
        if self.trainer.start_iter < self.trainer.max_iter:
            for number in self.SIGNALS:
                self.previous[number] = signal.signal(number, self._receive)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number
        if os.getpid() == self.process:  # data workers have inherited this
            logger.warning(
                "%s: the run stops after iteration %d and what is measured behind it, with a "
                "checkpoint; the same again stops it now",
                signal.Signals(number).name,
                self.trainer.iter,
            )

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        is_last = done == self.trainer.max_iter
        if comm.get_world_size() > 1 and done % self.AGREE_EVERY and not is_last:
            return
        if is_last:
            self._restore()
        if not self.is_asked():
            return
        self.losses.flush()  # weights that a loss has spoiled are not saved
        iteration = self.trainer.iter
        self.checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
        raise goes_on(iteration)

    def after_train(self) -> None:
        self._restore()

    def is_asked(self) -> bool:
        """Whether a signal has come, to any process; asked by all of them."""
        return any(comm.all_gather(self.received is not None))

    def _restore(self) -> None:
        while self.previous:
            signal.signal(*self.previous.popitem())
