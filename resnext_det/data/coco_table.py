"""The annotations of a checked COCO file as arrays."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from .coco_boxes import boxes_of, column, places, sizes_of


@dataclass(frozen=True)
class BoxTable:
    """N annotations of M images in K classes.

    Args:
        boxes: float64 (N, 4), XYWH in pixels of the original image, as in the file.
        image: int64 (N,), which image, an index of ``sizes``.
        category: int64 (N,), 0..K-1 in the order of the categories' ids.
        is_crowd: bool (N,).
        sizes: float64 (M, 2), (width, height) of the images in pixels.
        image_ids, annotation_ids: the file's own, int64 (M,) and (N,).
        class_names: K names.
    """

    boxes: np.ndarray
    image: np.ndarray
    category: np.ndarray
    is_crowd: np.ndarray
    sizes: np.ndarray
    image_ids: np.ndarray
    annotation_ids: np.ndarray
    class_names: list[str]

    def __len__(self) -> int:
        return len(self.boxes)

    def name(self, number: int) -> str:
        """ "annotation 7 (image 3)"."""
        image = self.image_ids[self.image[number]]
        return f"annotation {self.annotation_ids[number]} (image {image})"

    def objects_per_image(self) -> np.ndarray:
        """int64 (M,); crowds are not counted."""
        return np.bincount(self.image[~self.is_crowd], minlength=len(self.sizes))


def table_of(content: dict[str, Any]) -> BoxTable:
    """The arrays of what `coco_checks.check_entries` has left of a file."""
    images, annotations = content["images"], content["annotations"]
    categories = sorted(content["categories"], key=lambda category: category["id"])
    image_ids = column(images, "id")
    return BoxTable(
        boxes=boxes_of(annotations),
        image=places(column(annotations, "image_id"), image_ids),
        category=places(column(annotations, "category_id"), column(categories, "id")),
        is_crowd=column(annotations, "iscrowd").astype(bool),
        sizes=sizes_of(images),
        image_ids=image_ids,
        annotation_ids=column(annotations, "id"),
        class_names=[str(category["name"]) for category in categories],
    )
