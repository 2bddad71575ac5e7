"""Reconstructions beside the truth, as a picture in a file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneway.errors import InvalidOptionError
from oneway.extras import load_extra
from oneway.files import atomic_file
from oneway.report.page.pictures import pillow_image

FORMATS = {".png": "PNG", ".pdf": "PDF"}
"""Formats of a picture, by the ending of its file."""

SIDE, GAP, MARGIN, DOTS_PER_INCH = 112, 8, 16, 150
"""Pixels of an image's longer side, between images, and around the picture; and pixels per inch."""

TEXT, TITLE = 20, 24
"""Pixels of the texts."""


def check_figure_path(path: Path) -> None:
    """Refuse a file that :func:`draw_reconstructions` could not write.

    Raises:
        InvalidOptionError: The file's ending is no known format.
    """
    if path.suffix.lower() not in FORMATS:
        raise InvalidOptionError(
            f"a picture's file must end in {' or '.join(FORMATS)}, but is {path.name}."
        )


def draw_reconstructions(rows: Mapping[str, NDArray[np.generic]], path: Path, title: str) -> None:
    """Draw one labelled strip of images per row.

    Args:
        rows: ``(n, H, W)`` gray or ``(n, H, W, 3)`` images, uint8 or in ``[0, 1]``, by label. A
            label may have several lines; n, H and W are the same for all rows.
        path: File to write, .png or .pdf; its folder is made if it is missing.
        title: Title above the strips.

    Raises:
        MissingExtraError: Pillow is not installed.
        InvalidOptionError: The file's ending is no known format.
    """
    check_figure_path(path)
    pillow, text, fonts = (
        load_extra(f"PIL.{name}", extra="audit", purpose="drawing pictures", package="pillow")
        for name in ("Image", "ImageDraw", "ImageFont")
    )
    font, large = fonts.load_default(TEXT), fonts.load_default(TITLE)
    tiles = {label: [_tile(image) for image in images] for label, images in rows.items()}
    first = next(iter(tiles.values()))
    across, high = first[0].size[0] + GAP, max(first[0].size[1], 2 * TEXT) + GAP
    ruler = text.Draw(pillow.new("RGB", (1, 1)))
    beside = max(_length(ruler, label, font) for label in rows) + 2 * GAP
    width = MARGIN + max(beside + across * len(first), _length(ruler, title, large)) + MARGIN
    top = MARGIN + 2 * TITLE
    canvas = pillow.new("RGB", (width, top + high * len(rows) + MARGIN), "white")
    draw = text.Draw(canvas)
    draw.text((MARGIN, MARGIN), title, "black", large)
    for place, (label, images) in enumerate(tiles.items()):
        y = top + place * high
        middle = (MARGIN + beside - 2 * GAP, y + (high - GAP) // 2)
        draw.multiline_text(middle, label, "black", font, anchor="rm", align="right")
        for number, image in enumerate(images):
            canvas.paste(image, (MARGIN + beside + number * across, y))
    density = {"dpi": (DOTS_PER_INCH,) * 2, "resolution": DOTS_PER_INCH, "quality": 95}
    with atomic_file(path) as temporary:
        canvas.save(temporary, FORMATS[path.suffix.lower()], **density)


def _tile(image: NDArray[np.generic]) -> Any:
    """Return an image scaled to ``SIDE`` pixels, with each of its pixels as a rectangle."""
    drawn = pillow_image(image)
    scale = SIDE / max(drawn.size)
    size = tuple(max(1, round(scale * side)) for side in drawn.size)
    return drawn.resize(size, resample=0).convert("RGB")


def _length(ruler: Any, words: str, font: Any) -> int:
    """Return the width of a text of one or more lines, in pixels."""
    left, _, right, _ = ruler.multiline_textbbox((0, 0), words, font)
    return int(right - left) + 1
