"""RoIAlign in any type and channels_last: torchvision's values and gradients, sooner.

torchvision's operator computes channel by channel on one thread, in fp32 in the other memory
layout. On a CPU with a compiler `native` does it channels side by side on all threads. Samples and
the order of their sums are the same, so that results differ by rounding.
"""

from typing import NamedTuple

import torch
from detectron2.layers import ROIAlign
from detectron2.modeling.poolers import ROIPooler
from torch.autograd.function import once_differentiable
from torchvision.ops import roi_align

from ..native import kernels_serve, roi_align_backward, roi_align_forward


class _How(NamedTuple):
    """What both directions need to know, see `native.kernels.roi_align_forward`."""

    scale: float
    sampling_ratio: int
    aligned: bool


class NativeROIAlign(ROIAlign):
    """Detectron2's layer, which computes in C where it can (He et al. 2017, Sec. 3).

    Sums are float32 in every type, and boxes stay so, which Detectron2 rounds to the features'.
    """

    def forward(self, input: torch.Tensor, rois: torch.Tensor) -> torch.Tensor:
        """Mean of the samples in each bin of every RoI.

        Args:
            input: (N, C, H, W), best in channels_last.
            rois: (R, 5): image number in 0..N-1, x1, y1, x2, y2 in pixels of the image.

        Returns:
            (R, C, P, P) in ``input``'s type; channels_last where it was computed in C.
        """
        # TorchScript compiles none of what its own test leaves out, and knows no `super`.
        if torch.jit.is_scripting():
            how = self.spatial_scale, self.sampling_ratio, self.aligned
            return roi_align(input, rois.to(dtype=input.dtype), self.output_size, *how)
        elif not self.is_native(input, rois):
            # torchvision's operator knows no bf16 on a CPU.
            half = input.device.type == "cpu" and input.dtype in (torch.bfloat16, torch.float16)
            return super().forward(input.float() if half else input, rois).to(input.dtype)
        else:
            return self._in_c(input, rois)

    def _in_c(self, input: torch.Tensor, rois: torch.Tensor) -> torch.Tensor:
        cells = input.permute(0, 2, 3, 1).contiguous()
        how = _How(self.spatial_scale, self.sampling_ratio, self.aligned)
        pooled = _Align.apply(cells, rois.detach().contiguous(), self._side(), how)
        return pooled.permute(0, 3, 1, 2)

    def is_native(self, input: torch.Tensor, rois: torch.Tensor) -> bool:
        """Whether `forward` computes on these in C."""
        return (
            kernels_serve(input)
            and self._side() is not None
            and (rois.device, rois.dtype) == (input.device, torch.float32)
            and rois.shape[1:] == (5,)
            and input.numel() > 0
        )

    def _side(self) -> int | None:
        """Bins along either side; None where they are not as many."""
        if isinstance(self.output_size, int):
            return self.output_size
        rows, cols = self.output_size
        return rows if rows == cols else None


class _Align(torch.autograd.Function):
    @staticmethod
    def forward(ctx, cells, rois, size, how):
        ctx.save_for_backward(rois)
        ctx.shape, ctx.dtype, ctx.how = cells.shape, cells.dtype, how
        return roi_align_forward(cells, rois, size, *how)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (rois,) = ctx.saved_tensors
        grad = roi_align_backward(grad.contiguous(), rois, ctx.shape, *ctx.how)
        return grad.to(ctx.dtype), None, None, None


def use_native(pooler: ROIPooler) -> None:
    """Put `NativeROIAlign` in the place of each of the pooler's RoIAligns.

    They have no parameters: state dicts stay the same. Other layers, such as RoIPool and what is
    derived from RoIAlign, are left alone.
    """
    for level, layer in enumerate(pooler.level_poolers):
        if type(layer) is ROIAlign:
            own = NativeROIAlign(
                layer.output_size, layer.spatial_scale, layer.sampling_ratio, layer.aligned
            )
            pooler.level_poolers[level] = own.train(layer.training)
