"""Loops in C for CPUs where PyTorch has no operator that does the same in as few passes.

``build`` compiles them with the machine's own C compiler, once a machine; ``kernels`` calls them,
after they have given PyTorch's results. Where there is no compiler, everything goes on without.
"""

from .kernels import (
    Norm,
    norm_backward,
    norm_forward,
    roi_align_backward,
    roi_align_forward,
    roi_pool_backward,
    roi_pool_forward,
)
from .trust import is_recorded, kernels_of, kernels_serve

__all__ = [
    "Norm",
    "is_recorded",
    "kernels_of",
    "kernels_serve",
    "norm_backward",
    "norm_forward",
    "roi_align_backward",
    "roi_align_forward",
    "roi_pool_backward",
    "roi_pool_forward",
]
