"""Tabular records as an attack sees them: numbers in [0, 1], and what the model takes of them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oneway.checks import check_images
from oneway.data.tables import Content, Table, check_table, read_table
from oneway.errors import (
    CorruptDataError,
    InvalidOptionError,
    InvalidTensorError,
    UnknownNameError,
)
from oneway.extras import load_extra

Category = str | bool | int | float


@dataclass(frozen=True)
class Column:
    """Where one column of a table stands in an encoded record, and how.

    Attributes:
        name: The table's.
        kind: ``"numeric"``: one number; ``"categorical"``: one per category, 1 for the record's
            own and 0 for others.
        start: Its first place.
        stop: The place after its last.
        low: The auxiliary table's least number, which is encoded as 0.
        high: Its greatest, encoded as 1. If it is ``low``, too, both are encoded as 0.5.
        categories: The auxiliary table's, sorted. Empty for a numeric column.
    """

    name: str
    kind: Literal["numeric", "categorical"]
    start: int
    stop: int
    low: float = 0.0
    high: float = 1.0
    categories: tuple[Category, ...] = ()

    @property
    def span(self) -> float:
        """How far apart two numbers are whose codes are 1 apart."""
        return self.high - self.low or 1.0

    @property
    def content(self) -> Content:
        """What the table must hold in this column."""
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
        columns: In the table's order.
        class_names: The label's values in that table, sorted; empty if it has no label.
    """

    columns: tuple[Column, ...]
    class_names: tuple[str, ...] = ()

    @classmethod
    def fit(
        cls,
        table: Table,
        *,
        categorical: Collection[str] = (),
        class_names: Sequence[str] = (),
        where: str = "the table",
    ) -> "RecordEncoding":
        """Take ranges and categories from a table.

        Texts and booleans are categorical, numbers are numeric unless said otherwise.

        Args:
            table: The attacker's own: columns of inputs, without label.
            categorical: Names of columns of numbers that stand for categories.
            class_names: What the classes are called, for whoever loads another table.
            where: What messages call the table.

        Raises:
            UnknownNameError: ``categorical`` names no column.
            CorruptDataError: The table has missing values, a column of another kind, one of
                categories that all differ, or one of numbers farther apart than float64 holds.
        """
        _check_names(categorical, table)
        columns: list[Column] = []
        for name, (content, values) in check_table(table, where).items():
            start = columns[-1].stop if columns else 0
            if content == "numbers" and name not in categorical:
                columns.append(_numeric(name, values, start, where))
            else:
                columns.append(_categorical(name, values, start, where))
        return cls(tuple(columns), tuple(class_names))

    @property
    def length(self) -> int:
        """D, how many numbers encode a record."""
        return self.columns[-1].stop

    def encode(self, table: Table, where: str = "the table") -> Tensor:
        """Encode records.

        Args:
            table: The columns of the table that this was fitted on, in its order.
            where: What messages call it.

        Returns:
            ``(N, D)`` float32. A number beyond the auxiliary table's range is beyond [0, 1]:
            see :meth:`clip`.

        Raises:
            CorruptDataError: Columns are missing, are too many, stand in another order or hold
                something else; values are missing; or a category is none of the auxiliary's.
        """
        self._check_columns(list(table), where)
        contents = check_table(table, where)
        encoded = np.zeros((len(next(iter(table.values()))), self.length), np.float32)
        for column in self.columns:
            content, values = contents[column.name]
            if content != column.content:
                raise CorruptDataError(
                    f"column {column.name!r} of {where} must hold {column.content}, as in the "
                    f"auxiliary table, but holds {content}."
                )
            place = encoded[:, column.start : column.stop]
            if column.kind == "numeric":
                place[:, 0] = _scaled(column, values, where)
            else:
                place[np.arange(len(values)), _codes(column, values, where)] = 1
        return torch.from_numpy(encoded)

    def clip(self, encoded: Tensor) -> Tensor:
        """Return ``(N, D)`` records with each number in the auxiliary table's range.

        An inverter can say no other; so these are what its reconstructions are compared with.
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
        """Return what a model takes that was trained on a matrix.

        Args:
            encoded: ``(N, D)`` floating: encoded records, or reconstructions of them (the
                largest number of a categorical column then is its category).
            dtype: Of the result.

        Returns:
            ``(N, columns)``, in the table's order. Numbers are those of the table, to the
            precision of float32 (whole ones come back whole); so are categories that are
            numbers, and booleans as 0 and 1. A category that is a text is its place among
            ``categories``, from 0, which is also what scikit-learn's ``OrdinalEncoder`` makes
            of it.

        Raises:
            InvalidTensorError: ``encoded`` has another shape.
        """
        matrix = np.empty((len(encoded), len(self.columns)), dtype)
        for place, (column, values) in enumerate(self._decoded(encoded)):
            if column.kind == "categorical" and column.content != "texts":
                values = np.array(column.categories, np.float64)[values]
            matrix[:, place] = values
        return matrix

    def decode_frame(self, encoded: Tensor | NDArray[Any]) -> Any:
        """Return what a model takes that was trained on a pandas DataFrame.

        Args:
            encoded: See :meth:`decode`.

        Returns:
            A DataFrame with the table's names and order. Categories are those of the table.

        Raises:
            InvalidTensorError: ``encoded`` has another shape.
            MissingExtraError: pandas is not installed.
        """
        pandas = load_extra("pandas", extra="records", purpose="decoding to a frame")
        return pandas.DataFrame(
            {
                column.name: values
                if column.kind == "numeric"
                else pandas.Series(column.categories)[values].array
                for column, values in self._decoded(encoded)
            }
        )

    def _decoded(self, encoded: Tensor | NDArray[Any]) -> list[tuple[Column, NDArray[Any]]]:
        """Return each column's numbers, or places of categories."""
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
                f"{', '.join(map(repr, missing)) or 'none'} and has besides "
                f"{', '.join(map(repr, extra)) or 'none'}. Name the label, and drop what is no "
                "input of the model, in both tables alike."
            )
        if list(names) != expected:
            place = next(i for i, name in enumerate(names) if name != expected[i])
            raise CorruptDataError(
                f"{where} must have its columns in the order of the auxiliary table, but column "
                f"{place} is {names[place]!r}, not {expected[place]!r}. Write them in one order: "
                "the model tells them apart by it."
            )


