"""Predictions of files, and what is written of them (docs/prediction.md)."""

import contextlib
import io
import logging
import os
import shutil
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as run_lengths
from tqdm import tqdm

from ..data.coco_images import set_pixel_limit
from ..data.coco_paths import leads_out
from ..engine.folders import new_folder
from ..engine.run import write_json
from ..errors import InputError
from ..writing import told_of_writing
from .drawing import draw_detections
from .predict import Prediction, Predictor
from .predict_inputs import Entry, readable, wrong_size

logger = logging.getLogger(__name__)


@contextmanager
def output_folder(output: str | Path) -> Iterator[Path]:
    """A new folder to fill, by `new_folder`. Where the block fails, nothing of it is left.

    Raises:
        InputError: it holds something already, or cannot be made.
    """
    given = Path(output)
    made = [path for path in (given, *given.parents) if not path.exists()]
    folder = new_folder(given)  # it is empty
    try:
        yield folder
    except BaseException:  # an interrupt as well
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in made:
            with contextlib.suppress(OSError):  # someone else has put something there
                path.rmdir()
        raise


class Results:
    """Collects predictions in COCO's forms.

    Args:
        class_ids: of the detector's classes, in the order of its outputs; where the weights have
            none, classes count from 1.
    """

    def __init__(self, class_names: tuple[str, ...], class_ids: tuple[int, ...]):
        self.ids = class_ids or tuple(range(1, len(class_names) + 1))
        self.categories = [
            {"id": number, "name": name} for number, name in zip(self.ids, class_names, strict=True)
        ]
        self.images: list[dict[str, Any]] = []
        self.results: list[dict[str, Any]] = []

    def add(self, image_id: int, name: str, found: Prediction) -> None:
        height, width = found.image.shape[:2]
        self.images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        corners = found.boxes.astype(np.float64)
        boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
        for place, (box, number) in enumerate(zip(boxes, found.classes, strict=True)):
            self.results.append(
                {
                    "image_id": image_id,
                    "category_id": self.ids[number],
                    "bbox": box.round(6).tolist(),
                    "score": round(float(found.scores[place]), 6),
                    **_segmentation(found, place),
                }
            )

    def write(self, folder: Path) -> None:
        """predictions.json, which pycocotools' ``loadRes`` reads, and images.json beside it."""
        write_json(folder / "predictions.json", self.results)
        write_json(folder / "images.json", {"images": self.images, "categories": self.categories})


def _segmentation(found: Prediction, place: int) -> dict[str, Any]:
    """COCO's run lengths of a detection's mask; {} of a network without masks."""
    if not found.instances.has("pred_masks"):
        return {}
    mask = found.instances.pred_masks[place].numpy().astype(np.uint8)
    encoded = run_lengths.encode(np.asfortranarray(mask))
    return {"segmentation": {"size": encoded["size"], "counts": encoded["counts"].decode()}}


def draw(found: Prediction, least: float, *, keep_size: bool = False) -> np.ndarray:
    """(H, W, 3) uint8 RGB: the image with its detections of ``least`` score or more.

    Args:
        keep_size: do not enlarge a small image for the names.
    """
    shown = found.instances[found.instances.scores >= least]
    side = max(found.image.shape[:2]) if keep_size else None
    return draw_detections(found.image, shown, found.class_names, side)


def predict_images(
    predictor: Predictor,
    entries: list[Entry],
    folder: Path,
    *,
    least: float,
    pictures: bool = True,
    skip_unreadable: bool = False,
) -> tuple[Results, list[InputError]]:
    """Predictions of all entries, written to ``folder``.

    The headers of all images are looked at before anything is written.

    Args:
        least: score from which detections are drawn; the JSON holds all.
        skip_unreadable: leave out images that cannot be read, or are of another size than their
            entry says, instead of stopping. Each is logged, with the reason.

    Returns:
        The results, and what is the matter with each image that was left out.

    Raises:
        InputError: an image is at fault, or all are.
    """
    set_pixel_limit(predictor.cfg.DATASETS.MAX_IMAGE_PIXELS)
    good, skipped = readable(entries, skip_unreadable=skip_unreadable)
    for error in skipped:
        _log_left_out(error)
    results = Results(predictor.class_names, predictor.class_ids)
    names, read = picture_names(good), deque()
    images = _read(predictor, good, read, skipped if skip_unreadable else None)
    for found in tqdm(predictor.stream(images), total=len(good), desc="images"):
        entry = read.popleft()  # what is read first comes out first
        results.add(entry.id, entry.name, found)
        if pictures:
            _save(draw(found, least), folder / "pictures" / names[entry.id])
    if skipped and not results.images:
        first, number = skipped[0], len(entries)
        raise InputError(
            first.file,
            f"cannot be used, nor any other of the {number} images: {first.found}",
            first.mend,
        )
    results.write(folder)
    return results, skipped


