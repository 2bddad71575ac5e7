"""Images in memory, and how image files become them."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneway.data.source import ProgressCallback
from oneway.errors import CorruptDataError, InvalidOptionError, MissingDataError
from oneway.extras import load_extra

Pixels = NDArray[np.uint8]

Size = tuple[int, int]
"""Height and width in pixels."""

CHUNK = 1024
"""Images that are scaled at a time: their float64 copies take memory."""

EXTENSIONS = (
    ".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
"""Extensions of image files; other files in a folder are ignored."""


@dataclass(frozen=True)
class Dataset:
    """Grayscale images and their labels in memory.

    Attributes:
        name: The name that it was loaded by.
        images: ``(N, H, W)`` uint8.
        labels: ``(N)`` int64 in ``[0, K)``.
        is_test: ``(N)`` bool, the official test images; None if there is no official test set.
        num_classes: K.
        names: The names of the K classes, if they are known.
        notes: What was left out, cut or converted: sentences with counts.
    """

    name: str
    images: Pixels
    labels: NDArray[np.int64]
    is_test: NDArray[np.bool_] | None
    num_classes: int
    names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()


def scale_images(images: Pixels, size: int | Size) -> Pixels:
    """Scale images by area averaging.

    Every new pixel is the mean of the area that it covers, rounded half up. The sums are of
    integers that float64 holds exactly, so the result is the same on every machine.

    Args:
        images: ``(N, H, W)`` uint8.
        size: New height and width, each at least 1; or the side of a square.

    Returns:
        ``(N, height, width)`` uint8; the images themselves if they have that size.

    Raises:
        InvalidOptionError: A side is less than 1.
    """
    height, width = check_size(size)
    old_height, old_width = images.shape[1:]
    if (old_height, old_width) == (height, width):
        return images
    rows, columns = _shared_lengths(old_height, height), _shared_lengths(old_width, width).T
    area = old_height * old_width
    scaled = np.empty((len(images), height, width), np.uint8)
    for start in range(0, len(images), CHUNK):
        sums = rows @ images[start : start + CHUNK].astype(np.float64) @ columns
        scaled[start : start + CHUNK] = (2 * sums.astype(np.int64) + area) // (2 * area)
    return scaled


def check_size(size: int | Size) -> Size:
    """Return height and width of a size, or of a square's side.

    Raises:
        InvalidOptionError: A side is less than 1.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise InvalidOptionError(f"sides of images must be at least 1 pixel, but got {size}.")
    return height, width


def _shared_lengths(old: int, new: int) -> NDArray[np.float64]:
    """Return how much of each old pixel each new pixel covers, ``(new, old)`` whole numbers.

    The line is cut in ``old * new`` pieces: an old pixel has ``new`` of them, and a new pixel has
    ``old``.
    """
    old_start, new_start = np.arange(old) * new, np.arange(new)[:, None] * old
    end = np.minimum(old_start + new, new_start + old)
    shared = np.maximum(end - np.maximum(old_start, new_start), 0)
    return np.asarray(shared, np.float64)


def subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder, sorted by name, without hidden ones."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def images_in(folder: Path) -> list[Path]:
    """Return the image files of a folder, sorted by name, without hidden ones."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in EXTENSIONS and not path.name.startswith(".") and path.is_file()
    )


def stack_images(
    paths: Sequence[Path],
    decode: Callable[[int], Pixels],
    *,
    name: str,
    stage: str,
    size: int | Size | None,
    report: ProgressCallback,
) -> Pixels:
    """Decode and scale image files, one after the other.

    Args:
        paths: The files, at least one.
        decode: Returns the image of a row, ``(C, H, W)``.
        name: Where the images are, for messages.
        stage: The name of this stage in progress reports.
        size: Scale all images to it. None: keep their size, in which they must agree.
        report: Receives the progress.

    Returns:
        ``(N, C, H, W)`` images.

    Raises:
        InvalidOptionError: Images differ in size, and ``size`` is None.
        MissingDataError: ``paths`` is empty.
    """
    if not paths:
        raise MissingDataError(f"{name} has no images ({', '.join(EXTENSIONS)}).")
    every, stacked = max(1, len(paths) // 100), np.empty((len(paths), 0, 0, 0), np.uint8)
    for row, path in enumerate(paths):
        image = decode(row)
        if size is not None:
            image = scale_images(image, size)
        if row == 0:
            stacked = np.empty((len(paths), *image.shape), np.uint8)
        if image.shape != stacked.shape[1:]:
            raise InvalidOptionError(
                f"images of {name} differ in size: {paths[0]} is {stacked.shape[2:]} and {path} is "
                f"{image.shape[1:]}. Pass a size (of a data set: a side) to scale all to."
            )
        stacked[row] = image
        if (row + 1) % every == 0 or row + 1 == len(paths):
            report(stage, (row + 1) / len(paths))
    return stacked


def decode_image(path: Path, channels: int | None = None, content: bytes | None = None) -> Pixels:
    """Decode an image file.

    Args:
        path: The file.
        channels: 1: gray, by the weights of ITU-R 601 if the image has colors. 3: in color. None:
            as the image is.
        content: The file's bytes, if they are read already.

    Returns:
        ``(C, H, W)`` uint8, C 1 or 3.

    Raises:
        CorruptDataError: The file is not an image of 8 bits per value.
        MissingExtraError: Pillow is not installed.
    """
    pillow = load_extra("PIL.Image", extra="images", purpose="decoding images", package="pillow")
    try:
        with pillow.open(io.BytesIO(content) if content is not None else path) as image:
            if image.mode[0] in "IF":
                raise CorruptDataError(
                    f"{path} must have 8 bits per value, but has more (Pillow's mode "
                    f"{image.mode}). Convert it."
                )
            gray = channels == 1 or (channels is None and image.mode in ("1", "L", "LA"))
            pixels: NDArray[Any] = np.asarray(image.convert("L" if gray else "RGB"))
    except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError) as error:
        raise CorruptDataError(
            f"{path} is not an image that can be decoded ({type(error).__name__}). Fetch it "
            "again or remove it."
        ) from error
    return pixels[None] if gray else np.moveaxis(pixels, -1, 0)
