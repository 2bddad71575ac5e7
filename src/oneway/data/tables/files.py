"""Read tables from .csv, .parquet or .npz files: an array per column."""

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from oneway.data.arrays import read_npz
from oneway.errors import (
    CorruptDataError,
    InvalidOptionError,
    MissingDataError,
)
from oneway.extras import load_extra

Table = Mapping[str, NDArray[Any]]
"""Column names in order, and the ``(N)`` values of each column."""

Content = Literal["numbers", "booleans", "texts"]

SUFFIXES = (".csv", ".parquet", ".npz")


def read_table(path: Path, *, texts: Collection[str] = ()) -> dict[str, NDArray[Any]]:
    """Read a table.

    A .csv file begins with a line of column names; a cell that is empty or says NA, NaN or null
    is a missing value, unless it is quoted. An .npz file holds an array per column, or a matrix
    ``x`` whose columns are then called ``x.0``, ``x.1``, …

    Args:
        path: Ends in .csv, .parquet or .npz.
        texts: Columns of a .csv file that are text even if all their cells look like numbers.

    Returns:
        ``(N)`` values per column, in the file's order.

    Raises:
        InvalidOptionError: The file's name has another ending.
        MissingDataError: The file does not exist.
        CorruptDataError: The file is not such a table.
        MissingExtraError: pyarrow is not installed, which reads .csv and .parquet.
    """
    if path.suffix not in SUFFIXES:
        raise InvalidOptionError(
            f"a table must be a file whose name ends in {', '.join(SUFFIXES)}, but got {path}."
        )
    if path.suffix == ".npz":
        return _columns_of(read_npz(path), path)
    if not path.is_file():
        raise MissingDataError(f"there is no file {path}.")
    load_extra("pyarrow", extra="records", purpose=f"reading {path.suffix} tables")
    table = _read_csv(path, texts) if path.suffix == ".csv" else _read_parquet(path)
    names = table.column_names
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise CorruptDataError(
            f"columns of {path} must have names of their own, but {_quoted(repeated)} "
            "stands for more than one."
        )
    return {name: _to_array(table.column(name)) for name in names}


def _read_csv(path: Path, texts: Collection[str]) -> Any:
    import pyarrow
    from pyarrow import csv

    ragged: list[Any] = []

    def refuse(row: Any) -> str:
        ragged.append(row)
        return "error"

    try:
        table = csv.read_csv(
            path,
            read_options=csv.ReadOptions(use_threads=False),  # only then a row knows its number
            parse_options=csv.ParseOptions(newlines_in_values=True, invalid_row_handler=refuse),
            convert_options=csv.ConvertOptions(
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
                column_types=dict.fromkeys(texts, pyarrow.string()),
            ),
        )
    except pyarrow.ArrowException as error:
        # The text of the error may quote cells, so it is dropped.
        where = (
            f"row {ragged[0].number} has {ragged[0].actual_columns} cells, not the "
            f"{ragged[0].expected_columns} of the first"
            if ragged
            else type(error).__name__
        )
        raise CorruptDataError(
            f"{path} is no .csv table in UTF-8 with commas between cells ({where})."
        ) from None
    if any(_is_number(name) for name in table.column_names):
        raise CorruptDataError(
            f"the first line of {path} must name the columns, but has numbers in it. Put a line "
            "of names before the records."
        )
    return table


def _read_parquet(path: Path) -> Any:
    import pyarrow
    from pyarrow import parquet

    try:
        # As one file: a folder's name may look like a column to it.
        return parquet.ParquetFile(path).read()
    except (pyarrow.ArrowException, OSError) as error:
        raise CorruptDataError(f"{path} is no .parquet file ({type(error).__name__}).") from error


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _to_array(column: Any) -> NDArray[Any]:
    """Return a column of Arrow as an array; missing values become NaN or None."""
    from pyarrow import float64, types

    if types.is_dictionary(column.type):
        # Of several chunks with nulls, Arrow's own conversion makes other values.
        column = column.cast(column.type.value_type)
    if types.is_decimal(column.type):
        column = column.cast(float64())
    array: NDArray[Any] = column.to_numpy()
    return array


def _columns_of(arrays: Mapping[str, NDArray[Any]], path: Path) -> dict[str, NDArray[Any]]:
    columns: dict[str, NDArray[Any]] = {}
    for name, array in arrays.items():
        if array.ndim not in (1, 2):
            raise CorruptDataError(
                f"arrays of {path} must be columns of shape (N,) or matrices of shape (N, M), but "
                f"{name!r} has {array.shape}."
            )
        if array.ndim == 1:
            columns[name] = array
        else:
            columns |= {f"{name}.{place}": column for place, column in enumerate(array.T)}
    return columns


def check_table(table: Table, where: str) -> dict[str, tuple[Content, NDArray[Any]]]:
    """Refuse a table unless every column is complete and can be encoded.

    Args:
        table: The table to check.
        where: The name of the table in messages, such as its path.

    Returns:
        The content of each column, and its values: ``(N)`` float64, bool, or str objects.

    Raises:
        CorruptDataError: There is no row or column, columns differ in length, or values are
            missing, infinite, or neither numbers, booleans nor texts.
    """
    lengths = {len(values) for values in table.values()}
    if len(lengths) != 1 or lengths == {0}:
        raise CorruptDataError(
            f"{where} must have columns of one length and at least one row, but has "
            f"{len(table)} columns of {_listed(sorted(lengths)) or 'no'} rows."
        )
    missing = {name: int(_is_missing(values).sum()) for name, values in table.items()}
    holes = [f"{name!r} {count}" for name, count in missing.items() if count]
    if holes:
        raise CorruptDataError(
            f"{where} must have no missing (NaN, null) or infinite values, but has of "
            f"{lengths.pop()} rows in column {', '.join(holes)}. Fill them in as the model's own "
            "training did, leave those rows out, or drop the columns: drop=(...)."
        )
    return {name: _content_of(name, values, where) for name, values in table.items()}


def _is_missing(values: NDArray[Any]) -> NDArray[np.bool_]:
    if values.dtype.kind == "f":
        finite: NDArray[np.bool_] = np.isfinite(values)
        return ~finite
    if values.dtype.kind == "O":
        return np.array([value is None or _is_nan(value) for value in values], np.bool_)
    return np.zeros(len(values), np.bool_)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _content_of(name: str, values: NDArray[Any], where: str) -> tuple[Content, NDArray[Any]]:
    kind = values.dtype.kind
    if kind in "iuf":
        return "numbers", values.astype(np.float64)
    if kind == "b":
        return "booleans", values
    if kind in "UT" or (kind == "O" and all(isinstance(value, str) for value in values)):
        return "texts", values.astype(object)
    raise CorruptDataError(
        f"columns of {where} must hold numbers, booleans or texts, but {name!r} holds "
        f"{values.dtype.name}. Store it as one of these (a date as days since another), or drop "
        f"it: drop=({name!r},)."
    )


def _quoted(names: Collection[str]) -> str:
    return ", ".join(map(repr, names))


def _listed(counts: Collection[int]) -> str:
    return ", ".join(map(str, counts))
