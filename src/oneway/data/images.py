"""Images in memory: data sets, the arguments of their loaders, and scaling by area."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from oneway.errors import InvalidOptionError, MissingDataError

ProgressCallback = Callable[[str, float], None]
"""Receives the name of a stage, and the share of it that is done, from 0 to 1."""


def no_progress(stage: str, share: float) -> None:
    """Ignore the progress."""


@dataclass(frozen=True)
class Source:
    """The arguments of ``load_dataset``.

    Attributes:
        name: The data set's name.
        data_root: A folder that holds the files of data sets, or None.
        path: A file or folder, relative to ``data_root`` or absolute, or None.
        side: The side in pixels that every image is scaled to, or None.
        labelled: Whether labels are wanted; an auxiliary set needs none.
        report: Receives the progress.
    """

    name: str
    data_root: Path | None = None
    path: str | None = None
    side: int | None = None
    labelled: bool = True
    report: ProgressCallback = no_progress

    def refuse_path(self) -> None:
        """Refuse a path, for a loader that takes none.

        Raises:
            InvalidOptionError: There is a path.
        """
        if self.path is not None:
            raise InvalidOptionError(
                f"data set {self.name!r} takes no path, but got {self.path!r}. Leave it out; "
                "the data root says where its files are."
            )

    def locate(self, origin: str, *, subfolder: str | None = None) -> Path:
        """Return the folder to read.

        It is ``path`` if that is given, else ``subfolder`` of the data root if that exists, else
        the data root.

        Args:
            origin: A sentence that says where the files come from.
            subfolder: The usual name of the data set's folder.

        Raises:
            MissingDataError: The folder does not exist, or neither a data root nor a path is given.
        """
        if self.path is not None:
            folder = (self.data_root or Path()) / self.path
        elif self.data_root is None:
            raise MissingDataError(
                f"data set {self.name!r} is not downloaded, but got neither a data root nor a "
                f"path. {origin}"
            )
        elif subfolder is not None and (self.data_root / subfolder).is_dir():
            folder = self.data_root / subfolder
        else:
            folder = self.data_root
        if not folder.is_dir():
            raise MissingDataError(
                f"data set {self.name!r} is read from a folder, but {folder} is none. {origin}"
            )
        return folder


Pixels = NDArray[np.uint8]

Size = tuple[int, int]
"""Height and width in pixels."""

CHUNK = 1024
"""Images that are scaled at a time: their float64 copies take memory."""


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
