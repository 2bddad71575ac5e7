"""Scores and images that belong together, for the tests of codebooks."""

import torch
from torch import Tensor

PIXELS = (1, 4, 4)


def scored(
    seed: int, count: int, classes: int = 4, scale: float = 3.0, pull: float = 4.0
) -> tuple[Tensor, Tensor]:
    """Return ``(N, K)`` float64 logits and ``(N, 1, 4, 4)`` images that they are a function of.

    Images are uniform; logits read blocks of pixels, and so tell much more than the label.
    """
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 16, generator=generator, dtype=torch.float64)
    # One weight matrix for all draws: they are of one model.
    weights = torch.randn(16, classes, generator=torch.Generator().manual_seed(99)).double()
    logits = scale * (images - 0.5) @ weights
    # Labels are of unequal sizes.
    logits += pull * torch.linspace(0.3, -0.3, classes, dtype=torch.float64)
    return logits, images.view(count, *PIXELS)
