"""Who computes the curves: pycocotools, which defines them, or hotcoco, which is sooner done.

A back end takes packed columns and gives pycocotools' arrays ``precision`` (10 IoUs, 101 recalls,
K classes, 4 areas, 3 caps) and ``recall`` (10, K, 4, 3), -1 where there is no object. Annotations
are numbered from 1: pycocotools takes the id 0 for "not matched".
"""

import contextlib
import functools
import importlib.util
import io
import logging
from collections.abc import Callable
from importlib import metadata

import numpy as np
import pycocotools.mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..errors import InputError
from .scorer_arrays import Detections, Truth

logger = logging.getLogger(__name__)

Curves = tuple[np.ndarray, np.ndarray]
Backend = Callable[[Truth, Detections, tuple[int, int, int], str], Curves]

DEFINITION = "pycocotools"
FAST = "hotcoco"
CHOICES = ("auto", DEFINITION, FAST)
TOLERANCE = 1e-9  # between back ends, of precisions and recalls 0..1


# ---- the definition ----


def by_pycocotools(
    truth: Truth, found: Detections, caps: tuple[int, int, int], iou_type: str
) -> Curves:
    """The arrays of COCOeval.

    Args:
        caps: detections of an image and class that count, ascending.
        iou_type: "bbox" or "segm".
    """
    with contextlib.redirect_stdout(io.StringIO()):
        run = COCOeval(
            _coco(truth, _objects(truth, iou_type)),
            _coco(truth, _results(found, iou_type)),
            iou_type,
        )
        run.params.maxDets = list(caps)
        run.evaluate()
        run.accumulate()
    return run.eval["precision"], run.eval["recall"]


def _images(truth: Truth) -> list[dict]:
    return [
        {"id": number, "height": height, "width": width}
        for number, (height, width) in enumerate(truth.sizes.tolist(), 1)
    ]


def _categories(truth: Truth) -> list[dict]:
    return [{"id": number, "name": name} for number, name in enumerate(truth.class_names, 1)]


