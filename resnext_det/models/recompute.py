"""Blocks whose inner features are not kept for the backward pass but computed once more.

A training step then keeps one feature map a block instead of about ten, for a third more time.
torch's own checkpoints do it; batch norms are told to count a batch only the first time.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


@contextlib.contextmanager
def still(module: nn.Module) -> Iterator[None]:
    """Batch norms in training inside ``module`` leave their running statistics alone."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    moving = [norm for norm in norms if norm.training and norm.track_running_stats]
    momenta = [norm.momentum for norm in moving]
    for norm in moving:
        norm.momentum = 0.0  # torch asks that the same tensors are met: the statistics stay there
    try:
        yield
    finally:
        for norm, momentum in zip(moving, momenta, strict=True):
            norm.momentum = momentum
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.sub_(1)


def recomputed(
    run: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, block: nn.Module
) -> torch.Tensor:
    """``run(x)``, of which only ``x`` is kept; the same values, gradients and statistics."""
    return checkpoint(
        run,
        x,
        use_reentrant=False,
        preserve_rng_state=False,  # there is no dropout
        context_fn=lambda: (contextlib.nullcontext(), still(block)),
    )
