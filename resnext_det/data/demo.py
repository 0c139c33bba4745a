"""Write the embedded demo data set: drawn scenes in COCO's format and class folders of crops.

Nothing is downloaded: every picture is drawn from one seed (demo_scenes.py), so that training,
evaluation and export can be tried, and tested, on any machine.
"""

import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np

from ..errors import InputError
from .demo_scenes import draw_crop, draw_scene

# Ids with gaps, as in COCO: what takes them for contiguous numbers fails on this set, too.
CATEGORIES = (
    {"id": 2, "name": "mug", "supercategory": "household"},
    {"id": 3, "name": "leaf", "supercategory": "nature"},
    {"id": 5, "name": "star", "supercategory": "ornament"},
    {"id": 7, "name": "ring", "supercategory": "ornament"},
    {"id": 11, "name": "cube", "supercategory": "toy"},
    {"id": 13, "name": "cross", "supercategory": "ornament"},
)
SPLITS = ("train", "val")

_CATEGORY_IDS = {c["name"]: c["id"] for c in CATEGORIES}
_VERSION = 1  # raise it when the same spec gives other pictures
_FIRST_ID = {"train": 1, "val": 500_001}  # image ids do not depend on the number of images
_MAX_IMAGES = 499_999
_OWN_FILES = re.compile(
    r"(train|val)/\d{6}\.jpg|annotations/(train|val)\.json|demo\.json\.part"
    r"|classification/(train|val)/[a-z]+/\d{5}\.jpg"
)


@dataclass(frozen=True)
class DemoSpec:
    """What a demo set holds; picture i does not depend on the counts.

    Equal specs give equal bytes as long as OpenCV and NumPy are the same.
    """

    seed: int = 0  # 0 or more
    image_size: tuple[int, int] = (
        192,
        256,
    )  # (height, width) of a scene, pixels, each at least 128
    num_train: int = 900  # scenes, 1..499999
    num_val: int = 120
    crop_size: int = 64  # height and width of a crop, pixels, at least 32
    crops_per_class_train: int = 800  # 1..99999
    crops_per_class_val: int = 60


def write_demo(root: str | Path, spec: DemoSpec = DemoSpec()) -> None:
    """Write the demo set of `spec` into the folder `root`, unless it is there already.

    train/, val/: scenes, JPEG. annotations/{train,val}.json: COCO detection format; boxes are tight
    about the visible pixels, a crowd is an uncompressed run-length mask.
    classification/{train,val}/<class>/: crops. demo.json: the spec; it is written last, so a
    folder that has it is complete, and one that lacks it is drawn anew.
    Raises InputError if `root` holds a set of another spec or files of other origin.
    """
    root = Path(root)
    _check_spec(spec)
    record = {"version": _VERSION, **asdict(spec), "image_size": list(spec.image_size)}
    if _is_complete(root, record):
        return
    _clear_incomplete(root)
    for split, num_images, num_crops in (
        ("train", spec.num_train, spec.crops_per_class_train),
        ("val", spec.num_val, spec.crops_per_class_val),
    ):
        _write_scenes(root, split, num_images, spec)
        _write_crops(root, split, num_crops, spec)
    _write_json(root / "demo.json.part", record)
    os.replace(root / "demo.json.part", root / "demo.json")


def _check_spec(spec):
    bounds = {
        "seed": (0, 2**32 - 1),
        "num_train": (1, _MAX_IMAGES),
        "num_val": (1, _MAX_IMAGES),
        "crop_size": (32, 4096),
        "crops_per_class_train": (1, 99_999),
        "crops_per_class_val": (1, 99_999),
    }
    for field, (low, high) in bounds.items():
        value = getattr(spec, field)
        if not low <= value <= high:
            raise InputError("DemoSpec", f"{field} is {value}", f"set {low} to {high}")
    if len(spec.image_size) != 2 or not 128 <= min(spec.image_size) <= max(spec.image_size) <= 4096:
        found = f"image_size is {spec.image_size}"
        raise InputError("DemoSpec", found, "set (height, width), each from 128 to 4096")


def _is_complete(root, record):
    """Whether `root` holds the set of `record`; a set of another spec is refused."""
    path = root / "demo.json"
    if not path.is_file():
        return False
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise InputError(path, "it is not JSON", "remove the folder or name another") from None
    if found == record:
        return True
    found = found if isinstance(found, dict) else {}
    other = [f"{k} {found.get(k)}, not {v}" for k, v in record.items() if found.get(k) != v]
    raise InputError(
        root,
        f"it holds a demo set of another spec ({'; '.join(other)})",
        "remove the folder or name another",
    )


