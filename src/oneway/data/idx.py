"""Read IDX files, the format of MNIST and its successors."""

import gzip
import hashlib
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneway.errors import CorruptDataError

IDX_TYPES: dict[int, "np.dtype[Any]"] = {0x08: np.dtype(np.uint8), 0x0C: np.dtype(">i4")}
"""Type of a file's numbers, by its third byte."""


def find_idx(folder: Path, name: str) -> Path | None:
    """Return the file of that name, or the packed file, or None."""
    return next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)


def read_idx(path: Path, md5_of_packed: str | None = None) -> NDArray[Any]:
    """Read an IDX file of bytes or int32, packed if its name ends in .gz.

    Args:
        path: The file.
        md5_of_packed: The hash that a packed file must have. None: any.

    Raises:
        CorruptDataError: The file has another format, or another hash.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            got = hashlib.md5(content, usedforsecurity=False).hexdigest()
            if md5_of_packed not in (None, got):
                raise CorruptDataError(
                    f"{path} is not the published file: it has MD5 {got}, not {md5_of_packed}. "
                    "Fetch it again."
                )
            content = gzip.decompress(content)
        (magic,) = struct.unpack(">I", content[:4])
        shape = struct.unpack(f">{magic & 0xFF}I", content[4 : 4 + 4 * (magic & 0xFF)])
        if magic >> 8 not in IDX_TYPES:
            raise ValueError("neither bytes nor int32")
        numbers = np.frombuffer(content, IDX_TYPES[magic >> 8], offset=4 + 4 * len(shape))
        return numbers.reshape(shape)
    except (OSError, EOFError, struct.error, zlib.error, ValueError) as error:
        raise CorruptDataError(
            f"{path} is not an IDX file ({type(error).__name__}). Fetch it again."
        ) from error
