"""Pictures inside a page: small images as PNG in the text of the page itself."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oneway.extras import load_extra

MOST_SIDE = 160
"""Pixels of the longer side; larger images are reduced by a whole factor."""

SHOWN_SIDE = 72
"""Pixels of a page that the longer side of every image is given."""


@dataclass(frozen=True)
class Picture:
    """One image.

    Attributes:
        source: A data address of a PNG.
        told: What it shows, for who cannot see it.
    """

    source: str
    told: str


@dataclass(frozen=True)
class PictureRow:
    """What one observer sees of several queries.

    Attributes:
        told: Who.
        note: What it knows, or the error it makes.
        pictures: One per query.
    """

    told: str
    note: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Pictures:
    """Queries side by side: as they were sent, and what observers make of them.

    Attributes:
        title: What is shown.
        heads: What stands above each query.
        rows: From above.
        numbers: More rows, of text, by what they tell.
        size: Width and height that each image is given.
    """

    title: str
    heads: tuple[str, ...]
    rows: tuple[PictureRow, ...]
    numbers: tuple[tuple[str, tuple[str, ...]], ...]
    size: tuple[int, int]
    kind: str = "pictures"


def picture_row(
    told: str, note: str, images: NDArray[np.generic], alts: Sequence[str]
) -> PictureRow:
    """Return a row of images.

    Args:
        told: Who sees them so.
        note: What it knows.
        images: ``(n, H, W)`` gray or ``(n, H, W, 3)``, uint8 or in ``[0, 1]``.
        alts: What each image shows, in words.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    return PictureRow(
        told,
        note,
        tuple(Picture(_png(image), alt) for image, alt in zip(images, alts, strict=True)),
    )


def shown_size(images: NDArray[np.generic]) -> tuple[int, int]:
    """Return the width and height of a page that each image is given: all the same."""
    height, width = images.shape[1:3]
    scale = SHOWN_SIDE / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _png(image: NDArray[np.generic]) -> str:
    pillow = load_extra("PIL.Image", extra="audit", purpose="pictures on a page", package="pillow")
    levels = image
    if image.dtype != np.uint8:
        levels = (np.asarray(image, np.float64).clip(0, 1) * 255).round().astype(np.uint8)
    drawn = pillow.fromarray(levels)
    factor = -(-max(drawn.size) // MOST_SIDE)
    if factor > 1:
        drawn = drawn.reduce(factor)
    file = io.BytesIO()
    drawn.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


Gallery = Mapping[str, NDArray[np.generic]]
