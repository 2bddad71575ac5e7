"""Read tables from .csv, .parquet or .npz files: an array per column."""

import codecs
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneway.data.arrays import read_npz
from oneway.data.tables.cells import Table, number_of, plain_column
from oneway.errors import (
    CorruptDataError,
    InvalidOptionError,
    MissingDataError,
)
from oneway.extras import load_extra

SUFFIXES = (".csv", ".parquet", ".npz")

MISSING_WORDS = (
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN"),
    *("<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
)
"""Cells of a .csv file that are missing values: those of ``pandas.read_csv``."""

INDEX = re.compile(r"__index_level_\d+__")
"""Names of the columns in which pandas stores the names of a frame's rows in a .parquet file."""

LEADING_ZERO = r"^\s*[+-]?0\d"
HEXADECIMAL = r"^\s*[+-]?0[xX]"


@dataclass(frozen=True)
class Levels:
    """The categories that a .parquet file declares for a column of texts, as pandas does.

    Attributes:
        categories: All categories, in the order of the file; some may occur in no row.
        ordered: Whether their order has a meaning.
    """

    categories: tuple[str, ...]
    ordered: bool


@dataclass(frozen=True)
class TableFile:
    """A table that was read.

    Attributes:
        columns: ``(N)`` values per column, in the file's order; missing ones are NaN or None.
        levels: The categories that the file declares, by column.
        notes: What was left out or converted: sentences with counts.
        nones: Columns of a frame that hold Python's None for a missing value.
    """

    columns: dict[str, NDArray[Any]]
    levels: Mapping[str, Levels]
    notes: tuple[str, ...] = ()
    nones: Collection[str] = ()


def read_table_file(
    path: Path | Any,
    *,
    texts: Collection[str] = (),
    numbers: Collection[str] = (),
    mixed: Collection[str] = (),
    missing_values: Collection[str] = (),
) -> TableFile:
    """Read a table.

    A .csv file begins with a line of column names. A cell that is empty or says NA, NaN, null,
    None or another word of :data:`~oneway.data.tables.files.MISSING_WORDS` is a missing value,
    unless it is quoted. An .npz file holds an array per column, or a matrix ``x`` whose columns
    are then called ``x.0``, ``x.1``, …

    The names of a pandas frame's rows are left out, since they are no column of the frame; of a
    .parquet file those without a name of their own, unless ``mixed`` names their column. Cells
    such as ``007`` are numbers, as for pandas, and counted.

    Args:
        path: Ends in .csv, .parquet or .npz, in any case of letters. Or a table in memory: a
            DataFrame of pandas or of a library with Arrow's streams, or an array per column by
            name.
        texts: Columns of a .csv file that are text even if all their cells look like numbers.
        numbers: Columns of a .csv file in which every cell must be a number or missing.
        mixed: Columns of a .csv file that may mix numbers and texts, and that are texts if a cell
            begins with a zero as ``007`` does. Any other column is refused if
            half of its cells, or half of its different cells, look like numbers and some are
            none.
        missing_values: Texts that mean a missing value, in any column.

    Raises:
        InvalidOptionError: The file's name has another ending, or ``missing_values`` is a single
            text.
        MissingDataError: The file does not exist.
        CorruptDataError: The file is not such a table, or a column has no name or mixes numbers
            and texts.
        MissingExtraError: pyarrow is not installed, which reads .csv and .parquet.
    """
    if isinstance(missing_values, str):
        raise InvalidOptionError(f"missing values must be in a tuple: ({missing_values!r},).")
    if isinstance(path, Mapping):
        return TableFile(_without(_columns_of(path, Path("the table")), missing_values), {})
    if not isinstance(path, Path):
        pyarrow = load_extra("pyarrow", extra="records", purpose="reading a DataFrame")
        if not hasattr(path, "iloc"):  # of Arrow, or of a library that offers its streams
            return _from_arrow(pyarrow.table(path), Path("the table"), mixed, missing_values)
        return _from_pandas(path, pyarrow, missing_values)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InvalidOptionError(
            f"a table must be a file whose name ends in {', '.join(SUFFIXES)}, but got {path}."
        )
    if suffix == ".npz":
        columns = _columns_of(read_npz(path), path)
        return TableFile(_without(columns, missing_values), {})
    if not path.is_file():
        raise MissingDataError(f"there is no file {path}. Check the path.")
    load_extra("pyarrow", extra="records", purpose=f"reading {suffix} tables")
    if suffix == ".parquet":
        return _from_arrow(_read_parquet(path), path, mixed, missing_values)
    nulls = _null_words(missing_values)
    table = _read_csv(path, texts, nulls)
    _check_names(table.column_names, path)
    table, notes = _without_index(table, mixed, path)
    table, zeros = _with_codes(table, path, nulls, mixed, numbers)
    for name in table.column_names:
        if name not in {*texts, *mixed}:
            must = name in numbers
            column = plain_column(name, table.column(name), str(path), must_be_numbers=must)
            table = table.set_column(table.column_names.index(name), name, column)
    return _columns_in(table, missing_values, notes + zeros)


def _from_pandas(frame: Any, pyarrow: Any, missing_values: Collection[str]) -> TableFile:
    """Return a pandas frame. Columns that Arrow does not know stay as NumPy has them."""
    names = [str(name) for name in frame.columns]
    _check_names(names, Path("the table"))
    columns, levels, nones = {}, {}, []
    for place, name in enumerate(names):
        series = frame.iloc[:, place]
        try:
            known = pyarrow.table({name: pyarrow.Array.from_pandas(series)})
            columns[name], declared = _to_array(known.column(0))
        except (pyarrow.ArrowException, TypeError):  # its text may quote a cell
            columns[name], declared = np.asarray(series), None
        if declared is not None:
            levels[name] = declared
        if series.dtype == object and any(value is None for value in series):
            nones.append(name)
    return TableFile(_without(columns, missing_values), levels, nones=nones)


def _from_arrow(
    table: Any, path: Path, mixed: Collection[str], missing_values: Collection[str]
) -> TableFile:
    """Return a table that keeps the types of its columns, as .parquet files do."""
    _check_names(table.column_names, path)
    table, notes = _without_index(table, mixed, path)
    return _columns_in(table, missing_values, notes)


def _columns_in(table: Any, missing_values: Collection[str], notes: tuple[str, ...]) -> TableFile:
    columns, levels = {}, {}
    for name in table.column_names:
        columns[name], declared = _to_array(table.column(name))
        if declared is not None:
            levels[name] = declared
    return TableFile(_without(columns, missing_values), levels, notes)


def _check_names(names: list[str], path: Path) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise CorruptDataError(
            f"columns of {path} must have names of their own, but "
            f"{', '.join(map(repr, repeated))} stands for more than one."
        )


def _without_index(table: Any, kept: Collection[str], path: Path) -> tuple[Any, tuple[str, ...]]:
    """Return a table without the names of rows that pandas wrote, and a note on them."""
    from pyarrow import types

    names = table.column_names
    index = [name for name in names if INDEX.fullmatch(name) and name not in kept]
    if names[:1] == [""]:
        first = table.column(0)
        if types.is_integer(first.type) and len(first.unique()) == len(first):
            index.append("")
    for place, name in enumerate(names, start=1):
        if not name.strip() and name not in index:
            raise CorruptDataError(
                f"{path} must name each column, but column {place} has no name. Name it, or take "
                "it out. A comma at the end of each line makes such a column."
            )
    if not index:
        return table, ()
    called = ", ".join(repr(name) if name else "the first, without a name" for name in index)
    note = (
        f"row names that pandas wrote are left out, {len(index)} of {len(names)} columns: {called}"
    )
    return table.drop_columns(index), (note,)


def _with_codes(
    table: Any, path: Path, nulls: list[str], mixed: Collection[str], numbers: Collection[str]
) -> tuple[Any, tuple[str, ...]]:
    """Return a table with codes such as 007 as texts where they may be, and notes on the others.

    Arrow's reader takes hexadecimal cells for numbers, too; they are always texts, as for pandas.
    """
    import pyarrow
    from pyarrow import compute

    whole = [
        name
        for name in table.column_names
        if pyarrow.types.is_integer(table.column(name).type) and name not in numbers
    ]
    if not whole:
        return table, ()
    cells = _parsed(path, whole, nulls, _no_row, columns=whole)
    notes = []
    for name in whole:
        column = cells.column(name)
        zeros, hexadecimal = (
            compute.sum(compute.match_substring_regex(column, pattern)).as_py() or 0
            for pattern in (LEADING_ZERO, HEXADECIMAL)
        )
        if hexadecimal or (zeros and name in mixed):
            table = table.set_column(table.column_names.index(name), name, column)
        elif zeros:
            notes.append(
                f"column {name!r}: {zeros} of {len(column)} cells begin with a zero, which is "
                f"lost in numbers, as in pandas; --categorical {name} (categorical=({name!r},)) "
                "keeps them as texts"
            )
    return table, tuple(notes)


def _null_words(missing_values: Collection[str]) -> list[str]:
    spaced = [f"{space}{text}" for text in missing_values for space in ("", " ")]
    return [*MISSING_WORDS, *spaced]


def _no_row(row: Any) -> str:  # noqa: ARG001  Arrow's interface
    return "error"


def _parsed(
    path: Path,
    texts: Collection[str],
    nulls: list[str],
    on_invalid_row: Callable[[Any], str],
    columns: list[str] | None = None,
) -> Any:
    """Return some or all columns of a .csv file as Arrow understands them."""
    import pyarrow
    from pyarrow import csv

    return csv.read_csv(
        path,
        read_options=csv.ReadOptions(use_threads=False),  # only then a row knows its number
        parse_options=csv.ParseOptions(newlines_in_values=True, invalid_row_handler=on_invalid_row),
        convert_options=csv.ConvertOptions(
            null_values=nulls,
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            column_types=dict.fromkeys(texts, pyarrow.string()),
            include_columns=columns,
        ),
    )


def _read_csv(path: Path, texts: Collection[str], nulls: list[str]) -> Any:
    import pyarrow

    ragged: list[Any] = []

    def refuse(row: Any) -> str:
        ragged.append(row)
        return "error"

    _check_utf8(path)
    try:
        table = _parsed(path, texts, nulls, refuse)
    except pyarrow.ArrowException as error:
        # The text of the error may quote cells, so it is dropped.
        where = (
            f"row {ragged[0].number} has {ragged[0].actual_columns} cells, not the "
            f"{ragged[0].expected_columns} of the first"
            if ragged
            else type(error).__name__
        )
        raise CorruptDataError(
            f"{path} is no .csv table with commas between cells ({where})."
        ) from None
    names = table.column_names
    if len(names) == 1 and any(mark in names[0] for mark in ";\t|"):
        raise CorruptDataError(
            f"{path} must have commas between cells, but its first line has none. Save the table "
            "with commas, and with decimal points."
        )
    if any(number_of(name) is not None for name in names):
        raise CorruptDataError(
            f"the first line of {path} must name the columns, but has numbers in it. Put a line "
            "of names before the records."
        )
    return table


def _check_utf8(path: Path) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                if b"\0" in chunk:
                    raise ValueError("a zero byte")
                decoder.decode(chunk)
        decoder.decode(b"", final=True)
    except ValueError:
        raise CorruptDataError(
            f"{path} must be a .csv table in UTF-8, but some of its bytes are not. Save it in "
            "UTF-8, not in Latin-1 or UTF-16."
        ) from None


def _read_parquet(path: Path) -> Any:
    import pyarrow
    from pyarrow import parquet

    try:
        # As one file: a folder's name may look like a column to it.
        return parquet.ParquetFile(path).read().unify_dictionaries()
    except (pyarrow.ArrowException, OSError) as error:
        raise CorruptDataError(f"{path} is no .parquet file ({type(error).__name__}).") from error


def _to_array(column: Any) -> tuple[NDArray[Any], Levels | None]:
    """Return a column of Arrow as an array, and its declared categories if it has some."""
    from pyarrow import float64, types

    levels = None
    if types.is_dictionary(column.type):
        kind = column.type.value_type
        if column.num_chunks and (types.is_string(kind) or types.is_large_string(kind)):
            known = column.chunk(0).dictionary.drop_null().to_pylist()
            levels = Levels(tuple(known), bool(column.type.ordered))
        # Of several chunks with nulls, Arrow's own conversion makes other values.
        column = column.cast(kind)
    if types.is_decimal(column.type):
        column = column.cast(float64())
    array: NDArray[Any] = column.to_numpy()
    return array, levels


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


def _without(table: Table, missing_values: Collection[str]) -> dict[str, NDArray[Any]]:
    """Return the columns with NaN or None in place of the values that mean missing."""
    if not missing_values:
        return dict(table)
    known = {text.strip() for text in missing_values}
    numbers = [number for number in map(number_of, known) if number is not None]
    columns = {}
    for name, values in table.items():
        if values.dtype.kind in "iuf":
            marked = np.isin(values, numbers)
            columns[name] = np.where(marked, np.nan, values) if marked.any() else values
        elif values.dtype.kind in "OUT":
            plain = values.astype(object)
            marked = np.array([isinstance(v, str) and v.strip() in known for v in plain], np.bool_)
            plain[marked] = None
            columns[name] = plain if marked.any() else values
        else:
            columns[name] = values
    return columns
