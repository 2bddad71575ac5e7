"""Encode rows of a table as numbers in [0, 1], and decode them as a model takes them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oneway.checks import check_images
from oneway.data.tables.cells import Cells, CheckedTable, Content, Table, check_table, counted
from oneway.data.tables.files import Levels
from oneway.errors import (
    CorruptDataError,
    InvalidOptionError,
    InvalidTensorError,
    UnknownNameError,
)
from oneway.extras import load_extra

MOST_DECIMALS = 6
"""Decimals of numbers that come back as they were: float32 holds seven digits."""

Category = str | bool | int | float | None
"""A value of a categorical column; None for a missing one."""


@dataclass(frozen=True)
class Column:
    """The positions of a table's column in an encoded record, and its scale or categories.

    Attributes:
        name: The name of the column.
        kind: ``"numeric"``: a number, and a second one if values are missing: 1 in records without
            a value, whose number is 0.5, and 0 in others. ``"categorical"``: a number per category,
            1 for the record's category and 0 for others.
        start: The first position.
        stop: The position after the last.
        low: The least number in the auxiliary table, which is encoded as 0.
        high: The greatest number there, which is encoded as 1. If it equals ``low``, it is encoded
            as 0.5.
        categories: The categories in the auxiliary table, sorted, and then None if values are
            missing there. Empty for a numeric column.
        whole: Whether the auxiliary table stores integers.
        levels: The categories that a .parquet file declares for the column.
        none: Whether a model is asked with None for a missing category, and not with NaN.
    """

    name: str
    kind: Literal["numeric", "categorical"]
    start: int
    stop: int
    low: float = 0.0
    high: float = 1.0
    categories: tuple[Category, ...] = ()
    whole: bool = False
    levels: Levels | None = None
    none: bool = False

    @property
    def missing(self) -> bool:
        """Whether values are missing in the auxiliary table."""
        if self.kind == "numeric":
            return self.stop - self.start == 2
        return self.categories[-1] is None

    @property
    def span(self) -> float:
        """The difference of two numbers whose codes differ by 1."""
        return self.high - self.low or 1.0

    @property
    def content(self) -> Content:
        """The content that a table must have in this column."""
        if self.kind == "numeric":
            return "numbers"
        return _content_of(self.categories[0])


def _content_of(category: Category) -> Content:
    if isinstance(category, str):
        return "texts"
    return "booleans" if isinstance(category, bool) else "numbers"


@dataclass(frozen=True)
class RecordEncoding:
    """A map from the rows of a table to numbers, and back; fitted on the auxiliary table alone.

    Attributes:
        columns: The columns in the table's order.
    """

    columns: tuple[Column, ...]

    @classmethod
    def fit(
        cls,
        table: Table | CheckedTable,
        *,
        categorical: Collection[str] = (),
        levels: Mapping[str, Levels] | None = None,
        nones: Collection[str] = (),
        where: str = "the table",
    ) -> "RecordEncoding":
        """Take ranges and categories from a table.

        Texts and booleans are categorical; numbers are numeric unless ``categorical`` names them.
        Missing values (NaN, None) get a place of their own in the columns that have some.

        Args:
            table: The attacker's auxiliary table: columns of inputs, without the label.
            categorical: Names of columns of numbers that stand for categories.
            levels: Declared categories by column: see :class:`oneway.data.tables.Levels`.
            nones: Columns that hold None for a missing value, and not NaN.
            where: The name of the table in messages.

        Raises:
            UnknownNameError: ``categorical`` names no column.
            CorruptDataError: The table has infinite values, a column without a value or of another
                kind, one of categories that all differ, or one of numbers farther apart than
                float64 holds.
        """
        check_names(categorical, table, where)
        columns: list[Column] = []
        for name, cells in check_table(table, where).items():
            start = columns[-1].stop if columns else 0
            if cells.content == "numbers" and name not in categorical:
                columns.append(_numeric(name, cells, start, where))
            else:
                column = _categorical(name, cells, start, where)
                declared = (levels or {}).get(name)
                columns.append(replace(column, levels=declared, none=name in nones))
        return cls(tuple(columns))

    @property
    def length(self) -> int:
        """D, the count of numbers that encode a record."""
        return self.columns[-1].stop

    def encode(self, table: Table | CheckedTable, where: str = "the table") -> Tensor:
        """Encode records.

        Args:
            table: The columns of the table that this was fitted on, in any order.
            where: The name of the table in messages.

        Returns:
            ``(N, D)`` float32. A number beyond the auxiliary table's range is beyond [0, 1]:
            see :meth:`clip`.

        Raises:
            CorruptDataError: A column is missing, is too many or has another content; values are
                missing in a column that has none missing in the auxiliary table; or that table
                lacks a category.
        """
        self._check_columns(list(table), where)
        contents = check_table(table, where)
        self._check_missing(contents, where)
        rows = len(next(iter(contents.values())).values)
        encoded = np.zeros((rows, self.length), np.float32)
        for column in self.columns:
            cells = contents[column.name]
            if cells.content != column.content:
                raise CorruptDataError(
                    f"column {column.name!r} of {where} must hold {column.content}, as in the "
                    f"auxiliary table, but holds {cells.content}."
                )
            block = encoded[:, column.start : column.stop]
            if column.kind == "categorical":
                block[np.arange(len(block)), _codes(column, cells, where)] = 1
                continue
            block[:, 0] = _scaled(column, cells, where)
            if column.missing:
                block[:, 1] = cells.missing
        return torch.from_numpy(encoded)

    def clip(self, encoded: Tensor) -> Tensor:
        """Return ``(N, D)`` records with each number in the auxiliary table's range.

        An inverter gives no other numbers, so its reconstructions are compared with these.
        """
        least, most = torch.zeros(self.length), torch.ones(self.length)
        for column in self.columns:
            if column.kind == "numeric" and column.low == column.high:
                least[column.start] = most[column.start] = 0.5
        return encoded.clamp(least.to(encoded), most.to(encoded))

    def decode(
        self,
        encoded: Tensor | NDArray[Any],
        dtype: type[np.float32] | type[np.float64] = np.float64,
    ) -> NDArray[Any]:
        """Return the input of a model that was trained on a matrix.

        Args:
            encoded: ``(N, D)`` floating: encoded records, or reconstructions of them (the largest
                number of a categorical column gives its category).
            dtype: Type of the result.

        Returns:
            ``(N, columns)``, in the table's order. Numbers are those of the table, to the
            precision of float32 (those of few decimals come back exactly); so are categories that
            are numbers, and booleans as 0 and 1. A category that is a text is its index in
            ``categories``, from 0, as in scikit-learn's ``OrdinalEncoder``. Missing values are NaN.

        Raises:
            InvalidTensorError: ``encoded`` has another shape.
        """
        matrix = np.empty((len(encoded), len(self.columns)), dtype)
        for place, (column, values) in enumerate(self._decoded(encoded)):
            if column.kind == "categorical":
                values = _numbers_of(column)[values]
            matrix[:, place] = values
        return matrix

    def decode_frame(self, encoded: Tensor | NDArray[Any]) -> Any:
        """Return the input of a model that was trained on a pandas DataFrame.

        Args:
            encoded: See :meth:`decode`.

        Returns:
            A DataFrame with the auxiliary table's names, order and types. These are integers,
            numbers, booleans, texts, or categories where the .parquet file declares them. A
            missing value is NaN, as ``pandas.read_csv`` reads it, or None where the table was a
            frame that holds None.

        Raises:
            InvalidTensorError: ``encoded`` has another shape.
            MissingExtraError: pandas is not installed.
        """
        pandas = load_extra("pandas", extra="records", purpose="decoding to a frame")
        return pandas.DataFrame(
            {
                column.name: _whole(column, values)
                if column.kind == "numeric"
                else _categories_of(column, values, pandas)
                for column, values in self._decoded(encoded)
            }
        )

    def _decoded(self, encoded: Tensor | NDArray[Any]) -> list[tuple[Column, NDArray[Any]]]:
        """Return each column's numbers, or indices of categories."""
        encoded = torch.as_tensor(encoded)
        check_images(encoded)
        if encoded.shape[1:] != (self.length,):
            raise InvalidTensorError(
                f"encoded records must have shape (N, {self.length}), but got "
                f"{tuple(encoded.shape)}. Pass what `encode` of the same encoding gave."
            )
        plain = encoded.detach().cpu().double().numpy()
        return [(column, _restored(column, plain)) for column in self.columns]

    def _check_columns(self, names: Sequence[str], where: str) -> None:
        expected = [column.name for column in self.columns]
        missing = [name for name in expected if name not in names]
        extra = [name for name in names if name not in expected]
        if missing or extra:
            raise CorruptDataError(
                f"{where} must have the columns of the auxiliary table, but lacks "
                f"{', '.join(map(repr, missing)) or 'none'} and also has "
                f"{', '.join(map(repr, extra)) or 'none'}. Name the label: --label COLUMN "
                "(label=...). Drop what is no input of the model and stands in both tables: --drop "
                "COLUMN (drop=(...)). Take a column that one table lacks out of the other's file."
            )

    def _check_missing(self, contents: Mapping[str, Cells], where: str) -> None:
        holes = {
            column.name: int(contents[column.name].missing.sum())
            for column in self.columns
            if not column.missing
        }
        if any(holes.values()):
            raise CorruptDataError(
                f"{where} has missing values (NaN, null) in columns where the auxiliary table has "
                f"none: of {len(next(iter(contents.values())).missing)} rows in column "
                f"{counted(holes)}. Fill them in as the model's own training did, leave those "
                "rows out, or drop the columns: --drop COLUMN (drop=(...))."
            )


