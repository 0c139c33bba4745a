"""Predictions of files: what is to be looked at, and what is written of it (docs/prediction.md)."""

import io
import os
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as run_lengths
from tqdm import tqdm

from ..data.coco import size_reader
from ..data.coco_checks import STRICT, check_entries
from ..data.coco_files import parse
from ..data.coco_paths import find_images, leads_out
from ..data.findings import Findings, check_command, raise_first
from ..engine.run import write_json
from ..errors import InputError
from ..writing import told_of_writing
from .drawing import draw_detections
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
    """The images of a COCO file, by its own ids; its annotations are not looked at.

    Raises:
        InputError: no COCO file, an entry of its images or categories at fault, or an image that
            is not there.
    """
    content = {**parse(json_file), "annotations": []}
    faults = check_entries(json_file, content, STRICT, size_reader(image_root))
    findings = Findings(json_file)
    paths = find_images(findings, content["images"], image_root)
    raise_first([*faults, *findings.all], check_command(json_file, image_root))
    images = content["images"]
    return [Entry(image["id"], image["file_name"], Path(paths[image["id"]])) for image in images]


def video_of(inputs: list[str]) -> Path | None:
    """The video, where a single one is given.

    Raises:
        InputError: it is not there.
    """
    if len(inputs) != 1 or Path(inputs[0]).suffix.lower() not in VIDEOS:
        return None
    if not Path(inputs[0]).is_file():
        raise InputError(inputs[0], "is not there", "check the path given to --input")
    return Path(inputs[0])


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


def draw(found: Prediction, least: float) -> np.ndarray:
    """(H, W, 3) uint8 RGB: the image with its detections of ``least`` score or more."""
    shown = found.instances[found.instances.scores >= least]
    return draw_detections(found.image, shown, found.class_names)


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
    names, read = picture_names(entries), deque()

    def images() -> Iterator[np.ndarray]:
        for entry in entries:
            try:
                image = predictor.read(entry.path)
            except InputError:
                if not skip_unreadable:
                    raise
                skipped.append(entry.path)
            else:
                read.append(entry)
                yield image

    for found in tqdm(predictor.stream(images()), total=len(entries), desc="images"):
        entry = read.popleft()  # what is read first comes out first
        results.add(entry.id, entry.name, found)
        if pictures:
            _save(draw(found, least), folder / "pictures" / names[entry.id])
    results.write(folder)
    return results, skipped


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
