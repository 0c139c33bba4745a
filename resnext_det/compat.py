"""The one file that asks which Detectron2 and torch are there. Loaded before any other of ours.

Works with the build that `make setup` installs (upstream main of April 2024) and with newest
upstream main, with or without its compiled `_C`. `detectron2.model_zoo` is never imported: it needs
`pkg_resources`, which setuptools 81 dropped.
"""

import importlib
import logging
import os
import platform
import warnings
from importlib import metadata
from pathlib import Path

UPSTREAM = (
    "pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git'"
)


def _import_detectron2() -> None:
    """Import Detectron2's layers and heads once, or say in one line how to get them."""
    try:
        importlib.import_module("detectron2")
        with warnings.catch_warnings():
            # torch 2.14 calls torch.jit.script deprecated; Detectron2 and fvcore call it on import.
            warnings.filterwarnings("ignore", "`torch.jit.script", FutureWarning)
            warnings.filterwarnings("ignore", "`torch.jit.script", DeprecationWarning)
            importlib.import_module("detectron2.modeling")
    except ModuleNotFoundError as error:
        if error.name == "detectron2":
            raise ImportError(
                f"Detectron2 is not installed: run `make setup`, or {UPSTREAM} (after torch)"
            ) from None
        raise ImportError(
            f"Detectron2 does not load, for want of {error.name}: run `make setup`"
        ) from error
    except (ImportError, AttributeError) as error:  # an old release beside new NumPy or Pillow
        raise ImportError(
            f"this Detectron2 does not load here ({error}): take a newer one, {UPSTREAM}"
        ) from error


_import_detectron2()
# Detectron2's anchor generator calls meshgrid without `indexing`: a warning in every run, about a
# call that no user of ours can change.
warnings.filterwarnings("ignore", "torch.meshgrid: in an upcoming release", UserWarning)
# Likewise its poolers ask torch whether they are traced, about which torch 2.14 logs a line.
logging.getLogger("torch.fx._symbolic_trace").addFilter(
    lambda record: "is_fx_tracing will return true" not in record.getMessage()
)


def has_compiled_ops() -> bool:
    """Whether Detectron2's C++ extension is there (fast COCO scorer, deformable, rotated ops)."""
    try:
        importlib.import_module("detectron2._C")
    except ImportError:
        return False
    return True


def describe_environment() -> dict[str, str]:
    """Versions and machine, for the record of a run. Values are short lines of text."""
    import torch

    from .machine import processor  # here, so that this file loads alone (tests/test_setup.py)

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": _version("torchvision"),
        "detectron2": _detectron2_version(),
        "resnext_det": _version("resnext_det"),
        "numpy": _version("numpy"),
        "opencv": _version("cv2"),
        "pycocotools": _version("pycocotools"),
        "fvcore": _version("fvcore"),
        "platform": f"{platform.system()} {platform.machine()}, {' '.join(platform.libc_ver())}",
        "cpu": f"{_cpu_count()} x {processor()}",
        "cuda": torch.version.cuda or "none",
        "gpu": _gpu_names(),
    }


def _version(module: str) -> str:
    try:  # pycocotools has no __version__
        found = importlib.import_module(module)
        return str(getattr(found, "__version__", None) or metadata.version(module))
    except (ImportError, metadata.PackageNotFoundError):
        return "unknown"


def _detectron2_version() -> str:
    """Version and source; upstream has called every state since 2021 "0.6"."""
    ops = "with" if has_compiled_ops() else "without"
    return f"{_version('detectron2')} ({_detectron2_source()}, {ops} compiled ops)"


def _detectron2_source() -> str:
    for name in ("sal-detectron2", "detectron2"):
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        package = importlib.import_module("detectron2")
        if Path(str(found.locate_file("detectron2"))) == Path(package.__path__[0]):
            return name
    return "source folder"


def _cpu_count() -> int:
    if hasattr(os, "sched_getaffinity"):  # what this process may use, not what the machine has
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gpu_names() -> str:
    import torch

    if not torch.cuda.is_available():
        return "none"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
