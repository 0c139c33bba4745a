"""One process or many: torchrun's environment, ``--num-gpus``, or the CPU alone."""

import argparse
import gc
import logging
import os
import traceback
from collections.abc import Callable

import torch
import torch.distributed as dist
from detectron2.engine import launch as detectron2_launch
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException

from ..errors import InputError
from .ranks import died, naming_lost_ranks, remember_ranks

logger = logging.getLogger(__name__)


def add_launch_arguments(parser: argparse.ArgumentParser) -> None:
    """``--num-gpus``, ``--num-machines``, ``--machine-rank``, ``--dist-url``, as Detectron2's."""
    parser.add_argument(
        "--num-gpus",
        type=int,
        default=None,
        help="GPUs on this machine (default: 1 if there is one, else the CPU)",
    )
    parser.add_argument("--num-machines", type=int, default=1, help="or use torchrun")
    parser.add_argument("--machine-rank", type=int, default=0, help="this machine's number")
    parser.add_argument(
        "--dist-url", default="auto", help="address of machine 0, for instance tcp://host:29500"
    )


def launch(main: Callable, args: argparse.Namespace) -> None:
    """Run ``main(args)`` in every process.

    Under torchrun the environment decides; otherwise ``--num-gpus`` processes are started. Where
    one of several dies, the others end within 40 seconds: those that wait for it name it and end at
    once; whoever started them sends SIGTERM to the others, and SIGKILL 30 seconds later. A machine
    that vanishes is noticed after the time limit of torch.distributed, 30 minutes at most.

    Raises:
        InputError: more GPUs asked for than there are, or a process died; then it is named.
    """
    if "WORLD_SIZE" in os.environ and "RANK" in os.environ:
        _join_torchrun()
        _run_as_one(main, args)
        return
    found = torch.cuda.device_count()
    wanted = min(found, 1) if args.num_gpus is None else args.num_gpus
    if wanted > found:
        raise InputError(
            "--num-gpus",
            f"asks for {wanted}, this machine has {found}",
            "give a smaller number, or none to run on the CPU",
        )
    processes = max(wanted, 1)
    try:
        detectron2_launch(
            _run_as_one,
            processes,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(main, args),
        )
    except ProcessExitedException as error:
        world = processes * args.num_machines
        raise died(error, args.machine_rank * processes, world) from error


def _run_as_one(main: Callable, args: argparse.Namespace) -> None:
    """``main(args)`` in a process that knows the others by name, if there are any."""
    if not dist.is_initialized():
        main(args)
        return
    try:
        remember_ranks()
        with naming_lost_ranks():
            main(args)
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # of the networks, which hold the group too
        raise
    finally:
        _leave()


def _leave() -> None:
    """Take leave of the other processes while the interpreter is whole.

    A group that lives to its end aborts it now and then ("terminate called"), and the status would
    be that of a crash. Detectron2 keeps two of them for ever.
    """
    comm._LOCAL_PROCESS_GROUP = None
    comm._get_global_gloo_group.cache_clear()
    gc.collect()
    dist.destroy_process_group()


def _join_torchrun() -> None:
    local_rank = int(os.environ["LOCAL_RANK"])
    gpus = torch.cuda.device_count()
    if gpus:
        torch.cuda.set_device(local_rank % gpus)
    dist.init_process_group("nccl" if gpus else "gloo")
    comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
