"""The training loop both tasks share: Detectron2's `SimpleTrainer`, hooks, checkpoints, resume."""

import contextlib
import functools
import inspect
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase, SimpleTrainer, hooks
from detectron2.engine.defaults import default_writers
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from fvcore.common.history_buffer import HistoryBuffer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import InputError, Interrupted, disk_error
from ..writing import told_of_writing
from .checkpoint import RunCheckpointer
from .folders import make_folder
from .hooks import (
    Evaluate,
    KeepBest,
    LogLosses,
    SeedEachStep,
    StopOnSignal,
    StoppedEarly,
    WriteMetrics,
    goes_on,
)
from .losses import LossLog, images_of
from .memory import peak_memory
from .ranks import lost_rank

logger = logging.getLogger(__name__)

LOG_PERIOD = 20  # iterations
REMEMBERED = 1000  # values of a figure in memory; what is written looks back 20 iterations


def _is_told_in_one_line(error: BaseException | None) -> bool:
    return isinstance(error, InputError) or disk_error(error) or lost_rank(error)


# Detectron2 logs a traceback of whatever ends the loop; what a user gave is told in one line.
logging.getLogger("detectron2.engine.train_loop").addFilter(
    lambda record: not (record.exc_info and _is_told_in_one_line(record.exc_info[1]))
)


def _writers(folder: str, max_iter: int) -> list[EventWriter]:
    with told_of_writing(Path(folder, "metrics.json")):
        return default_writers(folder, max_iter)


# Buffers are left alone; torch 2.14 has two words for it, and calls the former one deprecated.
_NEW = ("init_sync_buffers", "forward_sync_buffers")
_KNOWN = inspect.signature(DistributedDataParallel).parameters
_NO_BUFFERS = dict.fromkeys(_NEW if _NEW[0] in _KNOWN else ("broadcast_buffers",), False)


def distribute(model: nn.Module) -> nn.Module:
    """Wrap for several processes; Detectron2's own wrapper insists on a GPU."""
    if comm.get_world_size() == 1:
        return model
    device = next(model.parameters()).device
    ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=ids, **_NO_BUFFERS)


def share_statistics(model: nn.Module) -> None:
    """Every process has norm statistics of its own; the main one's are saved, and scored."""
    if comm.get_world_size() > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, 0)


def _is_finite(model: nn.Module) -> bool:
    return all(bool(value.isfinite().all()) for value in model.state_dict().values())


