"""Read .npz files, as arrays and as a data set."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneway.data.images import Dataset, Pixels, Source
from oneway.data.mapped import map_npy
from oneway.errors import CorruptDataError, InvalidOptionError, MissingDataError, kind_of

Names = tuple[str, ...]
"""The names of classes, in the order of their numbers."""


DARK = 32
"""Value that some pixel of images of 0 to 255 reaches."""


def load_npz(source: Source) -> Dataset:
    """Load a data set from an .npz file.

    The file holds ``images``, uint8 of shape ``(N, H, W)`` or ``(N, 1, H, W)``, and may hold
    ``labels`` and ``names`` (see :func:`read_labels`), with an image of each class; and
    ``is_test``, ``(N)`` bool. Without labels all images are of one class, which is enough for an
    auxiliary set. An auxiliary set may mark the images of people who are not in the private set, as
    ``disjoint``, ``(N)`` bool: the others are left out.
    """
    if source.path is None:
        raise InvalidOptionError(
            "data set 'npz' needs a path, but got none. Pass that of an .npz file."
        )
    path = (source.data_root or Path()) / source.path
    arrays = read_npz(path)
    images = _gray_images(arrays, path)
    if not source.labelled:
        kept, notes = _disjoint(images, arrays.get("disjoint"), path)
        return Dataset(source.name, kept, np.zeros(len(kept), np.int64), None, 1, None, notes)
    labels, names = read_labels(arrays, len(images), path)
    if labels is None:
        labels = np.zeros(len(images), np.int64)
    num_classes = _count_classes(labels, path)
    if names is not None and len(names) != num_classes:
        raise CorruptDataError(
            f"{path} must hold an image of each of its {len(names)} names, but holds images of "
            f"{num_classes} classes. Take the names of the other classes out."
        )
    is_test = arrays.get("is_test")
    if is_test is not None and (is_test.shape != labels.shape or not _is_boolean(is_test)):
        raise CorruptDataError(
            f"is_test of {path} must be bool of shape {labels.shape}, one per image, but is "
            f"{is_test.dtype} of shape {is_test.shape}."
        )
    marks = None if is_test is None else is_test.astype(np.bool_)
    return Dataset(source.name, images, labels, marks, num_classes, names)


def _gray_images(arrays: dict[str, NDArray[Any]], path: Path) -> Pixels:
    """Return the ``(N, H, W)`` images of a file's arrays."""
    images = take_images(arrays, path)
    stored = images.shape
    if images.ndim == 4 and stored[1] == 1:
        images = images[:, 0]
    if images.dtype != np.uint8 or images.ndim != 3 or not images.size:
        raise CorruptDataError(
            f"images of {path} must be uint8 of shape (N, H, W) or (N, 1, H, W), none of them 0, "
            f"but are {images.dtype} of shape {stored}."
        )
    refuse_dark(images, path)
    return images


def take_images(arrays: dict[str, NDArray[Any]], path: Path) -> NDArray[Any]:
    """Return the array ``images`` of a file.

    Raises:
        CorruptDataError: The file has no such array.
    """
    if "images" not in arrays:
        raise CorruptDataError(
            f"{path} must hold an array named images, but holds "
            f"{', '.join(sorted(arrays)) or 'nothing'}. Save it by numpy.savez(FILE, images=...)."
        )
    return arrays["images"]


def refuse_dark(images: NDArray[Any], path: Path) -> None:
    """Refuse uint8 images of another range than 0 to 255, such as masks of 0 and 1.

    Raises:
        CorruptDataError: No pixel of all images has an eighth of the full brightness.
    """
    if images.dtype == np.uint8 and images.size and 0 < images.max() < DARK:
        raise CorruptDataError(
            f"images of {path} are uint8, which is divided by 255, but all of their values are "
            f"below {DARK}. Scale them to 255, or store them as floats from 0 to 1; masks of 0 and "
            "1 also as bool."
        )


def _disjoint(
    images: Pixels, marks: NDArray[Any] | None, path: Path
) -> tuple[Pixels, tuple[str, ...]]:
    """Return the marked images, or all images if there are no marks; and what was left out."""
    if marks is None:
        return images, ()
    if marks.shape != images.shape[:1] or not _is_boolean(marks) or not marks.any():
        raise CorruptDataError(
            f"disjoint of {path} must be bool of shape ({len(images)},), one per image and true "
            f"of some, but is {marks.dtype} of shape {marks.shape}."
        )
    kept = images[marks.astype(np.bool_)]
    left_out = len(images) - len(kept)
    note = f"{left_out} of {len(images)} images are not marked as disjoint, and left out."
    return kept, (note,) if left_out else ()


