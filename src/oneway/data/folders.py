"""A data set in a folder that holds a folder of images per class."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from oneway.data.images import (
    EXTENSIONS,
    Dataset,
    Pixels,
    decode_image,
    images_in,
    stack_images,
    subfolders,
)
from oneway.data.source import Source
from oneway.errors import MissingDataError


def load_folder(source: Source) -> Dataset:
    """Load a folder that holds a folder of images per class.

    Classes are numbered by their sorted names, and images of a class are in the order of theirs.
    Hidden files, and files without the extension of an image, are ignored.
    """
    origin = "Name one that holds a folder of images per class."
    return read_class_folders(source, source.locate(origin))


def read_class_folders(source: Source, folder: Path) -> Dataset:
    """Read a folder per class.

    Raises:
        MissingDataError: There is no class, or a class without an image.
        CorruptDataError: A file cannot be decoded.
        InvalidOptionError: Images differ in size, and no side is given.
        MissingExtraError: Pillow is not installed.
    """
    classes = subfolders(folder)
    if not classes:
        raise MissingDataError(
            f"{folder} must hold a folder of images per class, but has no folders."
        )
    members = [images_in(class_folder) for class_folder in classes]
    for class_folder, paths in zip(classes, members, strict=True):
        if not paths:
            raise MissingDataError(
                f"each folder in {folder} is a class, but {class_folder.name!r} has no images "
                f"({', '.join(EXTENSIONS)}). Remove it, or put some there."
            )
    paths = [path for of_class in members for path in of_class]
    labels = np.repeat(np.arange(len(classes)), [len(of_class) for of_class in members])
    images = stack_gray(source, paths, lambda row: decode_image(paths[row], 1))
    names = tuple(path.name for path in classes)
    return Dataset(source.name, images, labels.astype(np.int64), None, len(names), names)


def stack_gray(source: Source, paths: Sequence[Path], decode: Callable[[int], Pixels]) -> Pixels:
    """Return the ``(N, H, W)`` images of a data set, scaled to the side of its source.

    Args:
        source: Gives the side, the name, and the callback for progress.
        paths: The files.
        decode: Returns the image of a row, ``(1, H, W)``.

    Raises:
        InvalidOptionError: Images differ in size, and no side is given.
        MissingDataError: ``paths`` is empty.
    """
    stacked = stack_images(
        paths,
        decode,
        name=f"data set {source.name!r}",
        stage=f"decoding {source.name}",
        size=source.side,
        report=source.report,
    )
    return stacked[:, 0]
