"""What the benchmarks measure on where no data set is named: all of it drawn from a seed.

Pictures are smooth noise, equally strong in every octave down to two pixels, as photographs are
roughly. As JPEG of quality 92 they take about half a byte a pixel, like COCO's and ImageNet's; a
decoder's time depends on that.
"""

import json
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

CONTRAST = 50  # standard deviation of the values 0..255
FINEST = 2  # pixels between the knots of the finest noise
CATEGORIES = 80


def draw_photo(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """uint8 (H, W, 3), RGB."""
    picture, step = np.zeros((height, width, 3), np.float32), FINEST
    while step < max(height, width):
        knots = rng.normal(size=(height // step + 2, width // step + 2, 3)).astype(np.float32)
        knots = 0.85 * knots[..., :1] + 0.5 * knots  # mostly of one colour, as light is
        picture += cv2.resize(knots, (width, height), interpolation=cv2.INTER_CUBIC)
        step *= 2
    return np.clip(128 + CONTRAST / picture.std() * picture, 0, 255).astype(np.uint8)


def write_photo(path: Path, rng: np.random.Generator, size: tuple[int, int], quality: int) -> None:
    """A JPEG with halved chroma; ``size`` is (height, width)."""
    Image.fromarray(draw_photo(rng, *size)).save(path, "JPEG", quality=quality, subsampling="4:2:0")


def write_class_folders(root: Path, count: int, size: tuple[int, int], quality: int) -> None:
    """train/ and val/ with two classes and ``count`` pictures each."""
    for seed, split in enumerate(("train", "val")):
        rng = np.random.default_rng(seed)
        for number in range(count):
            folder = root / split / f"class{number % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            write_photo(folder / f"{number:05d}.jpg", rng, size, quality)


def coco_content(images: int, annotations: int, size: tuple[int, int]) -> dict:
    """A COCO file's content; boxes lie anywhere, pictures are called <id>.jpg."""
    rng, (height, width) = np.random.default_rng(0), size
    side = np.exp(rng.uniform(np.log(8), np.log(min(size) / 2), (annotations, 2)))
    corner = rng.random((annotations, 2)) * (np.array([width, height]) - side)
    boxes = np.concatenate([corner, side], axis=1).round(2)
    image, class_ = rng.integers(0, images, annotations), rng.integers(0, CATEGORIES, annotations)
    return {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "height": height, "width": width}
            for i in range(1, images + 1)
        ],
        "categories": [{"id": k, "name": f"class {k}"} for k in range(1, CATEGORIES + 1)],
        "annotations": [
            {
                "id": number + 1,
                "image_id": int(image[number]) + 1,
                "category_id": int(class_[number]) + 1,
                "bbox": boxes[number].tolist(),
                "area": float(side[number].prod()),
                "iscrowd": 0,
            }
            for number in range(annotations)
        ],
    }


def write_coco(
    folder: Path, count: int, objects: int, size: tuple[int, int], quality: int
) -> tuple[Path, Path]:
    """Annotation file and image folder, with ``objects`` an image in the mean."""
    images, rng = folder / "images", np.random.default_rng(2)
    images.mkdir(parents=True)
    content = coco_content(count, count * objects, size)
    for image in content["images"]:
        write_photo(images / image["file_name"], rng, size, quality)
    path = folder / "annotations.json"
    path.write_text(json.dumps(content))
    return path, images


def draw_proposals(number: int, boxes: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes float32 (N, 4) XYXY in 640 x 480 pixels and as many different logits, unordered."""
    rng = np.random.default_rng([3, number])
    corners = rng.random((boxes, 4), np.float32) * np.array([320, 240, 320, 240], np.float32)
    corners[:, 2:] += corners[:, :2]
    return corners, rng.permutation(np.linspace(-8, 8, boxes, dtype=np.float32))
