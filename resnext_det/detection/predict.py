"""A trained detector on images: paths or arrays in, boxes with class names out."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.structures import Instances

from ..config import override
from ..data.coco_images import set_pixel_limit
from ..data.images import read_array
from ..engine.run import choose_device
from ..errors import InputError, one_line
from ..weights import read_record
from .detector import load_detector, stored_cfg
from .loaders import NamingMapper
from .scorer import check_class_names

Source = str | Path | np.ndarray

HELD = 4  # batches of images that wait for others of their size, at most


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
    def classes(self) -> np.ndarray:
        """int64 (N,), places in `class_names`."""
        return self.instances.pred_classes.numpy()

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


@dataclass
class _Item:
    """An image on its way through the network: resized, in the network's channel order."""

    image: np.ndarray
    pixels: torch.Tensor
    path: Path | None
    found: Prediction | None = None


class Predictor:
    """A joined detector file, ready for images of any kind and size.

    Images are read by the rules of training (docs/images.md), resized as in evaluation, and boxes
    mapped back. Only images whose resized sizes are equal share a batch, wherever they stand among
    the next ones: none is padded to another's size, and the boxes are those of an evaluation one
    image at a time. Padding is not neutral: the trunk turns it into features, which reach into
    the image.

    Args:
        weights: ``model_final.safetensors`` of a finished train_net.py run.
        device: "cpu", "cuda"; "" takes the GPU that the config names, where there is one.
        batch_size: images at once, at most.
        score: detections below are left out; None: MODEL.ROI_HEADS.SCORE_THRESH_TEST.
        opts: ``KEY VALUE`` overrides of the stored config, as on a command line. With
            ``TEST.CLASSES`` only detections of these classes are kept; what the training was
            evaluated on does not count.

    Raises:
        InputError: no such file, other weights than a detector's, a batch size below 1, or a
            class that the detector does not know.
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
        if batch_size < 1:
            raise InputError("batch size", f"is {batch_size}", "give 1 or more")
        cfg = stored_cfg(weights)
        cfg.TEST.CLASSES = ()  # of an evaluation, whose data set may have other classes
        override(cfg, list(opts))
        if device:
            cfg.MODEL.DEVICE = device
        choose_device(cfg)
        if score is not None:
            cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = score
        cfg.TEST.PROPOSALS_TOPK = 0  # none are asked for
        record = read_record(weights)
        self.class_names, self.class_ids = tuple(record.class_names), tuple(record.class_ids)
        check_class_names(cfg.TEST.CLASSES, self.class_names, weights)
        self.model, self.cfg = load_detector(weights, cfg)
        self.kept = torch.tensor([name in cfg.TEST.CLASSES for name in self.class_names])
        self.batch_size = batch_size
        self.resize = T.AugmentationList(NamingMapper.from_config(cfg, False)["augmentations"])

    def __call__(self, images: Source | Iterable[Source]) -> Prediction | list[Prediction]:
        """One prediction for one image, a list for several.

        Args:
            images: a path, or an array (H, W, 3) uint8 in RGB order, whatever the network's; or
                several of them.

        Raises:
            InputError: a file that is no image (it is named), an array of another kind, or
                something else.
        """
        if isinstance(images, str | Path | np.ndarray) or not isinstance(images, Iterable):
            return next(self.stream([images]))
        return list(self.stream(images))

    def read(self, path: str | Path) -> np.ndarray:
        """An image file as (H, W, 3) uint8, RGB, by the rules of docs/images.md.

        Raises:
            InputError: it is none, or has more pixels than DATASETS.MAX_IMAGE_PIXELS.
        """
        set_pixel_limit(self.cfg.DATASETS.MAX_IMAGE_PIXELS)
        return read_array(path)

    def stream(self, images: Iterable[Source]) -> Iterator[Prediction]:
        """Predictions in the order of ``images``, which are read as they are needed.

        So that images of mixed sizes fill batches, up to four batches of them are held at once.
        """
        held: deque[_Item] = deque()
        for source in images:
            held.append(self._prepare(source))
            if len(self._alike(held, held[-1])) == self.batch_size:
                self._predict(self._alike(held, held[-1]))
            elif len(held) >= HELD * self.batch_size:
                self._predict(self._alike(held, held[0]))
            while held and held[0].found is not None:
                yield held.popleft().found
        while held:
            if held[0].found is None:
                self._predict(self._alike(held, held[0]))
            yield held.popleft().found

    @staticmethod
    def _alike(held: Iterable[_Item], one: _Item) -> list[_Item]:
        shape = one.pixels.shape
        return [item for item in held if item.found is None and item.pixels.shape == shape]

    def _prepare(self, source: Source) -> _Item:
        if isinstance(source, str | Path):
            image, path = self.read(source), Path(source)
        else:
            image, path = _checked(source), None
        own = image if self.cfg.INPUT.FORMAT == "RGB" else np.ascontiguousarray(image[:, :, ::-1])
        seen = T.AugInput(own)
        self.resize(seen)
        pixels = torch.as_tensor(np.ascontiguousarray(seen.image.transpose(2, 0, 1)))
        return _Item(image, pixels, path)

    @torch.no_grad()
    def _predict(self, items: list[_Item]) -> None:
        inputs = [
            {"image": item.pixels, "height": item.image.shape[0], "width": item.image.shape[1]}
            for item in items
        ]
        for item, output in zip(items, self.model(inputs), strict=True):
            found = output["instances"].to("cpu")
            if self.cfg.TEST.CLASSES:
                found = found[self.kept[found.pred_classes]]
            item.found = Prediction(found, self.class_names, item.image, item.path)


def _checked(image: object) -> np.ndarray:
    if not isinstance(image, np.ndarray):
        raise InputError(
            "image",
            f"is {one_line(repr(image))}, of type {type(image).__name__}",
            "give a path, or an array (height, width, 3) of type uint8 in RGB order",
        )
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InputError(
            "image",
            f"is an array of shape {image.shape} and type {image.dtype}",
            "give (height, width, 3) of type uint8 in RGB order, or a path",
        )
    return image
