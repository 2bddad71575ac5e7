"""Read .npz files, as arrays and as a data set."""

import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneway.data.images import Dataset, Pixels
from oneway.data.source import Source
from oneway.errors import CorruptDataError, InvalidOptionError, MissingDataError


def load_npz(source: Source) -> Dataset:
    """Load a data set from an .npz file.

    The file holds ``images``, uint8 of shape ``(N, H, W)`` or ``(N, 1, H, W)``, and may hold
    ``labels``, ``(N)`` integers from 0 to K - 1; ``names``, K texts; and ``is_test``, ``(N)``
    bool. Without labels all images are of one class, which is enough for an auxiliary set. An
    auxiliary set may mark the images of people who are not in the private set, as ``disjoint``,
    ``(N)`` bool: the others are left out.
    """
    if source.path is None:
        raise InvalidOptionError(
            "data set 'npz' needs a path, but got none. Pass that of an .npz file."
        )
    path = (source.data_root or Path()) / source.path
    arrays = read_npz(path)
    if "images" not in arrays:
        raise CorruptDataError(
            f"{path} must hold images, but holds {', '.join(sorted(arrays)) or 'nothing'}."
        )
    images = arrays["images"]
    stored = images.shape
    if images.ndim == 4 and stored[1] == 1:
        images = images[:, 0]
    if images.dtype != np.uint8 or images.ndim != 3 or not images.size:
        raise CorruptDataError(
            f"images of {path} must be uint8 of shape (N, H, W) or (N, 1, H, W), none of them 0, "
            f"but are {images.dtype} of shape {stored}."
        )
    if not source.labelled:
        arrays = {name: arrays[name] for name in ("images", "disjoint") if name in arrays}
        images = _disjoint(images, arrays.get("disjoint"), path)
    labels, num_classes = _labels(arrays.get("labels"), len(images), path)
    names = arrays.get("names")
    if names is not None and (names.dtype.kind != "U" or names.shape != (num_classes,)):
        raise CorruptDataError(
            f"names of {path} must be {num_classes} texts, one per class, but are {names.dtype} "
            f"of shape {names.shape}."
        )
    is_test = arrays.get("is_test")
    if is_test is not None and (is_test.shape != labels.shape or not _is_boolean(is_test)):
        raise CorruptDataError(
            f"is_test of {path} must be bool of shape {labels.shape}, one per image, but is "
            f"{is_test.dtype} of shape {is_test.shape}."
        )
    return Dataset(
        source.name,
        images,
        labels,
        None if is_test is None else is_test.astype(np.bool_),
        num_classes,
        None if names is None else tuple(names.tolist()),
    )


def _disjoint(images: Pixels, marks: NDArray[Any] | None, path: Path) -> Pixels:
    """Return the marked images, or all images if there are no marks."""
    if marks is None:
        return images
    if marks.shape != images.shape[:1] or not _is_boolean(marks) or not marks.any():
        raise CorruptDataError(
            f"disjoint of {path} must be bool of shape ({len(images)},), one per image and true "
            f"of some, but is {marks.dtype} of shape {marks.shape}."
        )
    return images[marks.astype(np.bool_)]


def _labels(labels: NDArray[Any] | None, count: int, path: Path) -> tuple[NDArray[np.int64], int]:
    """Return the labels (all 0 if the file has none) and the number of classes."""
    if labels is None:
        return np.zeros(count, np.int64), 1
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        raise CorruptDataError(
            f"labels of {path} must be integers of shape ({count},), one per image, but are "
            f"{labels.dtype} of shape {labels.shape}."
        )
    classes = np.unique(labels)
    if classes[0] != 0 or classes[-1] != len(classes) - 1:
        raise CorruptDataError(
            f"labels of {path} must be 0 to K - 1 with an image of each, but {len(classes)} "
            f"classes stand between {classes[0]} and {classes[-1]}. Store "
            "`np.unique(labels, return_inverse=True)[1]`, or no labels if the file is only an "
            "auxiliary set."
        )
    return labels.astype(np.int64), len(classes)


def _is_boolean(marks: NDArray[Any]) -> bool:
    return marks.dtype.kind in "biu" and bool(((marks == 0) | (marks == 1)).all())


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """Read every array of an .npz file, or that of an .npy file (under the name ``array``).

    Raises:
        MissingDataError: The file does not exist.
        CorruptDataError: The file has another format, or holds pickled objects, which are never
            loaded.
    """
    if not path.is_file():
        nearby = sorted(p.name for p in path.parent.glob("*.np[yz]"))[:5]
        hint = f" The folder has {', '.join(nearby)}." if nearby else ""
        raise MissingDataError(f"there is no file {os.fspath(path)}.{hint}")
    try:
        # NumPy leaves a file open that it opened and cannot read.
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return {"array": loaded}
            with loaded:
                arrays = {name: loaded[name] for name in loaded.files}
        # NumPy gives the bytes of a member that is no array.
        if not all(isinstance(array, np.ndarray) for array in arrays.values()):
            raise ValueError("a member is no array")
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise CorruptDataError(
            f"{os.fspath(path)} is not an .npy or .npz file of plain arrays "
            f"({type(error).__name__})."
        ) from error
    return arrays
