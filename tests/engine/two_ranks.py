"""A training of several processes that runs until one of them is killed; test_ranks.py starts it.

Each process writes its number to ``rank<r>.pid`` of the folder that is its first argument.
"""

import argparse
import os
import time
from pathlib import Path

import torch
from torch import nn

from resnext_det.config import get_cfg
from resnext_det.engine.launch import add_launch_arguments, launch
from resnext_det.engine.logs import log_to_console
from resnext_det.engine.trainer import Trainer
from resnext_det.errors import exit_cleanly


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1000))

    def forward(self, iteration):
        time.sleep(0.005)
        return {"loss": (self.weight * 1e-3).sum()}


def train(args: argparse.Namespace) -> None:
    log_to_console()
    cfg = get_cfg()
    cfg.OUTPUT_DIR, cfg.SEED, cfg.MODEL.DEVICE = args.folder, 0, "cpu"
    cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD = 0.1, 10**6, 5
    cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.STEPS = 0, ()
    rank = torch.distributed.get_rank()
    Path(args.folder, f"rank{rank}.pid").write_text(str(os.getpid()))
    Trainer(cfg, Network(), lambda start: iter(range(start, 10**9))).fit(resume=False)


@exit_cleanly
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    add_launch_arguments(parser)
    launch(train, parser.parse_args())


if __name__ == "__main__":
    if "RANK" not in os.environ:
        # As many GPUs as are asked for, so that two processes are started; they use the CPU.
        torch.cuda.device_count = lambda: 2
    main()
