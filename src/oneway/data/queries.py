"""Somebody's own images, of any size, gray or in color: what their model is asked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oneway.data.arrays import read_npz
from oneway.data.folders import EXTENSIONS, decode_image, images_in, open_pillow
from oneway.data.source import ProgressCallback, no_progress
from oneway.errors import CorruptDataError, InvalidOptionError, MissingDataError

Size = tuple[int, int]
"""Height and width in pixels."""


@dataclass(frozen=True)
class Queries:
    """Images and, where they are known, their classes.

    Attributes:
        images: ``(N, C, H, W)`` float32 in ``[0, 1]``, C 1 or 3 or whatever an array has.
        labels: ``(N)`` int64, or None.
        names: What the classes are called: of a folder per class, its folders, sorted.
    """

    images: Tensor
    labels: Tensor | None
    names: tuple[str, ...] | None = None


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
        channels: 1 or 3: image files are decoded so. None: in color if the first one is.
        size: Image files are scaled to it. None: as they are; they must then agree.
        report: Told of progress.

    Raises:
        MissingDataError: There is nothing there.
        CorruptDataError: It is something else, or an image cannot be decoded or has more than 8
            bits per value.
        InvalidOptionError: Images differ in size, or ``channels`` is neither 1 nor 3, or ``size``
            has no pixel.
        MissingExtraError: Pillow is not installed, and image files are to be decoded.
    """
    if channels not in (None, 1, 3):
        raise InvalidOptionError(f"channels must be 1 or 3, but got {channels}.")
    if size is not None and min(size) < 1:
        raise InvalidOptionError(f"size must be at least 1 pixel each way, but got {size}.")
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
        path: Where they are from.

    Raises:
        CorruptDataError: The array is something else.
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
    classes = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    found = [(path, 0) for path in images_in(folder)]
    if found and classes:
        raise InvalidOptionError(
            f"{folder} holds images and folders. Give one that holds images, or a folder of "
            "images per class."
        )
    for label, of_class in enumerate(classes):
        found += [(path, label) for path in images_in(of_class)]
    if not found:
        raise MissingDataError(f"{folder} holds no images ({', '.join(EXTENSIONS)}).")
    pillow = open_pillow()
    stage, every = f"decoding {folder.name}", max(1, len(found) // 100)
    rows: NDArray[np.uint8] | None = None
    wanted = None if channels is None else "L" if channels == 1 else "RGB"

    def choose(mode: str) -> str:
        return wanted or ("L" if mode in ("1", "L", "LA") else "RGB")

    for row, (path, _) in enumerate(found):
        decoded = decode_image(path, choose)
        if wanted is None:
            wanted = decoded.mode
        if size is not None and decoded.size != size[::-1]:
            # The mean of the area that each new pixel covers.
            decoded = decoded.resize(size[::-1], pillow.Resampling.BOX)
        pixels = np.asarray(decoded)
        if rows is None:
            rows = np.empty((len(found), *pixels.shape), np.uint8)
        if pixels.shape != rows.shape[1:]:
            raise InvalidOptionError(
                f"images in {folder} differ in size: {found[0][0]} is {rows.shape[1:3]} and "
                f"{path} is {pixels.shape[:2]}. Pass a size to scale all to."
            )
        rows[row] = pixels
        if (row + 1) % every == 0 or row + 1 == len(found):
            report(stage, (row + 1) / len(found))
    stacked = rows if rows is not None else np.empty((0, 1, 1), np.uint8)
    stacked = np.moveaxis(stacked, -1, 1) if stacked.ndim == 4 else stacked[:, None]
    labels = torch.tensor([label for _, label in found]) if classes else None
    return Queries(
        torch.from_numpy(np.ascontiguousarray(stacked)).float() / 255,
        labels,
        tuple(path.name for path in classes) or None,
    )
