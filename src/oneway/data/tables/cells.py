"""Say what the cells of a column are: numbers, booleans, texts or missing values."""

import hashlib
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from oneway.checks import first_names
from oneway.errors import CorruptDataError

Table = Mapping[str, NDArray[Any]]
"""Column names in order, and the ``(N)`` values of each column."""

Content = Literal["numbers", "booleans", "texts"]

MOST_WHOLE = 2**53
"""The whole number up to which float64 holds each."""

NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
NEARLY = r"^[+-]?\d{1,3}([.,' ]\d{3})*([.,]\d+)?\s?%?$|^[+-]?\d+([.,]\d+)?\s?%?$"
"""A number with a decimal comma, thousands separators or a percent sign."""


@dataclass(frozen=True)
class Cells:
    """The cells of a column.

    Attributes:
        content: What they are.
        values: ``(N)`` float64 with NaN for missing values; or bool, or objects (bool or str)
            with None for missing values.
        missing: ``(N)`` bool.
        whole: Whether they were stored as integers.
    """

    content: Content
    values: NDArray[Any]
    missing: NDArray[np.bool_]
    whole: bool = False


class CheckedTable(dict[str, Cells]):
    """The cells of each column of a table that :func:`check_table` did not refuse."""


def check_table(table: Table | CheckedTable, where: str) -> CheckedTable:
    """Refuse a table unless every column can be encoded.

    Args:
        table: The table to check; one that was checked is returned as it is.
        where: The name of the table in messages, such as its path.

    Returns:
        The cells of each column.

    Raises:
        CorruptDataError: There is no row or column, columns differ in length, values are
            infinite or whole numbers that float64 cannot tell apart, or a column has no value at
            all or other values than numbers, booleans or texts.
    """
    if isinstance(table, CheckedTable):
        return table
    lengths = {len(values) for values in table.values()}
    if len(lengths) != 1 or lengths == {0}:
        raise CorruptDataError(
            f"{where} must have columns of one length and at least one row, but has "
            f"{len(table)} columns of {_listed(sorted(lengths)) or 'no'} rows."
        )
    with np.errstate(over="ignore"):  # a long double may be infinite in float64
        infinite = {
            name: int(np.isinf(values.astype(np.float64, copy=False)).sum())
            for name, values in table.items()
            if values.dtype.kind == "f"
        }
    if any(infinite.values()):
        raise CorruptDataError(
            f"{where} must have no infinite values, but has of {lengths.pop()} rows in column "
            f"{counted(infinite)}. Put missing values or finite numbers in their place, leave "
            "those rows out, or drop the columns: --drop COLUMN (drop=(...))."
        )
    return CheckedTable({name: _cells_of(name, values, where) for name, values in table.items()})


def cell_numbers(cells: CheckedTable) -> NDArray[np.float32]:
    """Return a number for each cell, by which rows of tables with different ranges are compared.

    Args:
        cells: F columns of N cells, in any order.

    Returns:
        ``(N, F)``, columns in the order of their names, short ones first: numbers; 24 bits of a
        hash of each text and boolean; and the least number of float32 for missing values.
    """
    # So that those of a matrix, x.0 to x.10, stay in order.
    names = sorted(cells, key=lambda name: (len(name), name))
    return np.stack([_numbers_of_cells(cells[name]) for name in names], 1)


def _numbers_of_cells(cells: Cells) -> NDArray[np.float32]:
    limits, values = np.finfo(np.float32), cells.values
    if cells.content != "numbers":
        known = {each: hashlib.sha256(str(each).encode()).digest() for each in set(values.tolist())}
        numbers = {each: int.from_bytes(digest[:3], "big") for each, digest in known.items()}
        values = np.array([numbers[each] for each in values.tolist()], np.float64)
    clipped = np.clip(values, limits.min, limits.max)
    return np.where(cells.missing, limits.min, clipped).astype(np.float32)


def counted(counts: Mapping[str, int]) -> str:
    """Return ``'age' 3, 'ward' 1`` for the columns with a count above 0."""
    return first_names([f"{name!r} {count}" for name, count in counts.items() if count])


