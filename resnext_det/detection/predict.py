"""A trained detector on images: paths or arrays in, boxes with class names out."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.structures import Instances

from ..config import override
from ..data.coco_images import set_pixel_limit
from ..data.images import read_array
from ..engine.run import choose_device
from ..errors import InputError
from ..weights import read_record
from .detector import load_detector, stored_cfg

Source = str | Path | np.ndarray


@dataclass(frozen=True)
class Prediction:
    """What a detector finds in one image, best first.

    Args:
        instances: Detectron2's, on the CPU: ``pred_boxes``, ``scores``, ``pred_classes``, and
            ``pred_masks`` of a network with masks.
        class_names: of all classes, in the order of ``pred_classes``.
        image: (H, W, 3) uint8, RGB, as it was read.
        path: of the file; None for an array.
    """

    instances: Instances
    class_names: tuple[str, ...]
    image: np.ndarray
    path: Path | None = None

    def __len__(self) -> int:
        return len(self.instances)

    @property
    def boxes(self) -> np.ndarray:
        """float32 (N, 4), x1, y1, x2, y2 in pixels of the image."""
        return self.instances.pred_boxes.tensor.numpy()

    @property
    def scores(self) -> np.ndarray:
        """float32 (N,), 0..1."""
        return self.instances.scores.numpy()

    @property
    def names(self) -> list[str]:
        return [self.class_names[number] for number in self.instances.pred_classes.tolist()]


class Predictor:
    """A joined detector file, ready for images of any kind and size.

    Images are read by the rules of training (docs/images.md), resized as in evaluation, and boxes
    mapped back. Images whose resized sizes are equal share a batch: then nothing is padded, and
    the boxes are those of an evaluation one image at a time.

    Args:
        weights: ``model_final.safetensors`` of a finished train_net.py run.
        device: "cpu", "cuda"; "" takes the GPU that the config names, where there is one.
        batch_size: images at once, at most.
        score: detections below are left out; None: MODEL.ROI_HEADS.SCORE_THRESH_TEST.
        opts: ``KEY VALUE`` overrides of the stored config, as on a command line.

    Raises:
        InputError: no such file, or other weights than a detector's.
    """

    def __init__(
        self,
        weights: str | Path,
        device: str = "",
        *,
        batch_size: int = 4,
        score: float | None = None,
        opts: Iterable[str] = (),
    ):
        cfg = stored_cfg(weights)
        override(cfg, list(opts))
        if device:
            cfg.MODEL.DEVICE = device
        choose_device(cfg)
        if score is not None:
            cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = score
        cfg.TEST.PROPOSALS_TOPK = 0  # none are asked for
        self.model, self.cfg = load_detector(weights, cfg)
        record = read_record(weights)
        self.class_names, self.class_ids = tuple(record.class_names), tuple(record.class_ids)
        self.batch_size = batch_size
        self.resize = T.AugmentationList(DatasetMapper.from_config(cfg, False)["augmentations"])

    def __call__(self, images: Source | Iterable[Source]) -> Prediction | list[Prediction]:
        """One prediction for one image, a list for several.

        Args:
            images: a path, or an array (H, W, 3) uint8 in RGB order, whatever the network's; or
                several of them.

        Raises:
            InputError: a file that is no image (it is named), or an array of another kind.
        """
        if isinstance(images, str | Path | np.ndarray):
            return next(self.stream([images]))
        return list(self.stream(images))

    def stream(self, images: Iterable[Source]) -> Iterator[Prediction]:
        """Predictions in the order of ``images``, which are read as they are needed."""
        waiting: list[tuple[np.ndarray, torch.Tensor, Path | None]] = []
        for source in images:
            item = self._prepare(source)
            if waiting and (
                len(waiting) == self.batch_size or waiting[0][1].shape != item[1].shape
            ):
                yield from self._predict(waiting)
                waiting = []
            waiting.append(item)
        if waiting:
            yield from self._predict(waiting)

    def _prepare(self, source: Source) -> tuple[np.ndarray, torch.Tensor, Path | None]:
        if isinstance(source, np.ndarray):
            image, path = _checked(source), None
        else:
            set_pixel_limit(self.cfg.DATASETS.MAX_IMAGE_PIXELS)
            image, path = read_array(source), Path(source)
        own = image if self.cfg.INPUT.FORMAT == "RGB" else np.ascontiguousarray(image[:, :, ::-1])
        seen = T.AugInput(own)
        self.resize(seen)
        return image, torch.as_tensor(np.ascontiguousarray(seen.image.transpose(2, 0, 1))), path

    @torch.no_grad()
    def _predict(self, items: list) -> Iterator[Prediction]:
        inputs = [
            {"image": pixels, "height": image.shape[0], "width": image.shape[1]}
            for image, pixels, _ in items
        ]
        for (image, _, path), output in zip(items, self.model(inputs), strict=True):
            found = output["instances"].to("cpu")
            yield Prediction(found, self.class_names, image, path)


def _checked(image: np.ndarray) -> np.ndarray:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InputError(
            "image",
            f"is an array of shape {image.shape} and type {image.dtype}",
            "give (height, width, 3) of type uint8 in RGB order, or a path",
        )
    return image
