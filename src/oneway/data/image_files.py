"""Image files: which are read, what is refused, and how they become pixels."""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneway.data.images import Pixels, ProgressCallback, Size, scale_images
from oneway.errors import CorruptDataError, InvalidOptionError, MissingDataError, kind_of
from oneway.extras import load_extra

FORMATS = ("BMP", "DIB", "GIF", "JPEG", "PCX", "PNG", "PPM", "QOI", "TGA", "TIFF", "WEBP")
"""Pillow's names of the formats that are read: pictures whose bits per value a header says."""

ORIENTATION = 0x0112
"""The EXIF tag that says how to turn a photo before it is shown."""

BITS_PER_SAMPLE = 258
"""The TIFF tag of that name."""


@dataclass(frozen=True)
class ImageHeader:
    """What an image file says before its pixels are decoded.

    Attributes:
        gray: Whether the image has no colors.
        alpha: Whether it has an alpha channel or a transparent color.
        turned: Whether EXIF says to turn the stored pixels.
        views: Number of photos in the file; more than 1 for photos with previews or depth.
    """

    gray: bool
    alpha: bool
    turned: bool
    views: int


def image_extensions() -> frozenset[str]:
    """Return the lower-case extensions of the files that are read, as Pillow registers them.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    registered = _pillow().registered_extensions()
    return frozenset(extension for extension, name in registered.items() if name in FORMATS)


def read_header(path: Path) -> ImageHeader:
    """Read what an image file says before its pixels are decoded.

    Raises:
        CorruptDataError: The file is not one image of 8 bits per value.
        MissingExtraError: Pillow is not installed.
    """
    with _opened(path, None) as image:
        return ImageHeader(
            image.mode in ("1", "L", "LA", "La"),
            image.mode[-1] in "Aa" or "transparency" in image.info,
            _is_turned(image),
            getattr(image, "n_frames", 1) if image.format == "MPO" else 1,
        )


def decode_image(path: Path, channels: int, content: bytes | None = None) -> Pixels:
    """Decode an image file. An alpha channel is dropped, and pixels are taken as they are stored.

    Args:
        path: The file.
        channels: 1: gray, by the weights of ITU-R 601 if the image has colors. 3: in color.
        content: The file's bytes, if they are read already.

    Returns:
        ``(channels, H, W)`` uint8.

    Raises:
        CorruptDataError: The file is not one image of 8 bits per value.
        MissingExtraError: Pillow is not installed.
    """
    with _opened(path, content) as image:
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # else Pillow warns
        pixels: NDArray[Any] = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return pixels[None] if channels == 1 else np.moveaxis(pixels, -1, 0)


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
        raise MissingDataError(f"{name} has no images. {accepted()}")
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
                f"{image.shape[1:]}. Scale all to one: --size HxW (size=(...), of a data set "
                "side=...)."
            )
        stacked[row] = image
        if (row + 1) % every == 0 or row + 1 == len(paths):
            report(stage, (row + 1) / len(paths))
    return stacked


def accepted() -> str:
    """Return the sentence that says which files are read."""
    return f"Files that are read end in {', '.join(sorted(image_extensions()))}."


def _pillow() -> Any:
    return load_extra("PIL.Image", extra="images", purpose="decoding images", package="pillow")


@contextmanager
def _opened(path: Path, content: bytes | None) -> Iterator[Any]:
    """Open an image file that is one image of 8 bits per value; refuse any other."""
    pillow = _pillow()
    try:
        pillow.init()
        formats = [name for name in FORMATS if name in pillow.OPEN]  # a build may lack some
        source = io.BytesIO(content) if content is not None else path
        with pillow.open(source, formats=formats) as image:
            _refuse_frames(path, image)
            _refuse_deep(path, image)
            yield image
    except (CorruptDataError, MemoryError):
        raise
    # Decoders of damaged files raise whatever their code meets.
    except Exception as error:
        raise CorruptDataError(
            f"{path} is not an image that can be decoded ({kind_of(error)}). Fetch it again or "
            "remove it."
        ) from error


def _refuse_frames(path: Path, image: Any) -> None:
    """Refuse animations and pages, of which only the first would be seen."""
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise CorruptDataError(
            f"{path} must be one image, but has {image.n_frames} frames or pages. Save those that "
            "you want as files of their own."
        )


def _refuse_deep(path: Path, image: Any) -> None:
    """Refuse more than 8 bits per value, of which only 8 would be kept."""
    codec, layout = (image.tile[0][0], image.tile[0][3]) if image.tile else ("", "")
    bits = 8
    if image.format == "TIFF":
        bits = max(image.tag_v2.get(BITS_PER_SAMPLE, (1,)))
    elif image.format == "PNG" and ";16" in str(layout):
        bits = 16
    elif image.format == "PPM" and codec.startswith("ppm") and not isinstance(layout, str):
        bits = int(layout[1]).bit_length()  # of the largest value
    if bits > 8 or image.mode[0] in "IF":
        raise CorruptDataError(
            f"{path} must have 8 bits per value, but has more (Pillow's mode {image.mode}). "
            "Convert it."
        )


def _is_turned(image: Any) -> bool:
    """Say whether EXIF says to turn the pixels; Pillow itself turns those of TIFF."""
    if image.format == "TIFF":
        return False
    try:
        return image.getexif().get(ORIENTATION, 1) in range(2, 9)
    except Exception:  # noqa: BLE001  damaged EXIF says nothing, and the pixels may be sound
        return False
