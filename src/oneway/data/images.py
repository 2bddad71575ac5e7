"""What a data set in memory is, and how its images are scaled."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oneway.errors import InvalidOptionError

Pixels = NDArray[np.uint8]

CHUNK = 1024
"""So many images are scaled at a time: their float64 copies take memory."""


@dataclass(frozen=True)
class Dataset:
    """Grayscale images and their labels in memory.

    Attributes:
        name: What it was asked for by.
        images: ``(N, H, W)`` uint8.
        labels: ``(N)`` int64 in ``[0, K)``.
        is_test: ``(N)`` bool, the official test images; None if there is no official test set.
        num_classes: K.
        names: What the K classes are called, if that is known.
    """

    name: str
    images: Pixels
    labels: NDArray[np.int64]
    is_test: NDArray[np.bool_] | None
    num_classes: int
    names: tuple[str, ...] | None = None


def scale_images(images: Pixels, side: int) -> Pixels:
    """Scale images to a square by area averaging.

    Every new pixel is the mean of the area that it covers, rounded half up. The sums are of
    integers that float64 holds exactly, so the result is the same on every machine.

    Args:
        images: ``(N, H, W)`` uint8. A rectangle is stretched.
        side: Height and width of the result, at least 1.

    Returns:
        ``(N, side, side)`` uint8; the images themselves if they have that size.

    Raises:
        InvalidOptionError: ``side`` is less than 1.
    """
    check_side(side)
    height, width = images.shape[1:]
    if (height, width) == (side, side):
        return images
    rows, columns = _shared_lengths(height, side), _shared_lengths(width, side).T
    area = height * width
    scaled = np.empty((len(images), side, side), np.uint8)
    for start in range(0, len(images), CHUNK):
        sums = rows @ images[start : start + CHUNK].astype(np.float64) @ columns
        scaled[start : start + CHUNK] = (2 * sums.astype(np.int64) + area) // (2 * area)
    return scaled


def check_side(side: int | None) -> None:
    """Refuse a side of less than one pixel."""
    if side is not None and side < 1:
        raise InvalidOptionError(f"the side of the images must be at least 1, but got {side}.")


def _shared_lengths(old: int, new: int) -> NDArray[np.float64]:
    """Return how much of each old pixel each new one covers, ``(new, old)`` whole numbers.

    The line is cut in ``old * new`` pieces: an old pixel has ``new`` of them, and a new one
    has ``old``.
    """
    old_start, new_start = np.arange(old) * new, np.arange(new)[:, None] * old
    end = np.minimum(old_start + new, new_start + old)
    shared = np.maximum(end - np.maximum(old_start, new_start), 0)
    return np.asarray(shared, np.float64)
