"""Center and scale a drawing as MNIST's digits are centered and scaled."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from oneway.errors import InvalidTensorError

BOX, FIELD, CANVAS = 20, 28, 32
"""Sides in pixels: the box of a scaled digit, an image of MNIST, an input of the classifier."""

INK = 0.1
"""Least value of a pixel that counts as drawn, in [0, 1]."""


def center_drawing(drawing: Tensor) -> Tensor:
    """Scale a drawing's ink to a box of 20 pixels, and put its center of mass in the middle.

    A classifier trained on MNIST has seen digits nowhere else.

    Args:
        drawing: ``(H, W)`` floating in ``[0, 1]``, ink 1 on 0.

    Returns:
        ``(1, 1, 32, 32)`` float32 in ``[0, 1]``.

    Raises:
        InvalidTensorError: The drawing holds no ink.

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
    """Return the first row or column of the ink, with its center of mass in the field's middle.

    The center falls in the pixel right of the middle, or below it: in MNIST it is spread evenly
    from 14 to 15, counted from the field's edge. All ink stays inside the field.
    """
    at = torch.arange(length, dtype=mass.dtype)
    center = float((mass * at).sum() / mass.sum()) + 0.5
    return min(max(0, math.ceil(FIELD / 2 - center)), FIELD - length)
