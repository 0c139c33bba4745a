"""What several test files share. Tests of outside data skip, with a reason, where it is absent."""

from pathlib import Path

import pytest
import torch

from resnext_det.data.demo import DemoSpec, write_demo


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """The networks here are too small for more, and test processes run side by side."""
    torch.set_num_threads(1)


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
