"""Guard the launch flags: more GPUs than there are is refused before anything is started."""

import argparse

import pytest
import torch
from torch.multiprocessing import start_processes

from resnext_det.engine import launch as room
from resnext_det.engine.launch import add_launch_arguments, launch
from resnext_det.errors import InputError, exit_cleanly


@pytest.fixture
def parse(monkeypatch):
    """Parse flags in an environment that is not torchrun's."""
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    parser = argparse.ArgumentParser()
    add_launch_arguments(parser)
    return parser.parse_args


@pytest.mark.parametrize("present", [0, 1, 2])
def test_more_gpus_than_present(parse, monkeypatch, present):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: present)
    with pytest.raises(InputError) as caught:
        launch(lambda args: pytest.fail("it ran"), parse(["--num-gpus", str(present + 1)]))
    message = str(caught.value)
    assert message.startswith("--num-gpus: ")
    assert f"asks for {present + 1}" in message and f"has {present}" in message


@pytest.mark.parametrize(
    "flags, present, processes",
    [([], 0, 1), ([], 1, 1), ([], 4, 1), (["--num-gpus", "4"], 4, 4), (["--num-gpus", "0"], 2, 1)],
)
def test_number_of_processes(parse, monkeypatch, flags, present, processes):
    started = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: present)
    monkeypatch.setattr(room, "detectron2_launch", lambda *args, **kwargs: started.append(args))
    launch(print, parse(flags))
    assert started == [(room._run_as_one, processes)]


def test_arguments_reach_the_tool(parse, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    args, received = parse([]), []
    launch(received.append, args)
    assert received == [args]


def refuse_in_the_second(rank):
    if rank == 1:
        raise InputError("train.json", "annotation 3 has a box without area", "remove it")


def test_refusal_in_one_of_several_processes_is_one_line(capsys):
    """``--num-gpus 8`` starts its processes by torch, which hands errors over as text."""

    def tool():
        start_processes(refuse_in_the_second, nprocs=2, start_method="fork")

    with pytest.raises(SystemExit) as caught:
        exit_cleanly(tool)()
    assert caught.value.code == 2
    message = "error: train.json: annotation 3 has a box without area; remove it\n"
    # torch may say before it that it ends the other process; whose turn it is, is chance.
    printed = capsys.readouterr().err
    assert printed.endswith(message) and "Traceback" not in printed


def test_fault_of_ours_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        exit_cleanly(lambda: 1 / 0)()