def check_names(names: Collection[str], table: Collection[str], where: str) -> None:
    """Refuse names of columns that a table does not have.

    Raises:
        InvalidOptionError: ``names`` is a single text.
        UnknownNameError: A name is not a column.
    """
    if isinstance(names, str):
        raise InvalidOptionError(f"columns must be named in a tuple, such as ({names!r},).")
    for name in names:
        UnknownNameError.check(f"column of {where}", name, table)


def _numeric(name: str, cells: Cells, start: int, where: str) -> Column:
    values = cells.values[~cells.missing]
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(high - low):
        raise CorruptDataError(
            f"column {name!r} of {where} holds numbers farther apart than float64 holds. "
            "Scale it, or take its logarithm."
        )
    stop = start + 1 + bool(cells.missing.any())
    return Column(name, "numeric", start, stop, low, high, whole=cells.whole)


def _categorical(name: str, cells: Cells, start: int, where: str) -> Column:
    values = cells.values[~cells.missing]
    categories = tuple(python_value(value) for value in np.unique(values))
    # Two booleans may differ in a table of two rows.
    if len(categories) == len(values) > 2:
        raise CorruptDataError(
            f"column {name!r} of {where} has another category in each of its {len(values)} rows, "
            f"so that it only identifies records. Drop it: --drop {name} (drop=({name!r},))."
        )
    if cells.missing.any():
        categories = (*categories, None)
    stop = start + len(categories)
    return Column(name, "categorical", start, stop, categories=categories, whole=cells.whole)