def _read(
    predictor: Predictor,
    entries: list[Entry],
    read: deque[Entry],
    skipped: list[InputError] | None,
) -> Iterator[np.ndarray]:
    """Images, each after its entry is put into ``read``.

    Args:
        skipped: takes what is the matter with images that are left out; None: they stop.
    """
    for entry in entries:
        try:
            image = predictor.read(entry.path)
            # A tag that turns it may stand where its header does not show it.
            if fault := wrong_size(entry, image.shape[1::-1]):
                raise fault
        except InputError as error:
            if skipped is None:
                raise
            _log_left_out(error)
            skipped.append(error)
        else:
            read.append(entry)
            yield image


def _log_left_out(error: InputError) -> None:
    logger.warning("left out: %s: %s", error.file, error.found)


def _save(picture: np.ndarray, path: Path) -> None:
    content = io.BytesIO()  # Pillow does not notice where a disk takes a part of a file only
    Image.fromarray(picture).save(content, "JPEG", quality=92)
    with told_of_writing(path, "remove the folder, or choose another --output"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.getbuffer())


def picture_names(entries: Iterable[Entry]) -> dict[int, Path]:
    """Image id to the picture's name below its folder, no two of them the same (1.png, 1.jpg)."""
    names: dict[int, Path] = {}
    taken: set[str] = set()
    for entry in entries:
        name = _picture_name(entry)
        while str(name).casefold() in taken:  # some file systems know no case
            name = name.with_name(f"{name.stem}_{entry.id}.jpg")
        taken.add(str(name).casefold())
        names[entry.id] = name
    return names


def _picture_name(entry: Entry) -> Path:
    # A name out of a data set may lead anywhere; nothing is written outside of the folder.
    if os.path.isabs(entry.name) or leads_out(entry.name):
        return Path(f"{entry.id}_{Path(entry.name).stem}.jpg")
    return Path(os.path.normpath(entry.name)).with_suffix(".jpg")


def predict_video(
    predictor: Predictor, video: str | Path, folder: Path, *, least: float, pictures: bool = True
) -> Results:
    """Predictions of every frame; image ids are frame numbers from 0.

    Raises:
        InputError: OpenCV cannot open the file, or finds no frame in it.
    """
    results, writer = Results(predictor.class_names, predictor.class_ids), None
    capture = cv2.VideoCapture(str(video))
    try:
        total = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) or None
        rate = capture.get(cv2.CAP_PROP_FPS) or 25.0
        stream = tqdm(predictor.stream(_frames(capture)), total=total, desc="frames")
        for number, found in enumerate(stream):
            results.add(number, f"frame {number}", found)
            if pictures:
                drawn = draw(found, least, keep_size=True)  # boxes of the JSON fit the film
                writer = writer or _writer(folder / f"{Path(video).stem}.mp4", rate, drawn)
                writer.write(cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))
    finally:
        capture.release()
        if writer is not None:
            writer.release()
    if not results.images:
        raise InputError(video, "holds no frame that OpenCV can read", "convert it, to mp4 say")
    results.write(folder)
    return results


def _frames(capture: cv2.VideoCapture) -> Iterator[np.ndarray]:
    while True:
        there, frame = capture.read()
        if not there:
            return
        yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


def _writer(path: Path, rate: float, first: np.ndarray) -> cv2.VideoWriter:
    height, width = first.shape[:2]
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), rate, (width, height))
    if not writer.isOpened():
        raise InputError(path, "OpenCV cannot write this film", "add --json-only")
    return writer
