"""A drawing as the classifier takes it: centered and scaled as MNIST's digits were."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from oneway.errors import InvalidTensorError

BOX, FIELD, CANVAS = 20, 28, 32
"""Sides of the box that a digit is scaled to, of MNIST's images, and of the classifier's."""

INK = 0.1
"""What counts as drawn."""


def center_drawing(drawing: Tensor) -> Tensor:
    """Scale a drawing's ink to a box of 20 pixels, and put its center of mass in the middle.

    A classifier that was trained on MNIST has never seen a digit anywhere else.

    Args:
        drawing: ``(H, W)`` floating in ``[0, 1]``, ink 1 on 0.

    Returns:
        ``(1, 1, 32, 32)`` float32 in ``[0, 1]``.

    Raises:
        InvalidTensorError: There is no ink.

    Source:
        LeCun, Cortes & Burges, "The MNIST database": normalized to fit in a 20x20 box with their
        aspect ratio kept, antialiased; the center of mass at the center of a 28x28 field.
    """
    rows, columns = (drawing > INK).nonzero(as_tuple=True)
    if not len(rows):
        raise InvalidTensorError("the drawing holds no ink. Draw a digit, or pick a sample.")
    ink = drawing[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].float()
    scale = BOX / max(ink.shape)
    size = [max(1, round(scale * side)) for side in ink.shape]
    scaled = functional.interpolate(
        ink[None, None], size=size, mode="bilinear", antialias=True, align_corners=False
    )[0, 0].clamp(0, 1)
    # Thin lines fade when they are scaled down; MNIST's strokes are white in the middle.
    scaled = scaled / scaled.max()
    top, left = (_start(scaled.sum(1 - axis), scaled.shape[axis]) for axis in (0, 1))
    margin = (CANVAS - FIELD) // 2
    canvas = torch.zeros(1, 1, CANVAS, CANVAS)
    top, left = top + margin, left + margin
    canvas[0, 0, top : top + scaled.shape[0], left : left + scaled.shape[1]] = scaled
    return canvas


def _start(mass: Tensor, length: int) -> int:
    """Return where ink begins so that its center of mass is in the middle, all of it inside.

    In the middle means: in the pixel right of it, or below. That is where all digits of MNIST
    have theirs, uniformly from 14 to 15, counted from the field's edge.
    """
    at = torch.arange(length, dtype=mass.dtype)
    center = float((mass * at).sum() / mass.sum()) + 0.5
    return min(max(0, math.ceil(FIELD / 2 - center)), FIELD - length)