def read_labels(
    arrays: dict[str, NDArray[Any]], count: int, path: Path
) -> tuple[NDArray[np.int64] | None, Names | None]:
    """Return the labels and the class names of a file's arrays.

    ``labels`` are ``(N)`` integers of at least 0, or texts; ``names`` are K texts, the names of the
    classes 0 to K - 1. Texts are numbered by ``names`` or, without them, in sorted order.

    Args:
        arrays: The arrays of the file, by name.
        count: Number of images, N.
        path: The file, for messages.

    Returns:
        ``(N)`` labels, and K names; None for what the file lacks.

    Raises:
        CorruptDataError: An array has another type or shape, or labels lie outside the names.
    """
    names = _read_names(arrays.get("names"), path)
    labels = arrays.get("labels")
    if labels is None:
        return None, names
    kind = labels.dtype.kind
    if kind not in "iuU" or labels.shape != (count,) or (kind == "i" and (labels < 0).any()):
        raise CorruptDataError(
            f"labels of {path} must be integers of at least 0, or texts, of shape ({count},), one "
            f"per image, but are {labels.dtype} of shape {labels.shape}."
        )
    if kind == "U":
        names = names or tuple(np.unique(labels).tolist())
        number = {name: place for place, name in enumerate(names)}
        numbers = [number.get(label, len(names)) for label in labels.tolist()]
        labels = np.array(numbers, np.int64)
    if names is not None and (unnamed := int((labels >= len(names)).sum())):
        raise CorruptDataError(
            f"labels of {path} must be among its {len(names)} names, but {unnamed} of {count} are "
            "not. Store one name for each class."
        )
    return labels.astype(np.int64), names


def _read_names(names: NDArray[Any] | None, path: Path) -> Names | None:
    if names is None:
        return None
    if names.dtype.kind != "U" or names.ndim != 1 or len(set(names.tolist())) != len(names):
        raise CorruptDataError(
            f"names of {path} must be K different texts, one per class, but are {names.dtype} of "
            f"shape {names.shape}."
        )
    return tuple(names.tolist())


def _count_classes(labels: NDArray[np.int64], path: Path) -> int:
    """Return K; refuse labels that are not 0 to K - 1 with an image of each."""
    classes = np.unique(labels)
    if classes[-1] != len(classes) - 1:
        raise CorruptDataError(
            f"labels of {path} must be 0 to K - 1 with an image of each, but {len(classes)} "
            f"classes stand between {classes[0]} and {classes[-1]}. Store "
            "`np.unique(labels, return_inverse=True)[1]`, or no labels if the file is only an "
            "auxiliary set."
        )
    return len(classes)


def _is_boolean(marks: NDArray[Any]) -> bool:
    return marks.dtype.kind in "biu" and bool(((marks == 0) | (marks == 1)).all())


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """Read every array of an .npz file, or that of an .npy file (under the name ``array``).

    An .npy file is mapped where that is possible: it may be larger than memory. Numbers come in
    this machine's byte order, and floats of more than 64 bits as float64.

    Raises:
        MissingDataError: The file does not exist.
        CorruptDataError: The file has another format, or holds pickled objects, which are never
            loaded; or memory has no room for the numbers that it claims to hold.
    """
    if not path.is_file():
        nearby = sorted(p.name for p in path.parent.glob("*.np[yz]"))[:5]
        hint = f" The folder has {', '.join(nearby)}." if nearby else ""
        raise MissingDataError(f"there is no file {os.fspath(path)}. Check the path.{hint}")
    if path.suffix.lower() == ".npy" and (mapped := map_npy(path)) is not None:
        return {"array": mapped}
    try:
        # NumPy leaves a file open that it opened and cannot read.
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return {"array": _plain(loaded)}
            with loaded:
                return {name: _plain(loaded[name]) for name in loaded.files}
    except MemoryError as error:
        raise CorruptDataError(
            f"{os.fspath(path)} holds, or claims to hold, more numbers than memory has room for. "
            "Store fewer rows, or write the file again."
        ) from error
    # A damaged archive or header raises whatever their code meets.
    except Exception as error:
        raise CorruptDataError(
            f"{os.fspath(path)} is not an .npy or .npz file of plain arrays ({kind_of(error)}). "
            "Arrays of Python objects are never read: store texts with `.astype(str)`."
        ) from error


def _plain(array: Any) -> NDArray[Any]:
    """Return an array in this machine's byte order, with floats of 64 bits at most."""
    if not isinstance(array, np.ndarray):  # NumPy gives the bytes of a member that is no array
        raise TypeError("a member is no array")
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        return array.astype(np.float64)
    return array.astype(array.dtype.newbyteorder("="), copy=False)
