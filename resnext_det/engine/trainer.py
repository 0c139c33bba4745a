"""The training loop both tasks share: Detectron2's `SimpleTrainer`, hooks, checkpoints, resume."""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.engine import HookBase, SimpleTrainer, hooks
from detectron2.engine.defaults import default_writers
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .checkpoint import RunCheckpointer
from .hooks import SeedEachStep, StopOnSignal

logger = logging.getLogger(__name__)


def distribute(model: nn.Module) -> nn.Module:
    """Wrap for several processes; Detectron2's own wrapper insists on a GPU."""
    if comm.get_world_size() == 1:
        return model
    device = next(model.parameters()).device
    ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False)


class Trainer(SimpleTrainer):
    """Trains ``model`` by ``cfg.SOLVER`` in ``cfg.OUTPUT_DIR`` and resumes exactly.

    Args:
        cfg: SOLVER, SEED and OUTPUT_DIR are read; SEED must be set (>= 0).
        model: returns a dict of losses in training.
        build_loader: called with the first iteration, gives batches from there on.
        evaluate: called every ``eval_period`` iterations (0: never) and at the end; returns
            metrics.
    """

    def __init__(
        self,
        cfg: CfgNode,
        model: nn.Module,
        build_loader: Callable[[int], Iterable],
        *,
        evaluate: Callable[[], dict] | None = None,
        eval_period: int = 0,
    ):
        model = distribute(model)
        optimizer = build_optimizer(cfg, model)
        super().__init__(model, None, optimizer)
        self.cfg, self.build_loader = cfg, build_loader
        self.scheduler = build_lr_scheduler(cfg, optimizer)
        self.checkpointer = RunCheckpointer(model, cfg.OUTPUT_DIR, trainer=self)
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.register_hooks(self._hooks_from(cfg, evaluate, eval_period))

    def _hooks_from(self, cfg, evaluate, eval_period) -> list[HookBase | None]:
        main = comm.is_main_process()
        return [
            SeedEachStep(cfg.SEED),
            hooks.IterationTimer(),
            hooks.LRScheduler(optimizer=self.optimizer, scheduler=self.scheduler),
            hooks.EvalHook(eval_period, evaluate) if evaluate else None,
            hooks.PeriodicCheckpointer(
                self.checkpointer,
                cfg.SOLVER.CHECKPOINT_PERIOD,
                max_to_keep=cfg.SOLVER.CHECKPOINTS_TO_KEEP,
            )
            if main
            else None,
            hooks.PeriodicWriter(default_writers(cfg.OUTPUT_DIR, self.max_iter), period=20)
            if main
            else None,
            StopOnSignal(self.checkpointer),
        ]

    def resume(self) -> int:
        """Load the newest readable checkpoint of the folder; the iteration to go on with, or 0."""
        path = self.checkpointer.newest()
        if path is None:
            return 0
        start = self.checkpointer.load(path)["iteration"] + 1
        logger.info("resumed from %s: going on at iteration %d of %d", path, start, self.max_iter)
        return start

    def before_train(self) -> None:
        super().before_train()  # the signal handlers first, which the data workers inherit
        # Making the iterator draws a random number: before the first step is seeded, or a resumed
        # run would go on with others than the undisturbed one.
        self._data_loader_iter_obj = iter(self.data_loader)

    def fit(self, resume: bool) -> None:
        """Train to ``SOLVER.MAX_ITER``, from the newest checkpoint if ``resume``."""
        Path(self.cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
        start = self.resume() if resume else 0
        self.data_loader = self.build_loader(start)
        try:
            self.train(start, self.max_iter)
        finally:
            # Ends the data workers; left to the garbage collector, each one takes five seconds.
            self.data_loader = self._data_loader_iter_obj = None