def _coco(truth: Truth, annotations: list[dict]) -> COCO:
    coco = COCO()
    coco.dataset = {
        "images": _images(truth),
        "categories": _categories(truth),
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


def _objects(truth: Truth, iou_type: str) -> list[dict]:
    columns = (truth.images, truth.classes, truth.boxes, truth.areas, truth.crowd)
    masks = truth.masks if iou_type == "segm" else [None] * len(truth.areas)
    return [
        {
            "id": number,
            "image_id": image + 1,
            "category_id": class_ + 1,
            "bbox": box,
            "area": area,
            "iscrowd": int(crowd),
            "segmentation": mask,
        }
        for number, (image, class_, box, area, crowd, mask) in enumerate(
            zip(*(column.tolist() for column in columns), masks, strict=True), 1
        )
    ]


def _results(found: Detections, iou_type: str) -> list[dict]:
    """As ``COCO.loadRes`` fills them in: the area is the box's, or with masks the mask's."""
    columns = (found.images, found.classes, found.boxes, found.scores)
    masks = found.masks if iou_type == "segm" else [None] * len(found)
    return [
        {
            "id": number,
            "image_id": image + 1,
            "category_id": class_ + 1,
            "bbox": box,
            "score": score,
            "area": box[2] * box[3] if mask is None else float(pycocotools.mask.area(mask)),
            "iscrowd": 0,
            "segmentation": mask,
        }
        for number, (image, class_, box, score, mask) in enumerate(
            zip(*(column.tolist() for column in columns), masks, strict=True), 1
        )
    ]


# ---- the fast one ----


def by_hotcoco(
    truth: Truth, found: Detections, caps: tuple[int, int, int], iou_type: str
) -> Curves:
    """The same arrays, of boxes, from the columns as they are."""
    import hotcoco

    objects = hotcoco.COCO.from_arrays(
        _images(truth),
        _categories(truth),
        truth.images + 1,
        truth.classes + 1,
        truth.boxes,
        area=truth.areas,
        iscrowd=truth.crowd,
    )
    rows = np.column_stack(
        [found.images + 1.0, found.boxes, found.scores, found.classes + 1.0],
    )
    run = hotcoco.COCOeval(objects, objects.load_res(rows), iou_type)
    run.params.max_dets = list(caps)
    run.evaluate()
    run.accumulate()
    return np.asarray(run.eval["precision"]), np.asarray(run.eval["recall"])


BACKENDS: dict[str, Backend] = {DEFINITION: by_pycocotools, FAST: by_hotcoco}


# ---- choosing ----


def choose(scorer: str, iou_type: str) -> str:
    """The back end for TEST.SCORER; masks are pycocotools' always.

    Raises:
        InputError: no such scorer, or one that is named but not installed or gives other figures
            than pycocotools. "auto" falls back to pycocotools then, with a warning for the latter.
    """
    check_name(scorer)
    if scorer == DEFINITION or iou_type == "segm":
        return DEFINITION
    fault = fault_of_fast()
    if not fault:
        return FAST
    if scorer == FAST:
        raise InputError("TEST.SCORER", f'is "{FAST}", which {fault}', 'set it to "auto"')
    if is_installed():
        logger.warning("%s is not used: it %s. %s scores instead", FAST, fault, DEFINITION)
    return DEFINITION


def check_name(scorer: str) -> None:
    """Raises InputError where TEST.SCORER is none of CHOICES."""
    if scorer not in CHOICES:
        raise InputError("TEST.SCORER", f'is "{scorer}"', f"set it to one of {', '.join(CHOICES)}")


def is_installed() -> bool:
    return importlib.util.find_spec(FAST) is not None


def version_of(name: str) -> str:
    """Back end and version, for the log."""
    return f"{name} {metadata.version(name)}"


@functools.cache
def fault_of_fast() -> str:
    """Why the fast back end cannot be taken, as the rest of a sentence; "" if it can.

    It is asked once in a process for the figures of a small set, whose answer pycocotools gives:
    a later release of it that counted otherwise would be noticed here.
    """
    if not is_installed():
        return "is not installed (pip install hotcoco)"
    try:
        off = disagreement(by_hotcoco)
    except Exception as error:  # a release whose functions changed: any error says so
        return f"failed on a small set ({type(error).__name__}: {error})"
    return "" if off <= TOLERANCE else f"is {off:.1e} off pycocotools on a small set"


def disagreement(backend: Backend) -> float:
    """The largest difference from pycocotools over a small set with crowds and equal scores."""
    truth, found = _small_set()
    caps = (1, 10, 100)
    pairs = zip(
        by_pycocotools(truth, found, caps, "bbox"), backend(truth, found, caps, "bbox"), strict=True
    )
    return max(float(np.abs(a - b).max()) if a.shape == b.shape else np.inf for a, b in pairs)


def _small_set() -> tuple[Truth, Detections]:
    """8 images, 3 classes, 40 objects of all sizes, 160 detections near some of them."""
    random = np.random.default_rng(0)
    objects, images, classes = 40, 8, 3
    side = np.exp(random.uniform(np.log(8), np.log(200), (objects, 1)))
    boxes = np.round(np.hstack([random.uniform(0, 200, (objects, 2)), side, side]), 1)
    truth = Truth(
        file="a small set",
        image_ids=list(range(images)),
        class_ids=list(range(classes)),
        class_names=["a", "b", "c"],
        sizes=np.full((images, 2), 400),
        images=random.integers(0, images - 1, objects).astype(np.int32),  # none in the last
        classes=random.integers(0, classes, objects).astype(np.int32),
        boxes=boxes,
        areas=np.where(random.random(objects) < 0.2, 32.0**2, boxes[:, 2] * boxes[:, 3]),
        crowd=random.random(objects) < 0.15,
    )
    near = np.tile(np.arange(objects), 4)
    moved = boxes[near] + random.normal(0, 0.1, (len(near), 4)) * side[near]
    found = Detections(
        images=np.where(random.random(len(near)) < 0.1, images - 1, truth.images[near]).astype(
            np.int32
        ),
        classes=truth.classes[near],
        boxes=np.maximum(moved, 0),
        scores=np.round(random.random(len(near)), 1),
    )
    return truth, found