def _clear_incomplete(root):
    """Remove what an interrupted run left; refuse a folder that holds anything else."""
    if root.exists() and not root.is_dir():
        raise InputError(root, "it is not a folder", "name another")
    found = sorted(root.rglob("*"), reverse=True)  # what a folder holds before the folder
    folders = [p for p in found if p.is_dir() and not p.is_symlink()]
    files = [p for p in found if p.is_symlink() or not p.is_dir()]
    for path in files:
        name = path.relative_to(root).as_posix()
        if not _OWN_FILES.fullmatch(name):
            raise InputError(root, f"{name} is not a file of a demo set", "name an empty folder")
    for path in files:
        path.unlink()
    for path in folders:
        path.rmdir()


def _write_scenes(root, split, count, spec):
    (root / split).mkdir(parents=True, exist_ok=True)
    height, width = spec.image_size
    images, annotations = [], []
    for index in range(count):
        picture, items = draw_scene(spec.image_size, _generator(spec, split, "scene", 0, index))
        image_id = _FIRST_ID[split] + index
        name = f"{image_id:06d}.jpg"
        _write_picture(root / split / name, picture)
        images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        annotations += [_annotation(image_id, n, item) for n, item in enumerate(items)]
    (root / "annotations").mkdir(exist_ok=True)
    _write_json(
        root / "annotations" / f"{split}.json",
        {
            "info": {"description": f"Drawn demo set, seed {spec.seed}", "version": str(_VERSION)},
            "licenses": [],
            "images": images,
            "annotations": annotations,
            "categories": list(CATEGORIES),
        },
    )


def _write_crops(root, split, count, spec):
    for category in CATEGORIES:
        kind = category["name"]
        folder = root / "classification" / split / kind
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(count):
            rng = _generator(spec, split, "crop", category["id"], index)
            _write_picture(folder / f"{index + 1:05d}.jpg", draw_crop(kind, spec.crop_size, rng))


def _generator(spec, split, picture, category_id, index):
    """The generator of one picture; always four numbers, as NumPy pads a shorter key with 0."""
    stream = 2 * ("scene", "crop").index(picture) + SPLITS.index(split)
    return np.random.default_rng([spec.seed, stream, category_id, index])


def _annotation(image_id, number, item):
    """One Item as a COCO annotation; bbox is (x, y, width, height) in pixels."""
    x, y, width, height = cv2.boundingRect(item.mask.astype(np.uint8))
    return {
        "id": image_id * 100 + number,
        "image_id": image_id,
        "category_id": _CATEGORY_IDS[item.kind],
        "bbox": [float(x), float(y), float(width), float(height)],
        "area": int(np.count_nonzero(item.mask)),
        "iscrowd": int(item.is_crowd),
        "segmentation": _run_lengths(item.mask) if item.is_crowd else _polygons(item.mask),
    }


def _run_lengths(mask):
    """COCO's uncompressed mask: lengths of the runs of 0, 1, 0, ... down the columns."""
    flat = np.concatenate([[0], mask.ravel(order="F"), [0]]).astype(np.int8)
    edges = np.flatnonzero(np.diff(flat))
    counts = np.diff(np.concatenate([[0], edges, [mask.size]]))
    if edges.size and edges[-1] == mask.size:
        counts = counts[:-1]  # the mask ends with a run of 1
    return {"size": list(mask.shape), "counts": counts.tolist()}


def _polygons(mask):
    """Outlines [x0, y0, x1, y1, ...] in pixels, one for each visible piece.

    findContours runs through pixel centres; on a mask enlarged four times that costs 1/8 pixel, not
    1/2. COCO polygons know no holes, so a hole is joined to its outline by a cut of no width.
    """
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    fine = mask[y : y + height, x : x + width].astype(np.uint8).repeat(4, 0).repeat(4, 1)
    contours, tree = cv2.findContours(fine, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    rings = [cv2.approxPolyDP(c, 1.5, True)[:, 0] for c in contours]
    polygons = []
    for outer, (_, _, child, parent) in zip(rings, tree[0], strict=True):
        if parent >= 0 or len(outer) < 3:
            continue
        path = [outer]
        while child >= 0:
            hole = rings[child]
            path += [outer[:1], hole, hole[:1]]
            child = tree[0][child][0]
        points = (np.concatenate(path) + 0.5) / 4 + (x, y)
        polygons.append(np.round(points, 2).ravel().tolist())
    return polygons


def _write_picture(path, picture):
    done, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 95])
    if not done:
        raise OSError(f"{path}: OpenCV could not encode the picture")
    path.write_bytes(data.tobytes())


def _write_json(path, content):
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")