class Trainer(SimpleTrainer):
    """Trains ``model`` by ``cfg.SOLVER`` in ``cfg.OUTPUT_DIR`` and resumes exactly.

    Args:
        cfg: SOLVER, SEED and OUTPUT_DIR are read; SEED must be set (>= 0).
        model: returns a dict of losses in training.
        build_loader: called with the number of batches to skip, gives the batches after them;
            an iteration takes SOLVER.ACCUMULATE batches.
        evaluate: called every ``eval_period`` iterations (0: never) and at the end; returns
            metrics.
        best: the metric by which model_best.pth is kept, as "bbox/AP"; "" keeps none. A name
            that ends in "error" or "loss" is better when lower.
        solver: what messages call the group of the learning rate, where it is not SOLVER.
    """

    def __init__(
        self,
        cfg: CfgNode,
        model: nn.Module,
        build_loader: Callable[[int], Iterable],
        *,
        evaluate: Callable[[], dict] | None = None,
        eval_period: int = 0,
        best: str = "",
        solver: str = "SOLVER",
    ):
        model = distribute(model)
        optimizer = build_optimizer(cfg, model)
        super().__init__(model, None, optimizer)
        self.cfg, self.build_loader, self.solver = cfg, build_loader, solver
        self.scheduler = build_lr_scheduler(cfg, optimizer)
        # fp16's gradients would vanish below 6e-8 unscaled; bf16 has fp32's range.
        device = next(model.parameters()).device.type
        self.scaler = torch.amp.GradScaler(device, enabled=cfg.MODEL.PRECISION == "fp16")
        self.checkpointer = RunCheckpointer(model, cfg.OUTPUT_DIR, trainer=self)
        self.max_iter, self.parts = cfg.SOLVER.MAX_ITER, cfg.SOLVER.ACCUMULATE
        if 0 < cfg.SOLVER.MAX_ITER <= cfg.SOLVER.WARMUP_ITERS:
            logger.warning(
                "SOLVER.WARMUP_ITERS is %d, and the training ends at %d, before its learning rate "
                "is reached: set it lower",
                cfg.SOLVER.WARMUP_ITERS,
                cfg.SOLVER.MAX_ITER,
            )
        self.losses, self.left_out = LossLog(cfg.OUTPUT_DIR, solver), 0
        self.best, self.signals = None, StopOnSignal(self.checkpointer, self.losses)
        if best and eval_period:
            self.best = KeepBest(self.checkpointer, eval_period, best, cfg.SOLVER.EARLY_STOP)
        self.register_hooks(self._hooks_from(cfg, evaluate, eval_period))

    def _hooks_from(self, cfg, evaluate, eval_period) -> list[HookBase | None]:
        main = comm.is_main_process()
        periods = [LOG_PERIOD, cfg.SOLVER.CHECKPOINT_PERIOD, eval_period]
        if cfg.MODEL.DEVICE == "cpu" and comm.get_world_size() == 1:
            periods = [1]  # nothing waits for anything there
        return [
            SeedEachStep(cfg.SEED),
            hooks.IterationTimer(),
            hooks.LRScheduler(optimizer=self.optimizer, scheduler=self.scheduler),
            LogLosses(self.losses, periods),
            Evaluate(eval_period, evaluate) if evaluate else None,
            self.best,
            hooks.PeriodicCheckpointer(
                self.checkpointer,
                cfg.SOLVER.CHECKPOINT_PERIOD,
                max_to_keep=cfg.SOLVER.CHECKPOINTS_TO_KEEP,
            )
            if main
            else None,
            # Of several evaluations between two lines of metrics.json only the last would be kept.
            WriteMetrics(
                _writers(cfg.OUTPUT_DIR, self.max_iter),
                cfg.OUTPUT_DIR,
                period=min(LOG_PERIOD, eval_period or LOG_PERIOD),
            )
            if main
            else None,
            self.signals,
        ]

    def resume(self) -> int:
        """Load the newest readable checkpoint of the folder; the iteration to go on with, or 0."""
        path = self.checkpointer.newest()
        if path is None:
            logger.info("%s: no checkpoint to go on with, beginning", self.cfg.OUTPUT_DIR)
            return 0
        start = self.checkpointer.load(path)["iteration"] + 1
        logger.info("resumed from %s: going on at iteration %d of %d", path, start, self.max_iter)
        comm.synchronize()  # no process is reading them any more
        for hook in self._hooks:  # or those of before the interruption would stay for ever
            if isinstance(hook, hooks.PeriodicCheckpointer):
                hook.recent_checkpoints = self._last_checkpoints(start - 1)
        return start

    def _last_checkpoints(self, iteration: int) -> list[str]:
        """The numbered checkpoints, once no more are left than are kept.

        Each interruption saves one that is out of turn. Those behind ``iteration`` cannot be read,
        and do not count.
        """
        names = self.checkpointer.periodic()
        good = [name for name in names if int(Path(name).stem.split("_")[1]) <= iteration]
        for name in good[: -self.cfg.SOLVER.CHECKPOINTS_TO_KEEP]:
            Path(name).unlink()
            names.remove(name)
        return names

    def before_train(self) -> None:
        super().before_train()  # the signal handlers first, which the data workers inherit
        # Making the iterator draws a random number: before the first step is seeded, or a resumed
        # run would go on with others than the undisturbed one.
        self._data_loader_iter_obj = iter(self.data_loader)
        # A million values of each figure by default: at 90,000 iterations some 100 MB.
        histories = self.storage.histories()
        histories.default_factory = functools.partial(HistoryBuffer, max_length=REMEMBERED)

    def run_step(self) -> None:
        """One update; with SOLVER.ACCUMULATE > 1 from the mean gradient of several batches."""
        self.optimizer.zero_grad()
        waited, sums, images = 0.0, {}, []
        for part in range(self.parts):
            start = time.perf_counter()
            batch = self._next_batch(part)
            waited += time.perf_counter() - start
            images += images_of(batch)
            with self._sync_only(part == self.parts - 1):
                losses = {k: v / self.parts for k, v in self.model(batch).items()}
                self.scaler.scale(sum(losses.values())).backward()
            for name, loss in losses.items():
                sums[name] = sums.get(name, 0) + loss.detach()
        self.losses.add(self.iter, sums, waited, images)
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.is_enabled() and self.scaler.get_scale() < scale:
            self.left_out += 1
            logger.warning(
                "fp16: a gradient overflowed and its step was left out (%d so far); the loss is "
                "now scaled by %g",
                self.left_out,
                self.scaler.get_scale(),
            )

    def _next_batch(self, part: int) -> Any:
        try:
            return next(self._data_loader_iter)
        except Exception as error:
            if part == 0 and self.iter > self.start_iter:  # else norm statistics have moved on
                self._save_before(error)
            raise

    def _save_before(self, error: Exception) -> None:
        """Save the state behind the last whole iteration; the one at hand has no batch.

        Other processes are not asked: they may be in the step already, and wait for this one.
        """
        alone = comm.get_world_size() == 1
        if alone:
            self.losses.flush()  # weights that a loss has spoiled are not saved
        elif not comm.is_main_process() or not _is_finite(self.model):
            return
        self.iter -= 1
        self.checkpointer.save(f"model_{self.iter:07d}", iteration=self.iter)
        if alone and self.signals.received is not None:  # it was sent to the workers as well
            raise goes_on(self.iter) from error
        logger.warning("no batch for the next iteration: --resume goes on behind %d", self.iter)

    def state_dict(self) -> dict:
        own = {"scaler": self.scaler.state_dict(), "base_lr": self.cfg.SOLVER.BASE_LR}
        own["iteration"] = min(self.iter, self.max_iter - 1)  # behind the last one it goes on
        return {**super().state_dict(), **own}

    def load_state_dict(self, state_dict: dict) -> None:
        then, now = state_dict.get("base_lr"), self.cfg.SOLVER.BASE_LR
        if then is not None and then != now:
            raise InputError(
                self.cfg.OUTPUT_DIR,
                f"was begun with {self.solver}.BASE_LR {then:g}, the config now says {now:g}",
                f"set it to {then:g} to go on, or choose another OUTPUT_DIR",
            )
        super().load_state_dict(state_dict)
        if scale := state_dict.get("scaler"):  # empty unless the run was in fp16
            self.scaler.load_state_dict(scale)

    def _sync_only(self, last: bool) -> contextlib.AbstractContextManager:
        """Processes exchange gradients once an update, after the last batch."""
        several = isinstance(self.model, DistributedDataParallel)
        return self.model.no_sync() if several and not last else contextlib.nullcontext()

    def load_best(self) -> None:
        """The weights of model_best.pth; those at hand stay where no evaluation gave a figure."""
        path = Path(self.cfg.OUTPUT_DIR, "model_best.pth")
        if path.exists():
            self.checkpointer.model.load_state_dict(self.checkpointer.read(path)["model"])
            logger.info("weights taken from %s", path)

    def fit(self, resume: bool) -> None:
        """Train to ``SOLVER.MAX_ITER``, from the newest checkpoint if ``resume``.

        Raises:
            InputError: the disk is full; the checkpoints of before are whole.
        """
        make_folder(self.cfg.OUTPUT_DIR)
        start = self.resume() if resume else 0
        self.data_loader = self.build_loader(start * self.parts)
        try:
            with peak_memory("training"):
                self.train(start, self.max_iter)
        except StoppedEarly as stop:
            logger.info("%s", stop)
            if self.signals.is_asked():
                raise Interrupted("the same command with --resume goes on") from stop
        finally:
            self.signals.after_train()  # where a hook before it has failed
            # Ends the data workers; left to the garbage collector, each one takes five seconds.
            self.data_loader = self._data_loader_iter_obj = None
