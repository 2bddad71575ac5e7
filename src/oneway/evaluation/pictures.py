"""The images of figures: which queries are shown, and images as arrays to draw."""

from typing import Any

import torch
from torch import Tensor

SHOWN = 10
"""Most images of a row of a figure."""


def shown_rows(labels: Tensor) -> Tensor:
    """Return which images a figure shows: the first image of each class, up to ``SHOWN``.

    Args:
        labels: ``(N)`` int64 classes of the images.

    Returns:
        ``(n)`` int64 row numbers.
    """
    return torch.stack([(labels == k).nonzero()[0, 0] for k in labels.unique()[:SHOWN]])


def pixels(images: Tensor) -> Any:
    """Return ``(n, C, H, W)`` images as arrays to draw, ``(n, H, W)`` or ``(n, H, W, C)``."""
    return (images[:, 0] if images.shape[1] == 1 else images.movedim(1, -1)).cpu().numpy()
