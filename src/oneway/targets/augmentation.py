"""Random changes of training images that leave their class as it is."""

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional

TURN = math.radians(10)
"""Largest rotation, in radians."""

STRETCH, SHIFT = 0.1, 0.1
"""Largest change of the scale, and largest shift as a share of half a side."""

CONTRAST = 0.3
"""Largest change of the contrast about the image's mean."""


def augment(images: Tensor, generator: Generator, *, flip: bool) -> Tensor:
    """Rotate, scale and shift each image, change its contrast, and mirror half of the images.

    Args:
        images: ``(N, C, H, W)`` in ``[0, 1]``. Not modified.
        generator: Source of the changes, on the CPU.
        flip: Whether images may be mirrored: a face stays a face, a digit need not stay a digit.

    Returns:
        ``(N, C, H, W)`` in ``[0, 1]``. Edges are repeated where an image leaves its frame.
    """
    count = len(images)
    drawn = (2 * torch.rand(5, count, generator=generator) - 1).to(images)
    mirrored = 1 - 2 * (torch.rand(count, generator=generator) < 0.5).to(images) * flip
    angle, scale = TURN * drawn[0], 1 + STRETCH * drawn[1]
    cosine, sine = angle.cos() * scale, angle.sin() * scale
    first = torch.stack([mirrored * cosine, -sine, SHIFT * drawn[2]], -1)
    second = torch.stack([mirrored * sine, cosine, SHIFT * drawn[3]], -1)
    grid = functional.affine_grid(
        torch.stack([first, second], 1), list(images.shape), align_corners=False
    )
    moved = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    mean = moved.mean((1, 2, 3), keepdim=True)
    return (mean + (moved - mean) * (1 + CONTRAST * drawn[4]).view(-1, 1, 1, 1)).clamp(0, 1)