@dataclass(frozen=True)
class Records:
    """A table that was loaded.

    Attributes:
        encoded: ``(N, D)`` float32 in [0, 1]: what inverters learn, and are compared with.
        queries: ``(N, D)`` the same but for numbers beyond the auxiliary table's range, which
            are here beyond [0, 1]: decode these to ask a model about the very records.
        labels: ``(N)`` int64, or None if the table has no label.
        class_names: What the labels stand for.
        encoding: How rows became numbers.
        clipped: How many numbers of a column ``encoded`` holds clipped, for each such column.
    """

    encoded: Tensor
    queries: Tensor
    labels: Tensor | None
    class_names: tuple[str, ...]
    encoding: RecordEncoding
    clipped: Mapping[str, int]


def load_records(
    path: Path,
    *,
    label: str | None,
    categorical: Collection[str] = (),
    drop: Collection[str] = (),
    class_names: Sequence[str] | None = None,
    encoding: RecordEncoding | None = None,
) -> Records:
    """Load a table of records: first the auxiliary one, then others with its encoding.

    What a private or test table holds has no part in the encoding: an attacker has only the
    auxiliary table, and a range that covers the others would tell about them.

    Args:
        path: A .csv, .parquet or .npz file: see :func:`oneway.data.tables.read_table`.
        label: The column of classes, which is no input. None: there is none.
        categorical: Columns of numbers that stand for categories.
        drop: Columns that are no inputs of the model, such as names and identifiers.
        class_names: The classes in the model's order. None: the encoding's, or if it has none
            the column's values, sorted.
        encoding: That of the auxiliary table. None: this is the auxiliary table.

    Raises:
        InvalidOptionError: The file's name ends otherwise, or nothing is left as input.
        UnknownNameError: An option names no column.
        MissingDataError: The file is not there.
        CorruptDataError: It cannot be used as it is; the message says which column, and why.
        MissingExtraError: pyarrow is not installed.
    """
    path = Path(path)
    texts = (
        [column.name for column in encoding.columns if column.content == "texts"]
        if encoding
        else []
    )
    table = read_table(path, texts=texts)
    where = str(path)
    named = [*drop, *([] if label is None else [label])]
    _check_names(named, table)
    inputs = {name: values for name, values in table.items() if name not in named}
    if not inputs:
        raise InvalidOptionError(
            f"{where} has no column left besides the label and those dropped. Drop fewer."
        )
    known = class_names or (encoding.class_names if encoding else ())
    labels, names = None, tuple(known)
    if label is not None:
        labels, names = _labels(table[label], label, known, where)
    if encoding is None:
        encoding = RecordEncoding.fit(
            inputs, categorical=categorical, class_names=names, where=where
        )
    else:
        _check_kinds(categorical, encoding)
    queries = encoding.encode(inputs, where)
    encoded = encoding.clip(queries)
    changed = (queries != encoded).sum(0).tolist()
    clipped = {
        column.name: changed[column.start]
        for column in encoding.columns
        if column.kind == "numeric" and changed[column.start]
    }
    return Records(encoded, queries, labels, names, encoding, clipped)


