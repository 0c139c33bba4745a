"""Detectron2's resizing of images by torchvision's kernel: the same pixels, sooner."""

import functools

import numpy as np
import torch
from detectron2.data import transforms as T
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional


class Resize(T.ResizeTransform):
    """Detectron2's ``ResizeTransform``, whose bilinear resizing of uint8 colour images is faster.

    Pillow's bilinear filter and torchvision's on uint8 tensors are the same fixed-point sums, so
    that every pixel is equal (tests/data/test_resize.py); torchvision has them for processors with
    AVX2 or NEON, which is tried once. All else is left to Detectron2.
    """

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """(h, w, ...) to (new_h, new_w, ...)."""
        filter_ = self.interp if interp is None else interp
        fits = img.dtype == np.uint8 and img.ndim == 3 and img.shape[2] == 3
        fits = fits and img.shape[:2] == (self.h, self.w) and filter_ == Image.BILINEAR
        if fits and is_pillows():
            return _resized(img, self.new_h, self.new_w)
        return super().apply_image(img, interp)


def _resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    # Channels last in memory, as torchvision's fast path for three channels takes them.
    planes = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
    resized = functional.resize(
        planes, [height, width], interpolation=InterpolationMode.BILINEAR, antialias=True
    )
    return resized.permute(1, 2, 0).numpy()


@functools.cache
def is_pillows() -> bool:
    """Whether this machine's torchvision gives Pillow's pixels, by a picture that shows it."""
    image = np.random.default_rng(0).integers(0, 256, (61, 83, 3), dtype=np.uint8)
    sizes = ((29, 47), (133, 101))
    return all(
        np.array_equal(
            _resized(image, height, width),
            np.asarray(Image.fromarray(image).resize((width, height), Image.BILINEAR)),
        )
        for height, width in sizes
    )


class ResizeShortestEdge(T.ResizeShortestEdge):
    """Detectron2's augmentation, which draws the same sizes and resizes by `Resize`."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        found = super().get_transform(image)
        if type(found) is not T.ResizeTransform:  # none is needed
            return found
        # Of 6000 x 3 pixels Detectron2 would leave none of the short side.
        height, width = max(1, found.new_h), max(1, found.new_w)
        return Resize(found.h, found.w, height, width, found.interp)


def with_fast_resize(augmentations: list[T.Augmentation]) -> list[T.Augmentation]:
    """The same list with `ResizeShortestEdge` in the place of Detectron2's."""
    return [_fast(own) if type(own) is T.ResizeShortestEdge else own for own in augmentations]


def _fast(own: T.ResizeShortestEdge) -> ResizeShortestEdge:
    return ResizeShortestEdge(
        own.short_edge_length,
        own.max_size,
        "range" if own.is_range else "choice",
        own.interp,
    )