def python_value(value: Any) -> Category:
    """Return a value of a column as a Python object, whole numbers as int."""
    if isinstance(value, str | np.str_):
        return str(value)
    if isinstance(value, bool | np.bool_):
        return bool(value)
    return int(value) if value == int(value) else float(value)


def _scaled(column: Column, cells: Cells, where: str) -> NDArray[np.float32]:
    middle = 0.5 if column.low == column.high else 0.0
    with np.errstate(over="ignore"):
        scaled = (middle + (cells.values - column.low) / column.span).astype(np.float32)
    scaled[cells.missing] = 0.5
    beyond = int((~np.isfinite(scaled)).sum())
    if beyond:
        raise CorruptDataError(
            f"column {column.name!r} of {where} has {beyond} numbers so far beyond the range of "
            "the auxiliary table that float32 cannot hold them in its units. Check that both "
            "tables have the same units."
        )
    return scaled


def _codes(column: Column, cells: Cells, where: str) -> NDArray[np.int64]:
    places = {category: place for place, category in enumerate(column.categories)}
    values = cells.values.astype(object)
    values[cells.missing] = None
    codes = np.array([places.get(value, -1) for value in values.tolist()], np.int64)
    unseen = int((codes < 0).sum())
    if unseen:
        raise CorruptDataError(
            f"column {column.name!r} of {where} has {unseen} of {len(codes)} rows whose category "
            f"is none of the {len(places)} of the auxiliary table. Merge rare categories in both "
            "tables, or leave these rows out."
        )
    return codes


def _restored(column: Column, encoded: NDArray[np.float64]) -> NDArray[Any]:
    """Return a column's numbers, or indices of categories, from encoded records."""
    if column.kind == "categorical":
        places: NDArray[Any] = encoded[:, column.start : column.stop].argmax(1)
        return places
    codes = encoded[:, column.start]
    steps = codes - 0.5 if column.low == column.high else codes
    numbers: NDArray[np.float64] = column.low + steps * column.span
    # Of numbers that float32 cannot tell apart, take the one with the fewest decimals: thresholds
    # of trees, one-hot codes and laboratory values are 0.3 more often than close to it.
    doubt = np.abs(codes) * column.span * 2.0**-23 + np.abs(numbers) * 2.0**-50
    exact = numbers
    for decimals in reversed(range(MOST_DECIMALS + 1)):
        with np.errstate(over="ignore", invalid="ignore"):
            rounded = np.round(exact, decimals)
        numbers = np.where(np.abs(exact - rounded) <= doubt, rounded, numbers)
    return (
        np.where(encoded[:, column.start + 1] > 0.5, np.nan, numbers) if column.missing else numbers
    )


def _numbers_of(column: Column) -> NDArray[np.float64]:
    """Return a number for each category: its value, or for a text its place; NaN for None."""
    is_text = column.content == "texts"
    return np.array(
        [
            np.nan if category is None else place if is_text else category
            for place, category in enumerate(column.categories)
        ],
        np.float64,
    )


def _whole(column: Column, numbers: NDArray[np.float64]) -> NDArray[Any]:
    """Return numbers as integers, if the table stores integers and all of these are whole."""
    if column.whole and (numbers == np.rint(numbers)).all() and (np.abs(numbers) < 2.0**63).all():
        return numbers.astype(np.int64)
    return numbers


def _categories_of(column: Column, places: NDArray[Any], pandas: Any) -> Any:
    """Return a column's categories at ``(N)`` places in pandas' own type of the table's."""
    if column.none:  # of all types, objects alone hold None
        categories = np.array(column.categories, np.object_)
        return pandas.Series(categories[places], dtype=np.object_)
    values = [np.nan if category is None else category for category in column.categories]
    if column.levels is not None:
        kind = pandas.CategoricalDtype(column.levels.categories, ordered=column.levels.ordered)
        return pandas.Categorical(values, dtype=kind)[places]
    stored = np.float64 if column.content == "numbers" and not column.whole else None
    return pandas.Series(values, dtype=stored).array[places]
