"""Predictions of files: what is to be looked at, and what is written of it (docs/prediction.md)."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.data.catalog import Metadata
from detectron2.utils.visualizer import ColorMode, Visualizer
from PIL import Image
from tqdm import tqdm

from ..data.coco_files import parse
from ..data.coco_paths import leads_out, path_of
from ..data.images import read_array
from ..engine.run import write_json
from ..errors import InputError
from .predict import Prediction, Predictor

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")


@dataclass(frozen=True)
class Entry:
    """One image to look at.

    Args:
        id: of the image in what is written: the data set's own, or 1..N.
        name: relative path, under which its picture is written.
    """

    id: int
    name: str
    path: Path


def entries_of(inputs: Iterable[str | Path]) -> list[Entry]:
    """Files as they are given, folders with all images below them, sorted; numbered from 1.

    Raises:
        InputError: an input is not there or no image by its suffix, a folder has no image, or two
            inputs would write one picture.
    """
    found: dict[str, Path] = {}
    for given in map(Path, inputs):
        for name, path in _files(given):
            if name in found:
                raise InputError(path, f"{found[name]} has the same name", "give them one by one")
            found[name] = path
    return [Entry(number, name, path) for number, (name, path) in enumerate(found.items(), 1)]


def _files(given: Path) -> list[tuple[str, Path]]:
    if given.is_dir():
        files = sorted(p for p in given.rglob("*") if p.suffix.lower() in IMAGES and p.is_file())
        if not files:
            raise InputError(given, "holds no image", f"give a folder with {', '.join(IMAGES)}")
        return [(str(path.relative_to(given)), path) for path in files]
    if not given.is_file():
        raise InputError(given, "is not there", "check the path given to --input")
    if given.suffix.lower() not in IMAGES:
        raise InputError(
            given,
            f"has the suffix {given.suffix or 'none'}",
            f"give images ({', '.join(IMAGES)}), a folder of them, or one video",
        )
    return [(given.name, given)]


def entries_of_coco(json_file: str | Path, image_root: str | Path) -> list[Entry]:
    """The images of a COCO file, by its own ids.

    Raises:
        InputError: no COCO file, or an image that is not there.
    """
    found = []
    for image in parse(json_file)["images"]:
        path = Path(path_of(image_root, image["file_name"]))
        if not path.is_file():
            raise InputError(path, f"is not there (image {image['id']} of {json_file})", "add it")
        found.append(Entry(image["id"], image["file_name"], path))
    return found


def is_video(inputs: list[str]) -> bool:
    return len(inputs) == 1 and Path(inputs[0]).suffix.lower() in VIDEOS


def new_folder(output: str | Path) -> Path:
    """Raises InputError where the folder holds something already, or cannot be made."""
    folder = Path(output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(folder, "is there already", "remove it, or choose another --output")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            folder, f"cannot be made ({error.strerror})", "choose another --output"
        ) from error
    return folder


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
        boxes = np.concatenate([found.boxes[:, :2], found.boxes[:, 2:] - found.boxes[:, :2]], 1)
        for box, score, number in zip(
            boxes.tolist(),
            found.scores.tolist(),
            found.instances.pred_classes.tolist(),
            strict=True,
        ):
            self.results.append(
                {
                    "image_id": image_id,
                    "category_id": self.ids[number],
                    "bbox": [round(value, 4) for value in box],
                    "score": round(score, 6),
                }
            )

    def write(self, folder: Path) -> None:
        """predictions.json, which pycocotools' ``loadRes`` reads, and images.json beside it."""
        write_json(folder / "predictions.json", self.results)
        write_json(folder / "images.json", {"images": self.images, "categories": self.categories})


def draw(found: Prediction, least: float) -> np.ndarray:
    """(H, W, 3) uint8 RGB: the image with its detections of ``least`` score or more."""
    shown = found.instances[found.instances.scores >= least]
    canvas = Visualizer(
        found.image,
        Metadata(name="prediction", thing_classes=list(found.class_names)),
        scale=max(1.0, 480 / found.image.shape[1]),  # or labels would hide what is in small images
        instance_mode=ColorMode.IMAGE,
    )
    return canvas.draw_instance_predictions(shown).get_image()


def predict_images(
    predictor: Predictor,
    entries: list[Entry],
    folder: Path,
    *,
    least: float,
    pictures: bool = True,
    skip_unreadable: bool = False,
) -> tuple[Results, list[Path]]:
    """Predictions of all entries, written to ``folder``.

    Args:
        least: score from which detections are drawn; the JSON holds all.
        skip_unreadable: leave out images that cannot be read instead of stopping.

    Returns:
        The results, and the files that were left out.

    Raises:
        InputError: an image cannot be read.
    """
    results, skipped = Results(predictor.class_names, predictor.class_ids), []
    usable = entries
    if skip_unreadable:
        usable = [entry for entry in entries if _is_readable(entry.path)]
        skipped = [entry.path for entry in entries if entry not in usable]
    stream = predictor.stream(entry.path for entry in usable)
    for entry, found in zip(usable, tqdm(stream, total=len(usable), desc="images"), strict=True):
        results.add(entry.id, entry.name, found)
        if pictures:
            path = folder / "pictures" / _picture_name(entry)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw(found, least)).save(path, quality=92)
    results.write(folder)
    return results, skipped


def _picture_name(entry: Entry) -> Path:
    # A name out of a data set may lead anywhere; nothing is written outside of the folder.
    if os.path.isabs(entry.name) or leads_out(entry.name):
        return Path(f"{entry.id}_{Path(entry.name).stem}.jpg")
    return Path(entry.name).with_suffix(".jpg")


def _is_readable(path: Path) -> bool:
    try:
        read_array(path)
    except InputError:
        return False
    return True


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
                drawn = draw(found, least)
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
