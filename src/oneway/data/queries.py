"""Images of any size, gray or in color, as queries to a model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oneway.checks import in_parts
from oneway.data.arrays import read_labels, read_npz, refuse_dark, take_images
from oneway.data.folders import find_images, look_at_images
from oneway.data.image_files import decode_image, stack_images
from oneway.data.images import ProgressCallback, Size, check_size, no_progress
from oneway.errors import CorruptDataError, InvalidOptionError

COLORS = (1, 3)
"""Numbers of channels that tell which axis of an array holds them."""


@dataclass(frozen=True)
class Queries:
    """Images and, where they are known, their classes.

    Attributes:
        images: ``(N, C, H, W)`` float32 in ``[0, 1]``; C is 1 or 3 for image files.
        labels: ``(N)`` int64, or None.
        names: The names of the classes, in the order of the labels' numbers; None if unknown.
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

    An .npz file holds ``images``: uint8, bool, or floats in ``[0, 1]``, of shape ``(N, H, W)``,
    ``(N, C, H, W)`` or ``(N, H, W, C)`` with C 1 or 3. The file may hold ``labels``, ``(N)``
    integers or texts, and ``names``, the K names of the classes 0 to K - 1. The folders of a folder
    are classes, numbered by their sorted names.

    Args:
        path: The file or folder.
        channels: 1 or 3, for image files: decode them in gray or in color. None: in color if any
            image is.
        size: For image files: scale them to it by area averaging, see :func:`scale_images`. None:
            keep their size, in which they must agree.
        report: Receives the progress.

    Raises:
        MissingDataError: The file does not exist, or the folder holds no image.
        CorruptDataError: The file is not such an array, or an image cannot be decoded, has more
            than 8 bits per value, or has several frames or pages.
        InvalidOptionError: Images differ in size, or ``channels`` is neither 1 nor 3, or ``size``
            has no pixel, or the folder holds no classes, but folders of classes.
        MissingExtraError: Pillow is not installed, and image files are to be decoded.
    """
    if channels not in (None, *COLORS):
        raise InvalidOptionError(f"channels must be 1 or 3, but got {channels}.")
    if size is not None:
        check_size(size)
    if path.is_dir():
        return _load_folder(path, channels, size, report)
    if path.is_file() and path.suffix.lower() not in (".npz", ".npy"):
        raise CorruptDataError(
            "data must be a folder of images, or a file that ends in .npz, .npy, .csv or .parquet, "
            f"but got {path}. Put images into a folder, and other tables into a .csv file."
        )
    return _load_arrays(path)


def _load_arrays(path: Path) -> Queries:
    arrays = read_npz(path)
    stored = take_images(arrays, path)
    images = image_tensor(stored, path)
    labels, names = read_labels(arrays, len(images), path)
    return Queries(
        images,
        None if labels is None else torch.from_numpy(labels),
        names,
        _layout_notes(stored.shape),
    )


def image_tensor(array: NDArray[Any], path: Path) -> Tensor:
    """Return ``(N, C, H, W)`` float32 images in ``[0, 1]``.

    Args:
        array: uint8 pixels, which are divided by 255; bool; or floats in ``[0, 1]``; of shape
            ``(N, H, W)``, ``(N, C, H, W)`` or ``(N, H, W, C)`` with C 1 or 3.
        path: The file of the array, for messages.

    Raises:
        CorruptDataError: The array has another type, shape or range; or has an alpha channel.
    """
    _refuse_other_arrays(array, path)
    refuse_dark(array, path)
    if array.ndim == 3:
        array = array[:, None]
    elif array.shape[1] not in COLORS and array.shape[-1] in COLORS:
        array = np.moveaxis(array, -1, 1)
    images = torch.from_numpy(np.ascontiguousarray(array))
    if images.dtype == torch.uint8:
        return images.float().div_(255)
    images = images.float()
    parts = in_parts(images.flatten(1)) if images.numel() else ()
    missing = sum(int(part.isnan().any(1).sum()) for part in parts)
    if missing:
        raise CorruptDataError(
            f"float images of {path} must be numbers, but {missing} of {len(images)} images hold "
            "NaN. Leave these images out, or fill their pixels in as the model's training did."
        )
    if not all(bool((part.amin() >= 0) & (part.amax() <= 1)) for part in parts):
        raise CorruptDataError(
            f"float images of {path} must lie in [0, 1], but some do not. Divide them by their "
            "range, or store uint8 pixels."
        )
    return images


def _refuse_other_arrays(array: NDArray[Any], path: Path) -> None:
    """Refuse types and shapes that are no images, and RGBA."""
    floating = array.dtype.kind == "f"
    if array.ndim not in (3, 4) or not (floating or array.dtype in (np.uint8, np.bool_)):
        wider = " Divide integers by the largest value that a pixel can have, and store floats."
        raise CorruptDataError(
            f"images of {path} must be uint8, bool or floats in [0, 1], of shape (N, H, W), "
            f"(N, C, H, W) or (N, H, W, C), but are {array.dtype} of shape {array.shape}."
            + wider
            * (array.dtype.kind in "iu")
        )
    # As channels first, they would be as many channels as they have rows.
    if array.ndim == 4 and array.shape[-1] in (2, 4) and array.shape[1] not in (*COLORS, 2, 4):
        raise CorruptDataError(
            f"images of {path} must have 1 or 3 channels if these come last, but have shape "
            f"{array.shape}, the last of which seems to be an alpha channel. Store "
            "`images[..., :-1]`."
        )


def _layout_notes(shape: tuple[int, ...]) -> tuple[str, ...]:
    """Say which axis was taken for the channels, where a shape leaves that open."""
    if len(shape) != 4 or (shape[1] in COLORS) is not (shape[-1] in COLORS):
        return ()
    return (
        f"Images of shape {shape} are read as (N, C, H, W): {shape[1]} channels of {shape[2]} x "
        f"{shape[3]} pixels.",
    )


def _load_folder(
    folder: Path, channels: int | None, size: Size | None, report: ProgressCallback
) -> Queries:
    found = find_images(folder)
    used, notes = look_at_images(found.paths, channels)
    pixels = stack_images(
        found.paths,
        lambda row: decode_image(found.paths[row], used),
        name=str(folder),
        stage=f"decoding {folder.name}",
        size=size,
        report=report,
    )
    return Queries(
        torch.from_numpy(pixels).float() / 255,
        None if found.labels is None else torch.from_numpy(found.labels),
        found.names,
        (*found.notes, *notes),
    )
