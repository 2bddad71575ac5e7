"""Load a table of records, encoded by the auxiliary table's ranges and categories."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oneway.checks import class_name
from oneway.data.tables.cells import MOST_WHOLE, cell_numbers, check_table, counted
from oneway.data.tables.encoding import RecordEncoding, check_names
from oneway.data.tables.files import read_table_file
from oneway.errors import CorruptDataError, InvalidOptionError, UnknownNameError


@dataclass(frozen=True)
class Records:
    """A table that was loaded.

    Attributes:
        encoded: ``(N, D)`` float32 in [0, 1]: the records that inverters learn to reconstruct.
        queries: ``(N, D)`` float32, the same with numbers beyond the auxiliary table's range left
            beyond [0, 1]: decode these to query a model.
        labels: ``(N)`` int64, places in ``class_names``, or None if the table has no label. See
            ``oneway.data.classes.map_labels`` for those of a model.
        class_names: The classes of this table, sorted, as text (``1.0`` is ``"1"``); empty
            without a label.
        encoding: The map from rows to numbers.
        clipped: For each column with clipped numbers in ``encoded``, their count.
        notes: What was left out, cut or converted: sentences with counts.
        values: ``(N, F)`` float32, the same for equal rows of tables with other encodings: see
            :func:`oneway.data.tables.cells.cell_numbers`.
    """

    encoded: Tensor
    queries: Tensor
    labels: Tensor | None
    class_names: tuple[str, ...]
    encoding: RecordEncoding
    clipped: Mapping[str, int]
    notes: tuple[str, ...]
    values: Tensor


def load_records(
    path: Path | Any,
    *,
    label: str | None,
    categorical: Collection[str] = (),
    drop: Collection[str] = (),
    encoding: RecordEncoding | None = None,
    missing_values: Collection[str] = (),
) -> Records:
    """Load a table of records: first the auxiliary one, then others with its encoding.

    Private and test tables have no part in the encoding: an attacker has only the auxiliary
    table, and a range that covers the others would reveal something about them.

    Args:
        path: A .csv, .parquet or .npz file, a DataFrame, or an array per column by name: see
            :func:`oneway.data.tables.read_table_file`.
        label: The column of classes, which is no input. None: the table has no label.
        categorical: Columns of numbers that stand for categories.
        drop: Columns that are no inputs of the model, such as names and identifiers.
        encoding: The encoding of the auxiliary table. None: this is the auxiliary table.
        missing_values: Texts that mean a missing value, such as ``"?"``, beyond those of
            :func:`oneway.data.tables.read_table_file`.

    Raises:
        InvalidOptionError: The file's name has another ending, or no column is left as input.
        UnknownNameError: An option names a column that the table does not have.
        MissingDataError: The file does not exist.
        CorruptDataError: A column cannot be used; the message says which and why.
        MissingExtraError: pyarrow is not installed.
    """
    path = Path(path) if isinstance(path, str) else path
    where = str(path) if isinstance(path, Path) else "the table"
    known_columns = encoding.columns if encoding else ()
    named = [*drop, *([] if label is None else [label])]
    file = read_table_file(
        path,
        texts=[c.name for c in known_columns if c.content == "texts"],
        numbers=[c.name for c in known_columns if c.kind == "numeric"],
        mixed=[*named, *categorical],
        missing_values=missing_values,
    )
    table = file.columns
    check_names(named, table, where)
    inputs = {name: values for name, values in table.items() if name not in named}
    if not inputs:
        raise InvalidOptionError(
            f"{where} has no column left but the label and the dropped ones. Drop fewer."
        )
    labels, names = (None, ()) if label is None else _labels(table[label], label, where)
    cells = check_table(inputs, where)
    if encoding is None:
        encoding = RecordEncoding.fit(
            cells,
            categorical=categorical,
            levels=file.levels,
            nones=file.nones,
            where=where,
        )
    else:
        _check_kinds(categorical, encoding)
    queries = encoding.encode(cells, where)
    encoded = encoding.clip(queries)
    changed = (queries != encoded).sum(0).tolist()
    clipped = {
        column.name: changed[column.start]
        for column in encoding.columns
        if column.kind == "numeric" and changed[column.start]
    }
    notes = (*file.notes, *_notes(encoding, queries, clipped))
    values = torch.from_numpy(cell_numbers(cells))
    return Records(encoded, queries, labels, names, encoding, clipped, notes, values)


def _notes(
    encoding: RecordEncoding, queries: Tensor, clipped: Mapping[str, int]
) -> tuple[str, ...]:
    """Say which columns have missing or clipped values, and how many."""
    missing = {
        column.name: int((queries[:, column.stop - 1] == 1).sum())
        for column in encoding.columns
        if column.missing
    }
    said = (
        ("missing values, encoded as such", missing),
        ("numbers beyond the auxiliary table's range, clipped", dict(clipped)),
    )
    return tuple(
        f"{what}: of {len(queries)} rows in column {counted(counts)}"
        for what, counts in said
        if any(counts.values())
    )


def _check_kinds(categorical: Collection[str], encoding: RecordEncoding) -> None:
    """Refuse to call a column categorical that the auxiliary table's encoding calls numeric."""
    known = [column.name for column in encoding.columns if column.kind == "categorical"]
    for name in categorical:
        UnknownNameError.check("categorical column of the encoding", name, known)


def _labels(values: NDArray[Any], label: str, where: str) -> tuple[Tensor, tuple[str, ...]]:
    """Return class indices, and the names of the classes."""
    # Whole numbers as they are: float64 would make one class of two large ones.
    plain = values if values.dtype.kind in "iu" else _classes(values, label, where)
    values, places = np.unique(plain, return_inverse=True)
    return torch.from_numpy(places.astype(np.int64)), tuple(map(class_name, values))


def _classes(values: NDArray[Any], label: str, where: str) -> NDArray[Any]:
    """Return the ``(N)`` classes of a label column that does not hold integers."""
    cells = check_table({label: values}, where)[label]
    plain = cells.values
    if cells.missing.any():
        raise CorruptDataError(
            f"label column {label!r} of {where} has no class in {int(cells.missing.sum())} of "
            f"{len(plain)} rows. Fill the classes in, or leave these rows out."
        )
    if cells.content == "numbers" and ((plain != np.rint(plain)) | (abs(plain) > MOST_WHOLE)).any():
        raise CorruptDataError(
            f"label column {label!r} of {where} must hold classes: texts, booleans or whole "
            "numbers, but holds fractions, or numbers so large that they are rounded. Put them in "
            "classes first."
        )
    return plain
