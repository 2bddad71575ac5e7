"""Random changes of inputs that leave their class as it is: to train on, and to ask again."""

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional

from oneway.checks import check_count
from oneway.contracts import ScoredTarget

TURN = math.radians(10)
"""Largest rotation, in radians."""

STRETCH, SHIFT = 0.1, 0.1
"""Largest change of the scale, and largest shift as a share of half a side."""

CONTRAST = 0.3
"""Largest change of the contrast about the image's mean."""


JITTER_TURN, JITTER_SHIFT, JITTER_NOISE = 0.1, 1.5, 0.05
"""Of a jittered image: largest rotation, in radians, largest shift, in pixels, and the standard
deviation of its noise; a jittered record has such noise, in standard deviations of its columns."""


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
    moved = _moved(images, torch.stack([first, second], 1))
    mean = moved.mean((1, 2, 3), keepdim=True)
    return (mean + (moved - mean) * (1 + CONTRAST * drawn[4]).view(-1, 1, 1, 1)).clamp(0, 1)


def jitter(inputs: Tensor, generator: Generator) -> Tensor:
    """Return a changed copy of each input, as the next frame of a video would be.

    Args:
        inputs: ``(N, C, H, W)`` images in ``[0, 1]``, or ``(N, F)`` records. Not modified.
        generator: Source of the changes, on the CPU.

    Returns:
        ``(N, ...)`` inputs of the same shape. Images are turned by up to .1 radians, shifted by up
        to 1.5 pixels, and get noise of .05 per pixel, in ``[0, 1]``. Records get noise of .05
        standard deviations of each column, within the range of the column.
    """
    noise = JITTER_NOISE * torch.randn(inputs.shape, generator=generator).to(inputs)
    if inputs.ndim == 2:
        changed = inputs + noise * inputs.std(0, correction=0)
        return changed.clamp(inputs.amin(0), inputs.amax(0))
    drawn = (2 * torch.rand(3, len(inputs), generator=generator) - 1).to(inputs)
    cosine, sine = (JITTER_TURN * drawn[0]).cos(), (JITTER_TURN * drawn[0]).sin()
    across, down = (
        2 * JITTER_SHIFT / side * share
        for side, share in zip((inputs.shape[3], inputs.shape[2]), drawn[1:], strict=True)
    )
    rows = torch.stack([cosine, -sine, across], -1), torch.stack([sine, cosine, down], -1)
    return (_moved(inputs, torch.stack(rows, 1)) + noise).clamp(0, 1)


def ask_variants(target: ScoredTarget, inputs: Tensor, count: int, generator: Generator) -> Tensor:
    """Return the ``(N, count, K)`` logits of so many jittered copies of each input.

    Args:
        target: The model; it is asked ``count`` times about all inputs.
        inputs: See :func:`jitter`.
        count: Copies of each, at least 1.
        generator: Source of the changes, on the CPU.

    Raises:
        InvalidOptionError: ``count`` is below 1.
    """
    check_count("count", count)
    asked = [target.logits(jitter(inputs, generator)) for _ in range(count)]
    return torch.stack(asked, 1)


def _moved(images: Tensor, maps: Tensor) -> Tensor:
    """Return ``(N, C, H, W)`` images under ``(N, 2, 3)`` affine maps; edges are repeated."""
    grid = functional.affine_grid(maps, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
