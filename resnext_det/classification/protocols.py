"""From the views of a test image (DATA.TEST_PROTOCOL) to one vector of logits."""

from typing import Any

import torch
import torch.nn.functional as F

from ..models import ResNeXt


def protocol_in_words(protocol: dict[str, Any]) -> str:
    """What `config.protocol_of` gives, as the log says it.

    >>> protocol_in_words({"protocol": "single", "crop": 224, "resize": 256})
    'single, crop 224 from a short side of 256'
    """
    name = protocol["protocol"]
    if "scales" in protocol:
        return f"{name}, short sides {', '.join(map(str, protocol['scales']))}"
    resized = f" from a short side of {protocol['resize']}" if "resize" in protocol else ""
    return f"{name}, crop {protocol['crop']}{resized}"


def last_stage(trunk: ResNeXt) -> str:
    """Name of the feature that the head stands on: "res5", or "res4" of a CIFAR network."""
    return f"res{trunk.architecture.stages[-1]}"


def logits_of(
    trunk: ResNeXt, views: torch.Tensor | list[torch.Tensor], window: int
) -> torch.Tensor:
    """(N, num_classes) for a batch of any protocol.

    Args:
        views: (N, 3, H, W), one view an image; (N, V, 3, H, W), whose logits are summed
            (facebookresearch/ResNeXt, train.lua); or a list of (N, 3, h, w), one a scale, each
            scored fully convolutionally, the scales averaged (He et al. 2016, Sec. 3.4).
        window: side of the head's average pooling in the dense protocol, cells of the map (7).
    """
    if isinstance(views, list):
        return torch.stack([dense_logits(trunk, view, window) for view in views]).mean(0)
    if views.dim() == 5:
        # One view after the other: ten at once would take ten times a single crop's memory.
        return sum(trunk(view)["linear"] for view in views.unbind(1))
    return trunk(views)["linear"]


def dense_logits(trunk: ResNeXt, images: torch.Tensor, window: int) -> torch.Tensor:
    """The head at every place of the map, as a convolution would apply it, and averaged.

    The head is affine, so that the average of its outputs is its output at the average.
    """
    features = trunk(images)[last_stage(trunk)]  # (N, C, h, w)
    kernel = [min(window, side) for side in features.shape[2:]]
    pooled = F.avg_pool2d(features, kernel, stride=1)
    return trunk.linear(pooled.mean((2, 3)))