def _cells_of(name: str, values: NDArray[Any], where: str) -> Cells:
    kind = values.dtype.kind
    if kind in "iuf":
        _check_whole(name, values, where)
        numbers = values.astype(np.float64)
        missing = np.isnan(numbers)
        cells = Cells("numbers", numbers, missing, whole=kind != "f")
    elif kind == "b":
        cells = Cells("booleans", values, np.zeros(len(values), np.bool_))
    else:
        cells = _cells_of_objects(name, values, where)
    if cells.missing.all():
        raise CorruptDataError(
            f"column {name!r} of {where} has no value in any row. Drop it: --drop {name} "
            f"(drop=({name!r},))."
        )
    return cells


def _check_whole(name: str, values: NDArray[Any], where: str) -> None:
    """Refuse whole numbers of which float64 makes one number, such as identifiers."""
    if values.dtype.kind not in "iu" or not (abs(values.astype(np.float64)) >= MOST_WHOLE).any():
        return
    different, kept = (len(np.unique(each)) for each in (values, values.astype(np.float64)))
    if kept < different:
        raise CorruptDataError(
            f"column {name!r} of {where} holds whole numbers beyond 2**53, which are rounded: of "
            f"{different} different ones {kept} stay different. Drop it if it identifies rows: "
            f"--drop {name} (drop=({name!r},)). Otherwise store texts in a .parquet or .npz file."
        )


def _cells_of_objects(name: str, values: NDArray[Any], where: str) -> Cells:
    plain = values.astype(object)
    missing = np.array([value is None or _is_nan(value) for value in plain], np.bool_)
    present = plain[~missing].tolist()
    plain[missing] = None
    if values.dtype.kind in "OUT":
        if all(isinstance(value, str) for value in present):
            return Cells("texts", plain, missing)
        if all(isinstance(value, bool | np.bool_) for value in present):
            return Cells("booleans", plain, missing)
    raise CorruptDataError(
        f"columns of {where} must hold numbers, booleans or texts, but {name!r} holds "
        f"{values.dtype.name}. Store it as one of these (a date as days since another), or drop "
        f"it: --drop {name} (drop=({name!r},))."
    )


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def number_of(text: str) -> float | None:
    """Return the number that a text is, in digits and with a decimal point; None if it is none."""
    return float(text) if re.match(NUMBER, text.strip()) else None


def plain_column(name: str, column: Any, where: str, *, must_be_numbers: bool) -> Any:
    """Refuse a column of a .csv file that mixes numbers and texts.

    Such a column would silently become categorical, because of a single odd cell.

    Args:
        name: The column's name.
        column: The column of Arrow, as its reader understood it.
        where: The name of the table in messages.
        must_be_numbers: Refuse every text. Otherwise a column is refused if at least half of its
            cells, or of its different cells, are numbers, or nearly are, and some are none.

    Returns:
        The column; one whose texts are all numbers or blank, as float64.

    Raises:
        CorruptDataError: The column mixes numbers and texts. The message shows no cell.
    """
    import pyarrow
    from pyarrow import compute

    if not pyarrow.types.is_string(column.type):
        return column
    cells = compute.utf8_trim_whitespace(column)
    cells = compute.if_else(compute.equal(cells, ""), None, cells)
    present = cells.drop_null()
    is_number = compute.match_substring_regex(present, NUMBER)
    is_nearly = compute.or_(is_number, compute.match_substring_regex(present, NEARLY))
    numbers, nearly = (compute.sum(marks).as_py() or 0 for marks in (is_number, is_nearly))
    if numbers == len(present) and (numbers or must_be_numbers):
        return cells.cast(pyarrow.float64())
    distinct = len(present.unique())
    various = len(present.filter(is_nearly).unique())
    if not must_be_numbers and 2 * nearly < len(present) and 2 * various < distinct:
        return column
    raise CorruptDataError(
        f"column {name!r} of {where} mixes numbers and other cells: of {len(present)} cells that "
        f"are not empty, {numbers} are numbers, {nearly - numbers} have a decimal comma, "
        f"thousands separators or a percent sign, and {len(present) - nearly} are no numbers. "
        "Write numbers with a decimal point and nothing else. Name texts that mean a missing "
        "value: --missing-value TEXT (missing_values=(...)). If the column holds categories: "
        f"--categorical {name} (categorical=({name!r},))."
    )


def _listed(counts: Collection[int]) -> str:
    return ", ".join(map(str, counts))
