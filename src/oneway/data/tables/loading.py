"""Load a table of records, encoded by the auxiliary table's ranges and categories."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oneway.data.tables.encoding import RecordEncoding, check_names, python_value
from oneway.data.tables.files import check_table, read_table
from oneway.errors import CorruptDataError, InvalidOptionError, UnknownNameError


@dataclass(frozen=True)
class Records:
    """A table that was loaded.

    Attributes:
        encoded: ``(N, D)`` float32 in [0, 1]: the records that inverters learn to reconstruct.
        queries: ``(N, D)`` float32, the same with numbers beyond the auxiliary table's range left
            beyond [0, 1]: decode these to query a model.
        labels: ``(N)`` int64, or None if the table has no label.
        class_names: The names of the classes.
        encoding: The map from rows to numbers.
        clipped: For each column with clipped numbers in ``encoded``, their count.
        notes: What was left out, cut or converted: sentences with counts.
    """

    encoded: Tensor
    queries: Tensor
    labels: Tensor | None
    class_names: tuple[str, ...]
    encoding: RecordEncoding
    clipped: Mapping[str, int]
    notes: tuple[str, ...] = ()


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

    Private and test tables have no part in the encoding: an attacker has only the auxiliary
    table, and a range that covers the others would reveal something about them.

    Args:
        path: A .csv, .parquet or .npz file: see :func:`oneway.data.tables.read_table`.
        label: The column of classes, which is no input. None: the table has no label.
        categorical: Columns of numbers that stand for categories.
        drop: Columns that are no inputs of the model, such as names and identifiers.
        class_names: The classes in the model's order. None: those of the encoding, or else the
            column's values, sorted.
        encoding: The encoding of the auxiliary table. None: this is the auxiliary table.

    Raises:
        InvalidOptionError: The file's name has another ending, or no column is left as input.
        UnknownNameError: An option names a column that the table does not have.
        MissingDataError: The file does not exist.
        CorruptDataError: A column cannot be used; the message says which and why.
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
    check_names(named, table)
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


def _check_kinds(categorical: Collection[str], encoding: RecordEncoding) -> None:
    """Refuse to call a column categorical that the auxiliary table's encoding calls numeric."""
    known = [column.name for column in encoding.columns if column.kind == "categorical"]
    for name in categorical:
        if name not in known:
            raise UnknownNameError("categorical column of the encoding", name, known)


def _labels(
    values: NDArray[Any], label: str, known: Sequence[str], where: str
) -> tuple[Tensor, tuple[str, ...]]:
    """Return class indices, and the names of the classes."""
    content, plain = check_table({label: values}, where)[label]
    if content == "numbers" and (plain != np.rint(plain)).any():
        raise CorruptDataError(
            f"label column {label!r} of {where} must hold classes: texts, booleans or whole "
            "numbers, but holds fractions. Put them in classes first."
        )
    names = tuple(known) or tuple(str(python_value(value)) for value in np.unique(plain))
    places = {name: place for place, name in enumerate(names)}
    labels = np.array([places.get(str(python_value(value)), -1) for value in plain], np.int64)
    unseen = int((labels < 0).sum())
    if unseen:
        raise CorruptDataError(
            f"label column {label!r} of {where} has {unseen} of {len(labels)} rows whose class is "
            f"none of the {len(names)} known ones. Pass the model's classes in its order: "
            "class_names=(...)."
        )
    return torch.from_numpy(labels), names
