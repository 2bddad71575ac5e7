"""Arrays larger than memory: mapped from .npy files, or spooled from Parquet to a temporary file.

A mapped tensor is read from its file where it is used, and the system takes its memory back at
will. It is private: what is written to it never reaches the file.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oneway.errors import CorruptDataError, kind_of
from oneway.extras import load_extra

ROWS_AT_ONCE = 8192
"""Rows of a Parquet file that are in memory at once."""


def map_npy(path: Path) -> NDArray[Any] | None:
    """Return the array of an .npy file, mapped; None if it has to be read: see ``read_npz``.

    Args:
        path: The file. Objects, other byte orders and floats of more than 64 bits are not mapped.
    """
    try:
        # Copy on write: torch wants arrays that may be written.
        with np.errstate(over="raise"):  # a damaged header may claim any shape
            mapped: NDArray[Any] = np.lib.format.open_memmap(path, mode="c")
    except (OSError, ValueError, EOFError, ArithmeticError):
        return None
    return mapped if mapped.dtype.isnative and mapped.dtype.itemsize <= 8 else None


def spool_parquet(path: Path, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Return columns of vectors of a Parquet file as mapped float32 tensors, batch by batch.

    Args:
        path: The file.
        names: Columns of lists of equal length that are read where the file has them, at least one.

    Returns:
        ``(N, W)`` by name. The temporary files go when the tensors do.

    Raises:
        CorruptDataError: The file is no Parquet file or has none of these columns, or a list has
            another length or a gap.
        MissingExtraError: pyarrow is not installed.
    """
    parquet = load_extra("pyarrow.parquet", extra="records", purpose="reading .parquet files")
    arrow = load_extra("pyarrow", extra="records", purpose="reading .parquet files")
    try:
        file = parquet.ParquetFile(path)
    except (OSError, arrow.ArrowInvalid) as error:
        raise CorruptDataError(f"{path} is no .parquet file ({kind_of(error)}).") from error
    with file:
        rows, known = file.metadata.num_rows, file.schema_arrow.names
        if not set(names) & set(known):
            raise CorruptDataError(
                f"{path} must hold a list of numbers for each query in a column named "
                f"{' or '.join(names)}, but has the columns {', '.join(known[:8])}"
                f"{', …' * (len(known) > 8)}. Of a column for each class save `frame.to_numpy()` "
                "as .npy."
            )
        return {name: _spooled(_vectors(file, name, path), rows) for name in names if name in known}


def _vectors(file: Any, name: str, path: Path) -> Iterator[NDArray[np.float32]]:
    """Yield ``(n, W)`` float32 parts of a column of lists."""
    width = None
    for batch in file.iter_batches(ROWS_AT_ONCE, columns=[name]):
        column = batch.column(0)
        flat = column.flatten() if hasattr(column, "flatten") else column
        width = len(flat) // max(1, len(column)) if width is None else width
        lengths = np.diff(column.offsets) if hasattr(column, "offsets") else np.array(width)
        if column.null_count or flat.null_count or not width or bool((lengths != width).any()):
            raise CorruptDataError(
                f"column {name} of {path} must hold lists of numbers, all as long and none missing,"
                " but some differ. Store one list of K numbers for each query."
            )
        yield flat.to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, width)


def _spooled(parts: Iterator[NDArray[np.float32]], rows: int) -> Tensor:
    """Write parts to a temporary file that has no name, and return it, mapped."""
    width = 0
    with tempfile.TemporaryFile() as file:
        for part in parts:
            width = part.shape[1]
            file.write(part.tobytes())
        file.flush()
        if not rows:
            return torch.zeros(0, width)
        return torch.from_numpy(np.memmap(file, np.float32, "r+", shape=(rows, width)))
