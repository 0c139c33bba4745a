"""Detectron2's resizing of images, of which one pixel of the short side is always left."""

import numpy as np
from detectron2.data import transforms as T


class ResizeShortestEdge(T.ResizeShortestEdge):
    """Detectron2's augmentation; of 6000 x 3 pixels that one would leave none of the short side."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        found = super().get_transform(image)
        if not isinstance(found, T.ResizeTransform):  # none is needed
            return found
        size = max(1, found.new_h), max(1, found.new_w)
        return T.ResizeTransform(found.h, found.w, *size, found.interp)


def leaving_a_pixel(augmentations: list[T.Augmentation]) -> list[T.Augmentation]:
    """The same list with `ResizeShortestEdge` in the place of Detectron2's."""
    return [
        _own(theirs) if type(theirs) is T.ResizeShortestEdge else theirs for theirs in augmentations
    ]


def _own(theirs: T.ResizeShortestEdge) -> ResizeShortestEdge:
    return ResizeShortestEdge(
        theirs.short_edge_length,
        theirs.max_size,
        "range" if theirs.is_range else "choice",
        theirs.interp,
    )