def _check_names(names: Collection[str], table: Table) -> None:
    if isinstance(names, str):
        raise InvalidOptionError(f"columns must be named in a tuple, such as ({names!r},).")
    for name in names:
        if name not in table:
            raise UnknownNameError("column", name, table)


def _check_kinds(categorical: Collection[str], encoding: RecordEncoding) -> None:
    """Refuse to call a column categorical that the auxiliary table's encoding calls numeric."""
    known = [column.name for column in encoding.columns if column.kind == "categorical"]
    for name in categorical:
        if name not in known:
            raise UnknownNameError("categorical column of the encoding", name, known)


def _numeric(name: str, values: NDArray[Any], start: int, where: str) -> Column:
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(high - low):
        raise CorruptDataError(
            f"column {name!r} of {where} holds numbers farther apart than float64 can say. "
            "Scale it, or take its logarithm."
        )
    return Column(name, "numeric", start, start + 1, low, high)


def _categorical(name: str, values: NDArray[Any], start: int, where: str) -> Column:
    categories = tuple(_category(value) for value in np.unique(values))
    # Two booleans may differ in a table of two rows.
    if len(categories) == len(values) > 2:
        raise CorruptDataError(
            f"column {name!r} of {where} has another category in each of its {len(values)} rows, "
            f"so that it identifies records and tells of none. Drop it: drop=({name!r},)."
        )
    return Column(name, "categorical", start, start + len(categories), categories=categories)


def _category(value: Any) -> Category:
    """Return a value of a column as Python's own, whole numbers as int."""
    if isinstance(value, str | np.str_):
        return str(value)
    if isinstance(value, bool | np.bool_):
        return bool(value)
    return int(value) if value == int(value) else float(value)


def _scaled(column: Column, values: NDArray[Any], where: str) -> NDArray[np.float32]:
    middle = 0.5 if column.low == column.high else 0.0
    with np.errstate(over="ignore"):
        scaled = (middle + (values - column.low) / column.span).astype(np.float32)
    beyond = int((~np.isfinite(scaled)).sum())
    if beyond:
        raise CorruptDataError(
            f"column {column.name!r} of {where} has {beyond} numbers so far beyond the range of "
            "the auxiliary table that float32 cannot hold them in its units. Check that both "
            "tables have the same units."
        )
    return scaled


def _codes(column: Column, values: NDArray[Any], where: str) -> NDArray[np.int64]:
    places = {category: place for place, category in enumerate(column.categories)}
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
    """Return a column's numbers, or places of categories, from encoded records."""
    if column.kind == "categorical":
        places: NDArray[Any] = encoded[:, column.start : column.stop].argmax(1)
        return places
    codes = encoded[:, column.start]
    steps = codes - 0.5 if column.low == column.high else codes
    numbers: NDArray[np.float64] = column.low + steps * column.span
    # Where float32 cannot tell a number from a whole one, it is taken for that one: thresholds
    # of trees, and codes such as a month, are whole more often than next to it.
    doubt = np.abs(codes) * column.span * 2.0**-23 + np.abs(numbers) * 2.0**-50
    whole = np.rint(numbers)
    return np.where(np.abs(numbers - whole) <= doubt, whole, numbers)


def _labels(
    values: NDArray[Any], label: str, known: Sequence[str], where: str
) -> tuple[Tensor, tuple[str, ...]]:
    """Return class indices, and what they stand for."""
    content, plain = check_table({label: values}, where)[label]
    if content == "numbers" and (plain != np.rint(plain)).any():
        raise CorruptDataError(
            f"label column {label!r} of {where} must hold classes: texts, booleans or whole "
            "numbers, but holds fractions. Put them in classes first."
        )
    names = tuple(known) or tuple(str(_category(value)) for value in np.unique(plain))
    places = {name: place for place, name in enumerate(names)}
    labels = np.array([places.get(str(_category(value)), -1) for value in plain], np.int64)
    unseen = int((labels < 0).sum())
    if unseen:
        raise CorruptDataError(
            f"label column {label!r} of {where} has {unseen} of {len(labels)} rows whose class is "
            f"none of the {len(names)} known ones. Pass the model's classes in its order: "
            "class_names=(...)."
        )
    return torch.from_numpy(labels), names
