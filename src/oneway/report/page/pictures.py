"""Pictures inside a page: small images as PNG in the text of the page itself."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneway.extras import load_extra

MOST_SIDE = 160
"""Pixels of the longer side; larger images are reduced by a whole factor."""

SHOWN_SIDE = 72
"""Length of the longer side of every image on a page, in pixels."""

Gallery = Mapping[str, NDArray[np.generic]]
"""Images of the same queries by attacker, with the true images as ``truth``."""


@dataclass(frozen=True)
class Picture:
    """An image.

    Attributes:
        source: Data address of a PNG.
        alt: Text instead of the image, for people who cannot see it.
    """

    source: str
    alt: str


@dataclass(frozen=True)
class PictureRow:
    """Several queries as one attacker reconstructs them.

    Attributes:
        label: Name of the attacker, or source of the images.
        note: Knowledge or error of the attacker.
        pictures: An image for each query.
    """

    label: str
    note: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Pictures:
    """Queries side by side: as they were sent, and as attackers reconstruct them.

    Attributes:
        title: The caption.
        heads: The heading above each query.
        rows: Rows of images, from the top.
        numbers: Rows of text below the images: label, and a text for each query.
        size: Width and height of each image on the page, in pixels.
    """

    title: str
    heads: tuple[str, ...]
    rows: tuple[PictureRow, ...]
    numbers: tuple[tuple[str, tuple[str, ...]], ...]
    size: tuple[int, int]
    kind: str = "pictures"


def picture_row(
    label: str, note: str, images: NDArray[np.generic], alts: Sequence[str]
) -> PictureRow:
    """Return a row of images.

    Args:
        label: Name of the attacker, or source of the images.
        note: Knowledge or error of the attacker.
        images: ``(n, H, W)`` gray or ``(n, H, W, 3)``, uint8 or in ``[0, 1]``.
        alts: Text instead of each image.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    pictures = (Picture(_png(image), alt) for image, alt in zip(images, alts, strict=True))
    return PictureRow(label, note, tuple(pictures))


def shown_size(images: NDArray[np.generic]) -> tuple[int, int]:
    """Return the width and height that each image gets on a page: all the same."""
    height, width = images.shape[1:3]
    scale = SHOWN_SIDE / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def pillow_image(image: NDArray[np.generic]) -> Any:
    """Return ``(H, W)`` or ``(H, W, 3)`` levels, uint8 or in ``[0, 1]``, as an image of Pillow.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    pillow = load_extra("PIL.Image", extra="audit", purpose="drawing pictures", package="pillow")
    if image.dtype != np.uint8:
        image = (np.asarray(image, np.float64).clip(0, 1) * 255).round().astype(np.uint8)
    return pillow.fromarray(image)


def _png(image: NDArray[np.generic]) -> str:
    drawn = pillow_image(image)
    factor = -(-max(drawn.size) // MOST_SIDE)
    if factor > 1:
        drawn = drawn.reduce(factor)
    file = io.BytesIO()
    drawn.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
