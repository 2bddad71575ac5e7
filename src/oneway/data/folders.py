"""Image files: how one is decoded, and a data set of a folder per class."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from oneway.data.images import Dataset, Pixels, scale_images
from oneway.data.source import Source
from oneway.errors import (
    CorruptDataError,
    InvalidOptionError,
    MissingDataError,
)
from oneway.extras import load_extra

EXTENSIONS = (
    ".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
"""Other files in a class's folder are not looked at."""
Box = tuple[int, int, int, int]
"""Left, top, right and bottom; the last two are just outside."""


def load_folder(source: Source) -> Dataset:
    """A folder that has one folder per class with the images of that class.

    Classes are numbered by their sorted names, and images of a class are in the order of
    theirs. Files with an extension that no image has, and hidden ones, are not looked at.
    """
    origin = "Name one that holds a folder of images per class."
    return read_class_folders(source, source.locate(origin))


def read_class_folders(source: Source, folder: Path) -> Dataset:
    """Read a folder per class.

    Raises:
        MissingDataError: There is no class, or one without an image.
        CorruptDataError: A file cannot be decoded.
        InvalidOptionError: Images differ in size, and no side is given.
        MissingExtraError: Pillow is not installed.
    """
    classes = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not classes:
        raise MissingDataError(
            f"{folder} must hold a folder of images per class, but has no folders."
        )
    paths, labels = [], []
    for label, class_folder in enumerate(classes):
        found = images_in(class_folder)
        if not found:
            raise MissingDataError(
                f"each folder in {folder} is a class, but {class_folder.name!r} has no images "
                f"({', '.join(EXTENSIONS)}). Remove it, or put some there."
            )
        paths += found
        labels += [label] * len(found)
    images = stack_images(source, paths, lambda row: decode_gray(paths[row]))
    names = tuple(path.name for path in classes)
    return Dataset(source.name, images, np.array(labels, np.int64), None, len(names), names)


def images_in(folder: Path) -> list[Path]:
    """Return the image files of a folder, sorted by name."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in EXTENSIONS and not path.name.startswith(".") and path.is_file()
    )


def stack_images(source: Source, paths: Sequence[Path], decode: Callable[[int], Pixels]) -> Pixels:
    """Decode and scale images one by one.

    Args:
        source: Says the side, and is told of progress.
        paths: Of the files, for messages.
        decode: Returns the image of one row, ``(H, W)``.

    Returns:
        ``(N, H, W)`` images.

    Raises:
        InvalidOptionError: They differ in size, and no side is given.
        MissingExtraError: Pillow is not installed.
    """
    open_pillow()
    stage, every = f"decoding {source.name}", max(1, len(paths) // 100)
    stacked: Pixels | None = None
    for row, path in enumerate(paths):
        image = decode(row)
        if source.side is not None:
            image = scale_images(image[None], source.side)[0]
        if stacked is None:
            stacked = np.empty((len(paths), *image.shape), np.uint8)
        if image.shape != stacked.shape[1:]:
            raise InvalidOptionError(
                f"images of data set {source.name!r} differ in size: {paths[0]} is "
                f"{stacked.shape[1:]} and {path} is {image.shape}. Pass a side to scale all to."
            )
        stacked[row] = image
        if (row + 1) % every == 0 or row + 1 == len(paths):
            source.report(stage, (row + 1) / len(paths))
    if stacked is None:
        raise MissingDataError(f"data set {source.name!r} has no images.")
    return stacked


def decode_gray(path: Path, box: Box | None = None, content: bytes | None = None) -> Pixels:
    """Decode an image to gray, by the weights of ITU-R 601 if it has colors.

    Args:
        path: Of the file.
        box: What to cut out; what of it lies outside the image is left off.
        content: The file's bytes, if they were read already.

    Returns:
        ``(H, W)`` uint8.

    Raises:
        CorruptDataError: It is no image of 8 bits per value, or nothing of it is in the box.
    """
    gray: Pixels = np.asarray(decode_image(path, lambda _: "L", content)).copy()
    if box is None:
        return gray
    height, width = gray.shape
    left, top, right, bottom = box
    if not (0 <= left < min(right, width) and 0 <= top < min(bottom, height)):
        raise CorruptDataError(
            f"{path} is {width} x {height}, so nothing of it is in the box {box}."
        )
    return gray[top:bottom, left:right]


def decode_image(path: Path, choose: Callable[[str], str], content: bytes | None = None) -> Any:
    """Decode an image with Pillow.

    Args:
        path: Of the file.
        choose: Says which mode is wanted, given the one that the image has.
        content: The file's bytes, if they were read already.

    Returns:
        Pillow's image in that mode.

    Raises:
        CorruptDataError: It is no image of 8 bits per value.
        MissingExtraError: Pillow is not installed.
    """
    pillow = open_pillow()
    try:
        with pillow.open(io.BytesIO(content) if content is not None else path) as image:
            if image.mode[0] in "IF":
                raise CorruptDataError(
                    f"{path} must have 8 bits per value, but has more (Pillow's mode "
                    f"{image.mode}). Convert it."
                )
            return image.convert(choose(image.mode))
    except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError) as error:
        raise CorruptDataError(
            f"{path} is not an image that can be decoded ({type(error).__name__}). Fetch it "
            "again or remove it."
        ) from error


def open_pillow() -> Any:
    """Return Pillow's ``Image``.

    Raises:
        MissingExtraError: It is not installed.
    """
    return load_extra("PIL.Image", extra="images", purpose="decoding images", package="pillow")
