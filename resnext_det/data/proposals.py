"""Proposals on disk: one safetensors file, read through a memory map, matched by image id.

Fields (see docs/proposals.md):
    image_ids         int64   (I,)    the data set's image ids, ascending
    offsets           int64   (I+1,)  image i owns rows offsets[i] .. offsets[i+1]-1
    boxes             float32 (P, 4)  XYXY, pixels of the original image
    objectness_logits float32 (P,)    descending within an image

The rows are written as they are made and the file is put together at the end, so neither
writing nor reading holds more than one image's proposals in memory.
"""

import contextlib
import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from ..errors import InputError, shown
from ..writing import open_whole, told_of_writing, write_array

FORMAT = "resnext_det proposals 1"
BOX_MODE = "XYXY_ABS"
ROW_BYTES = {"boxes": 16, "objectness_logits": 4}
MAKE = "make it with train_net.py --stage proposals or tools/dump_proposals.py"


def by_score(boxes: np.ndarray, objectness_logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (N, 4) and logits (N,) in the order in which they are stored, equals as they came."""
    order = np.argsort(-objectness_logits, kind="stable")
    return boxes[order], objectness_logits[order]


def parts_of(path: str | Path) -> Path:
    """The folder in which processes collect what `join_parts` puts into the file ``path``."""
    return Path(f"{path}.parts")


class ProposalWriter:
    """Collects one process's proposals in ``<path>.parts/``; see `join_parts`.

    Args:
        path: where the joined file will stand.
        part: this process's number.

    Raises:
        InputError: the disk is full or the folder cannot be written; as `add` and `close`.
    """

    def __init__(self, path: str | Path, part: int = 0):
        self.path, self.folder, self.part = path, parts_of(path), part
        with told_of_writing(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            self.files = {name: open(self._file(name), "wb") for name in ROW_BYTES}
        self.ids: list[int] = []
        self.counts: list[int] = []

    def _file(self, name: str) -> Path:
        return self.folder / f"{self.part}.{name}"

    def add(self, image_id: int, boxes: np.ndarray, objectness_logits: np.ndarray) -> None:
        """``boxes`` (N, 4) XYXY in original pixels, ``objectness_logits`` (N,); any order."""
        boxes, logits = by_score(boxes, objectness_logits)
        with told_of_writing(self.path):
            self.files["boxes"].write(np.ascontiguousarray(boxes, "<f4").tobytes())
            self.files["objectness_logits"].write(np.ascontiguousarray(logits, "<f4").tobytes())
        self.ids.append(int(image_id))
        self.counts.append(len(logits))

    def close(self) -> None:
        index = np.array([self.ids, self.counts], np.int64)
        with told_of_writing(self.path):
            for file in self.files.values():
                file.close()
        write_array(self.folder / f"{self.part}.index.npy", index)

    def discard(self) -> None:
        """Close the files of a part that is not used."""
        for file in self.files.values():
            with contextlib.suppress(OSError):  # of what a full disk has not taken
                file.close()


def join_parts(
    path: str | Path, parts: int, source: str, made_with: dict[str, str] | None = None
) -> None:
    """Put all processes' parts into one file at ``path``; there whole, or not at all.

    Args:
        source: the data sets the boxes were made for.
        made_with: what the boxes depend on, to notice later that it has changed.

    Raises:
        InputError: an image id appears twice, or the disk is full.
    """
    path, folder = Path(path), parts_of(path)
    index = [np.load(folder / f"{part}.index.npy", allow_pickle=False) for part in range(parts)]
    ids = np.concatenate([i[0] for i in index])
    counts = np.concatenate([i[1] for i in index])
    part_of = np.repeat(np.arange(parts), [i.shape[1] for i in index])
    starts = np.concatenate([np.cumsum(i[1]) - i[1] for i in index])
    order = np.argsort(ids, kind="stable")
    if len(np.unique(ids)) != len(ids):
        raise InputError(
            path,
            "an image id appears twice among its images",
            "give every image of the data set an id of its own",
        )
    offsets = np.concatenate([[0], np.cumsum(counts[order])]).astype("<i8")
    with open_whole(path) as out:
        _write_header(out, ids, offsets, {"source": source, **(made_with or {})})
        out.write(ids[order].astype("<i8").tobytes())
        out.write(offsets.tobytes())
        for name, size in ROW_BYTES.items():
            _copy_rows(out, folder, name, size, order, part_of, starts, counts)
    shutil.rmtree(folder)


def write_proposals(
    path: str | Path, proposals: Iterable[tuple[int, np.ndarray, np.ndarray]], source: str
) -> None:
    """One process's proposals into one file: (image id, boxes, logits) as for `ProposalWriter`.

    Raises:
        InputError: an image id appears twice; then, as with any other error, nothing is left.
    """
    writer = ProposalWriter(path)
    try:
        for image_id, boxes, logits in proposals:
            writer.add(image_id, boxes, logits)
        writer.close()
        join_parts(path, 1, source)
    except BaseException:
        writer.discard()
        shutil.rmtree(writer.folder, ignore_errors=True)
        raise


def _write_header(out, ids: np.ndarray, offsets: np.ndarray, said: dict[str, str]) -> None:
    """The safetensors header: its length (8 bytes, little-endian), then JSON."""
    images, rows = len(ids), int(offsets[-1])
    shapes = {
        "image_ids": ("I64", [images], 8 * images),
        "offsets": ("I64", [images + 1], 8 * (images + 1)),
        "boxes": ("F32", [rows, 4], 16 * rows),
        "objectness_logits": ("F32", [rows], 4 * rows),
    }
    header: dict = {"__metadata__": {**said, "format": FORMAT, "bbox_mode": BOX_MODE}}
    start = 0
    for name, (dtype, shape, size) in shapes.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, start + size]}
        start += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    out.write(len(text).to_bytes(8, "little") + text)


def _copy_rows(out, folder: Path, name: str, size: int, order, part_of, starts, counts) -> None:
    files = {part: open(folder / f"{part}.{name}", "rb") for part in np.unique(part_of)}
    for i in order:
        files[part_of[i]].seek(int(starts[i]) * size)
        out.write(files[part_of[i]].read(int(counts[i]) * size))
    for file in files.values():
        file.close()


class ProposalFile:
    """Reads one image's proposals at a time; opened anew in each process that uses it.

    Raises:
        InputError: the file is missing, damaged, or not a proposal file of this format.
    """

    def __init__(self, path: str | Path):
        self.path = str(path)
        self._open()

    def _open(self) -> None:
        if not Path(self.path).is_file():
            raise InputError(
                self.path,
                "the proposal file does not exist",
                MAKE,
            )
        try:
            self._file = safe_open(self.path, framework="np")
            self.metadata = self._file.metadata() or {}
            ids = self._file.get_tensor("image_ids")
            self._offsets = self._file.get_tensor("offsets")
            self._boxes = self._file.get_slice("boxes")
            self._logits = self._file.get_slice("objectness_logits")
        except (SafetensorError, OSError, ValueError) as error:
            raise InputError(
                self.path,
                f"is not a whole proposal file ({shown(str(error))})",
                f"{MAKE}; a pickle of Detectron's: dump_proposals.py --from",
            ) from error
        self._check(ids)
        self._row = {int(image_id): i for i, image_id in enumerate(ids)}

    def _check(self, ids: np.ndarray) -> None:
        rows = self._boxes.get_shape()
        offsets = self._offsets
        fits = (
            offsets.shape == (len(ids) + 1,)
            and offsets[0] == 0
            and (np.diff(offsets) >= 0).all()
            and rows == [int(offsets[-1]), 4]
            and self._logits.get_shape() == rows[:1]
        )
        said = {"format": FORMAT, "bbox_mode": BOX_MODE, **self.metadata}
        kinds = [str(ids.dtype), str(offsets.dtype), *self._row_types()]
        faults = {
            "its offsets do not fit its boxes": not fits,
            f"its format is {said['format']!r:.60}, not {FORMAT!r}": said["format"] != FORMAT,
            f"its bbox_mode is {said['bbox_mode']!r:.40}": said["bbox_mode"] != BOX_MODE,
            f"its fields are of types {kinds}": kinds != ["int64", "int64", "F32", "F32"],
            "an image id appears twice in it": len(np.unique(ids)) != len(ids),
        }
        for found, is_so in faults.items():
            if is_so:
                raise InputError(self.path, found, f"write it as docs/proposals.md says, or {MAKE}")

    def _row_types(self) -> list[str]:
        return [self._boxes.get_dtype(), self._logits.get_dtype()]

    def __getstate__(self) -> dict:
        return {"path": self.path}

    def __setstate__(self, state: dict) -> None:
        self.path = state["path"]
        self._open()

    def __len__(self) -> int:
        return len(self._row)

    def __getitem__(self, image_id: int) -> tuple[np.ndarray, np.ndarray]:
        """boxes float32 (N, 4) XYXY in original pixels, objectness_logits float32 (N,).

        Raises InputError where one of them is not finite.
        """
        i = self._row[int(image_id)]
        rows = slice(int(self._offsets[i]), int(self._offsets[i + 1]))
        if rows.start == rows.stop:  # safetensors refuses an empty slice at the file's end
            return np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
        boxes, logits = self._boxes[rows], self._logits[rows]
        if not (np.isfinite(boxes).all() and np.isfinite(logits).all()):
            found = f"image {image_id} holds a value that is not finite"
            raise InputError(self.path, found, f"take it out, or {MAKE}")
        return boxes, logits

    @property
    def image_ids(self) -> list[int]:
        """All ids in the file, in its order."""
        return list(self._row)

    def __contains__(self, image_id: int) -> bool:
        return image_id in self._row

    def check_covers(self, image_ids: Sequence[int]) -> None:
        """Raises InputError where an image of the data set has no proposals in the file."""
        check_covers(self, self.path, image_ids)


class ProposalFiles:
    """Several files as one, each for images of its own (for instance one for each data set).

    Raises:
        InputError: as `ProposalFile`; also an image that two of the files hold.
    """

    def __init__(self, paths: Sequence[str | Path]):
        self.files = [ProposalFile(path) for path in paths]
        self.path = ", ".join(file.path for file in self.files)
        self._file: dict[int, int] = {}
        for number, file in enumerate(self.files):
            for image_id in file.image_ids:
                if image_id in self._file:
                    raise InputError(
                        file.path,
                        f"holds image {image_id}, which {self.files[self._file[image_id]].path} "
                        "holds too",
                        "name files for different images",
                    )
                self._file[image_id] = number

    def __len__(self) -> int:
        return len(self._file)

    def __contains__(self, image_id: int) -> bool:
        return image_id in self._file

    def __getitem__(self, image_id: int) -> tuple[np.ndarray, np.ndarray]:
        """As `ProposalFile`."""
        return self.files[self._file[int(image_id)]][image_id]

    def check_covers(self, image_ids: Sequence[int]) -> None:
        """As `ProposalFile`."""
        check_covers(self, self.path, image_ids)


def open_proposals(paths: Sequence[str | Path]) -> ProposalFile | ProposalFiles:
    """One file, or several as one. Raises InputError as they do."""
    return ProposalFile(paths[0]) if len(paths) == 1 else ProposalFiles(paths)


def check_covers(stored: ProposalFile | ProposalFiles, path: str, image_ids: Sequence[int]) -> None:
    """Raises InputError, naming ``path``, where an image has no proposals in ``stored``."""
    missing = [i for i in image_ids if i not in stored]
    if missing:
        raise InputError(
            path,
            f"holds {len(stored)} images, but not {len(missing)} of the "
            f"data set's {len(image_ids)} (for instance image {missing[0]})",
            "make it again for this data set (--stage proposals, or tools/dump_proposals.py)",
        )
