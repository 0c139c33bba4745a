"""What several test files share. Tests of outside data skip, with a reason, where it is absent."""

import logging
import signal
from pathlib import Path

import pytest
import torch
from detectron2.utils.logger import setup_logger

from resnext_det.data.demo import DemoSpec, write_demo
from resnext_det.engine import lock


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """The networks here are too small for more, and test processes run side by side."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_is_heard():
    """A shell's background job ignores SIGINT, and so would every tool that a test starts."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """What is measured here is not left in the user's cache, nor taken from there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESNEXT_DET_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def loggers_as_found():
    """A tool that runs in this process binds handlers to a stream that ends with its test."""
    loggers = [logging.getLogger(name) for name in ("resnext_det", "detectron2", "fvcore")]
    found = [(log, list(log.handlers), log.propagate, log.level) for log in loggers]
    yield
    for log, handlers, log.propagate, level in found:
        log.handlers[:] = handlers
        log.setLevel(level)
    setup_logger.cache_clear()


@pytest.fixture(autouse=True)
def locks_given_back():
    """A process holds the folders of its runs to its end; one that tests would hold hundreds."""
    yield
    for path in list(lock._held):
        lock.unlock_folder(Path(path).parent)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets that may stand beside the checkout."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data sets at {folder}")
    return folder


@pytest.fixture(scope="session")
def demo_set(tmp_path_factory) -> Path:
    """A small demo set: train/, val/, annotations/, classification/."""
    root = tmp_path_factory.mktemp("demo_set")
    spec = DemoSpec(num_train=12, num_val=6, crops_per_class_train=16, crops_per_class_val=6)
    write_demo(root, spec)
    return root
