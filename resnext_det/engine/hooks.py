"""What both trainers need at each step and Detectron2's hooks lack."""

import signal
from types import FrameType

from detectron2.engine import HookBase
from detectron2.utils import comm

from ..errors import Interrupted
from .seeding import seed_all


class SeedEachStep(HookBase):
    """Random choices of a step (sampled anchors, RoIs) depend on seed, rank and iteration only."""

    def __init__(self, seed: int):
        self.seed = seed

    def before_step(self) -> None:
        # 1 keeps this stream apart from the samples' streams, which are (seed, position).
        seed_all(self.seed, 1, comm.get_rank(), self.trainer.iter)


class StopOnSignal(HookBase):
    """SIGINT and SIGTERM end the run after the step at hand, with a checkpoint; twice ends now."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)
    # Several processes must agree to stop; asking each other at every step would cost time.
    AGREE_EVERY = 10

    def __init__(self, checkpointer):
        self.checkpointer = checkpointer
        self.received: int | None = None
        self.previous: dict[int, object] = {}

    def before_train(self) -> None:
        for number in self.SIGNALS:
            self.previous[number] = signal.signal(number, self._receive)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number

    def after_step(self) -> None:
        if comm.get_world_size() > 1 and (self.trainer.iter + 1) % self.AGREE_EVERY:
            return
        if not any(comm.all_gather(self.received is not None)):
            return
        iteration = self.trainer.iter
        self.checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
        raise Interrupted(
            f"saved iteration {iteration}; the same command with --resume goes on (`make demo` "
            "goes on by itself)"
        )

    def after_train(self) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
