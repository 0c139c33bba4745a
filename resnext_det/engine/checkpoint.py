"""Checkpoints of a run: written whole or not at all, read without running code."""

import itertools
import logging
import pickle
import re
import shutil
import struct
import zipfile
import zlib
from pathlib import Path

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm

from ..errors import InputError, one_line
from ..writing import open_for_torch, told_of_writing, write_text

logger = logging.getLogger(__name__)

# What torch's reader raises over the bytes of a file that was cut off or is something else.
UNREADABLE = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError)
UNREADABLE += (LookupError, TypeError, AttributeError, struct.error)
# What a run writes aside (`writing`), with the number of its process; earlier versions left it out.
ASIDE = r"\.(.+\.\d+|(model_.+|results\.json|run\.json|last_checkpoint))\.tmp"
PARTS = "train.safetensors.parts"


def _check_sums(path: str | Path) -> None:
    """Raises InputError where a byte has changed: torch stores sums, and does not compare."""
    if not zipfile.is_zipfile(path):
        return  # nor is it torch's, which says so
    try:
        with zipfile.ZipFile(path) as file:
            changed = file.testzip()
    except (zipfile.BadZipFile, OSError, zlib.error, NotImplementedError, RuntimeError) as error:
        changed = one_line(error)
    if changed:
        raise InputError(
            path,
            f"is not a whole checkpoint ({one_line(changed)} is not what its sum says)",
            "remove it; the run then resumes from the one before",
        )


def remove_leftovers(folder: str | Path) -> None:
    """Remove what a killed process of the run was writing in ``folder``; other files stay.

    Evaluations on the way write below it, in inference/<data set>/.

    A line of metrics.json that a full disk has cut off goes as well. Called by all processes before
    any of them writes there.
    """
    if comm.is_main_process():
        _end_last_line(Path(folder, "metrics.json"))
        inside = (Path(folder).glob(pattern) for pattern in ("*", "inference/*/*"))
        for path in sorted(itertools.chain(*inside)):
            if path.name == PARTS and path.is_dir():
                shutil.rmtree(path)
            elif re.fullmatch(ASIDE, path.name):
                path.unlink()
            else:
                continue
            logger.info("%s: left half-written by a process that was killed, removed", path)
    comm.synchronize()


def _end_last_line(path: Path) -> None:
    """Cut off what stands behind the last line end, or the next line would be joined to it."""
    if not path.is_file():
        return
    with told_of_writing(path), open(path, "r+b") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)
            logger.info("%s: its last line was cut off, removed", path)


class RunCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer with an atomic `save` and a `weights_only` read.

    Holds what a run needs to go on (parameters, optimizer, schedule, iteration); weights
    for others are written by ``weights.save_weights``.
    """

    def save(self, name: str, **kwargs) -> None:
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict(), **kwargs}
        for key, part in self.checkpointables.items():
            data[key] = part.state_dict()
        path = Path(self.save_dir) / f"{name}.pth"
        with open_for_torch(path) as file:
            torch.save(data, file)
        self.logger.info("Saved checkpoint %s", path)
        self.tag_last_checkpoint(path.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        write_text(Path(self.save_dir) / "last_checkpoint", last_filename_basename)

    def _load_file(self, filename: str) -> dict:
        return self.read(filename)

    @staticmethod
    def read(filename: str | Path) -> dict:
        """A checkpoint's content. Raises InputError where it is not whole, or something else."""
        _check_sums(filename)
        try:
            content = torch.load(filename, map_location="cpu", weights_only=True)
        except UNREADABLE as error:
            raise InputError(
                filename,
                f"is not a whole checkpoint ({(str(error) or repr(error)).splitlines()[0]})",
                "remove it; the run then resumes from the one before",
            ) from error
        if not isinstance(content, dict):
            raise InputError(
                filename, f"holds a {type(content).__name__}, no checkpoint", "remove it"
            )
        return content

    def newest(self) -> str | None:
        """The readable checkpoint of the highest iteration; broken ones are named, passed over."""
        found: dict[int, str] = {}
        for path in sorted(Path(self.save_dir).glob("model_*.pth")):
            try:
                iteration = self._load_file(str(path)).get("iteration")
            except InputError as error:
                logger.warning("passed over: %s", error)
                continue
            if isinstance(iteration, int):
                found[iteration] = str(path)
            else:
                logger.warning("passed over: %s: has no iteration to go on from", path)
        return found[max(found)] if found else None

    def periodic(self) -> list[str]:
        """The numbered checkpoints of the folder, oldest first."""
        found = sorted(Path(self.save_dir).glob("model_*.pth"))
        return [str(path) for path in found if re.fullmatch(r"model_\d{7,}", path.stem)]
