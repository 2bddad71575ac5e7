"""Images of any size, gray or in color, as queries to a model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oneway.data.arrays import read_npz
from oneway.data.images import (
    Size,
    check_size,
    decode_image,
    images_in,
    stack_images,
    subfolders,
)
from oneway.data.source import ProgressCallback, no_progress
from oneway.errors import CorruptDataError, InvalidOptionError


@dataclass(frozen=True)
class Queries:
    """Images and, where they are known, their classes.

    Attributes:
        images: ``(N, C, H, W)`` float32 in ``[0, 1]``; C is 1 or 3 for image files.
        labels: ``(N)`` int64, or None.
        names: The names of the classes: of a folder per class, its folders, sorted.
        notes: What was left out, cut or converted: sentences with counts.
    """

    images: Tensor
    labels: Tensor | None
    names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()


def load_queries(
    path: Path,
    *,
    channels: int | None = None,
    size: Size | None = None,
    report: ProgressCallback = no_progress,
) -> Queries:
    """Load images from an .npz file, a folder of images, or a folder of folders of images.

    An .npz file holds ``images``: uint8, or floats in ``[0, 1]``, of shape ``(N, H, W)``,
    ``(N, C, H, W)`` or ``(N, H, W, C)`` with C 1 or 3; and may hold ``labels``, ``(N)`` integers.
    The folders of a folder are classes, numbered by their sorted names.

    Args:
        path: The file or folder.
        channels: 1 or 3, for image files: decode them in gray or in color. None: in color if the
            first image is.
        size: For image files: scale them to it by area averaging, see :func:`scale_images`. None:
            keep their size, in which they must agree.
        report: Receives the progress.

    Raises:
        MissingDataError: The file does not exist, or the folder holds no image.
        CorruptDataError: The file is not such an array, or an image cannot be decoded or has more
            than 8 bits per value.
        InvalidOptionError: Images differ in size, or ``channels`` is neither 1 nor 3, or ``size``
            has no pixel.
        MissingExtraError: Pillow is not installed, and image files are to be decoded.
    """
    if channels not in (None, 1, 3):
        raise InvalidOptionError(f"channels must be 1 or 3, but got {channels}.")
    if size is not None:
        check_size(size)
    if path.is_dir():
        return _load_folder(path, channels, size, report)
    return _load_arrays(path)


def _load_arrays(path: Path) -> Queries:
    arrays = read_npz(path)
    if "images" not in arrays:
        raise CorruptDataError(
            f"{path} must hold an array named images, but holds "
            f"{', '.join(sorted(arrays)) or 'nothing'}."
        )
    images = image_tensor(arrays["images"], path)
    labels = arrays.get("labels")
    if labels is None:
        return Queries(images, None)
    if labels.dtype.kind not in "iu" or labels.shape != (len(images),) or (labels < 0).any():
        raise CorruptDataError(
            f"labels of {path} must be integers of at least 0 of shape ({len(images)},), one per "
            f"image, but are {labels.dtype} of shape {labels.shape}."
        )
    return Queries(images, torch.from_numpy(labels.astype(np.int64)))


def image_tensor(array: NDArray[Any], path: Path) -> Tensor:
    """Return ``(N, C, H, W)`` float32 images in ``[0, 1]``.

    Args:
        array: uint8 pixels, which are divided by 255, or floats in ``[0, 1]``; of shape
            ``(N, H, W)``, ``(N, C, H, W)`` or ``(N, H, W, C)`` with C 1 or 3.
        path: The file of the array, for messages.

    Raises:
        CorruptDataError: The array has another type, shape or range.
    """
    stored = array.shape
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and stored[1] not in (1, 3) and stored[-1] in (1, 3):
        array = np.moveaxis(array, -1, 1)
    if array.ndim != 4 or array.dtype not in (np.uint8, np.float16, np.float32, np.float64):
        raise CorruptDataError(
            f"images of {path} must be uint8 or floats in [0, 1], of shape (N, H, W), "
            f"(N, C, H, W) or (N, H, W, C), but are {array.dtype} of shape {stored}."
        )
    images = torch.from_numpy(np.ascontiguousarray(array))
    if images.dtype == torch.uint8:
        return images.float() / 255
    images = images.float()
    if images.numel() and not (images.min() >= 0 and images.max() <= 1):
        raise CorruptDataError(
            f"float images of {path} must lie in [0, 1], but some do not. Divide them by their "
            "range, or store uint8 pixels."
        )
    return images


def _load_folder(
    folder: Path, channels: int | None, size: Size | None, report: ProgressCallback
) -> Queries:
    classes = subfolders(folder)
    labelled = [(path, 0) for path in images_in(folder)]
    if labelled and classes:
        raise InvalidOptionError(
            f"{folder} holds images and folders. Give one that holds images, or a folder of "
            "images per class."
        )
    for label, class_folder in enumerate(classes):
        labelled += [(path, label) for path in images_in(class_folder)]
    paths = [path for path, _ in labelled]
    if paths and channels is None:
        channels = len(decode_image(paths[0]))
    pixels = stack_images(
        paths,
        lambda row: decode_image(paths[row], channels),
        name=str(folder),
        stage=f"decoding {folder.name}",
        size=size,
        report=report,
    )
    labels = torch.tensor([label for _, label in labelled]) if classes else None
    names = tuple(path.name for path in classes) or None
    return Queries(torch.from_numpy(pixels).float() / 255, labels, names)
