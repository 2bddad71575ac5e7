"""Data as people have it: files, folders, tables, arrays, frames and data sets, as queries."""

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oneway.contracts import FrameTarget, Target
from oneway.data import (
    ProgressCallback,
    RecordEncoding,
    image_hashes,
    image_tensor,
    load_queries,
    load_records,
    no_progress,
)
from oneway.data.arrays import read_labels, read_npz
from oneway.errors import InvalidOptionError, InvalidTensorError
from oneway.targets import TorchTarget, records_target
from oneway.targets.records import ScoredRecordsTarget

TABLES = (".csv", ".parquet")
"""Endings of files that hold records rather than images."""

MOST_SHARED = 0.2
"""Greatest share of rows that two tables may share by chance."""


@dataclass(frozen=True)
class Reading:
    """How data is read.

    Attributes:
        size: Height and width that image files are scaled to; None: as they are.
        channels: Channels of image files, 1 or 3; None: those that they have.
        label: Column of a table that holds the classes.
        categorical: Columns of a table that hold codes.
        drop: Columns of a table that are no inputs.
        missing_values: Texts that mean a missing value in a table.
    """

    size: tuple[int, int] | None = None
    channels: int | None = None
    label: str | None = None
    categorical: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    missing_values: tuple[str, ...] = ()


AS_IT_IS = Reading()


@dataclass(frozen=True)
class Rows:
    """Queries that were read.

    Attributes:
        queries: ``(N, C, H, W)`` images or ``(N, D)`` encoded records, float32 in ``[0, 1]``.
        labels: ``(N)`` int64 positions in ``names``, or class numbers; or None.
        names: Names of the classes, if the data has names.
        notes: What was left out, cut or converted: sentences with counts.
        source: What messages call the data.
        encoding: From the rows of a table to numbers; None for images.
        values: ``(N, F)`` float32, equal for equal rows of any two tables, whose encodings differ;
            None for images.
        single: Whether they were an array of float32, as which functions get them, too.
    """

    queries: Tensor
    labels: Tensor | None
    names: tuple[str, ...] | None
    notes: tuple[str, ...]
    source: str
    encoding: RecordEncoding | None = None
    values: Tensor | None = None
    single: bool = False

    @property
    def compared(self) -> Tensor:
        """``(N, ...)``, equal for equal queries of any data: images, or a table's values."""
        return self.queries if self.values is None else self.values

    def without(self, others: Tensor) -> "Rows":
        """Return these rows without the records that others hold, too, by their ``compared``.

        Records of few columns are equal by chance. Tables that share more than a fifth of the rows
        overlap by mistake: they stay as they are, and an audit refuses them. So do images.
        """
        if self.encoding is None:
            return self
        known = set(image_hashes(others.numpy()))
        kept = torch.tensor([row not in known for row in image_hashes(self.compared.numpy())])
        shared = len(kept) - int(kept.sum())
        if not 0 < shared <= MOST_SHARED * len(kept):
            return self
        note = f"{shared} of {len(kept)} rows are left out: auxiliary records are equal to them"
        labels = None if self.labels is None else self.labels[kept]
        values = None if self.values is None else self.values[kept]
        notes = (*self.notes, note)
        return replace(self, queries=self.queries[kept], labels=labels, notes=notes, values=values)

    def asked(self, target: Target) -> Target:
        """Return a target of these queries: a model of a table is asked with the table's values.

        The columns of a matrix have no names. A model that was fitted on names takes them in order.
        """
        if self.encoding is None:
            return target
        names = [column.name for column in self.encoding.columns]
        if isinstance(target, FrameTarget) and names == [f"x.{at}" for at in range(len(names))]:
            return ScoredRecordsTarget(target, self.encoding.decode)
        decode: Any = self.encoding.decode_frame
        if not isinstance(target, FrameTarget):
            single = self.single or isinstance(target, TorchTarget)
            decode = partial(self.encoding.decode, dtype=np.float32 if single else np.float64)
        return records_target(
            target,
            decode,
            columns=names,
            missing=[column.name for column in self.encoding.columns if column.missing],
        )


def read_rows(
    data: Any,
    name: str,
    reading: Reading = AS_IT_IS,
    *,
    like: Rows | None = None,
    report: ProgressCallback = no_progress,
) -> Rows:
    """Read queries.

    Args:
        data: One of

            - a path of a folder of images, or of folders of images by class; of an .npz file with
              ``images``; of an .npy file with one of the next two; or of a .csv or .parquet table;
            - ``(N, H, W)``, ``(N, C, H, W)`` or ``(N, H, W, C)`` images, uint8 or floats in
              ``[0, 1]``, as an array or a tensor;
            - ``(N, F)`` numbers as an array, a tensor or a sparse matrix, or a DataFrame: records
              in the values that the model takes;
            - a data set of PyTorch, or a list, whose items are images or records, or pairs of one
              and its class;
            - a pair of one of these and ``(N)`` classes.
        name: What messages call the data.
        reading: How it is read.
        like: Rows of a table whose ranges and categories encode these rows, too; None: their own.
        report: Receives the progress.

    Raises:
        OnewayError: The data cannot be used; the message says why.
    """
    if isinstance(data, str | Path):
        name = str(data)
    labels = None
    if _is_pair(data):
        data, labels = data[0], _classes(data[1])
    if isinstance(data, str | Path) and Path(data).suffix.lower() == ".npy":
        data = read_npz(Path(data))["array"]
    elif hasattr(data, "toarray"):  # a sparse matrix
        data = data.toarray()
    elif labels is None and _is_data_set(data):
        data, labels = _items(data, name)
    table = _as_table(data)
    if table is None:
        rows = _images(data, name, reading, report)
    else:
        rows = _records(table, name, reading, None if like is None else like.encoding)
    if labels is None:
        return rows
    if rows.labels is not None:
        raise InvalidOptionError(f"{name} has classes of its own. Pass them once.")
    given, names = read_labels({"labels": labels}, len(rows.queries), Path(name))
    numbers = None if given is None else torch.from_numpy(given)
    return replace(rows, labels=numbers, names=names)


def read_pair(
    first: tuple[Any, str],
    second: tuple[Any, str],
    reading: Reading = AS_IT_IS,
    report: ProgressCallback = no_progress,
) -> tuple[Rows, Rows]:
    """Read the attacker's rows and queries of the same kind, each given with its name.

    Raises:
        OnewayError: Data cannot be used, or one is of tables and the other of images.
    """
    tables = [_as_table(data[0] if _is_pair(data) else data) for data in (first[0], second[0])]
    if (tables[0] is None) is not (tables[1] is None):
        raise InvalidOptionError(f"{first[1]} and {second[1]} must both be tables, or both images.")
    auxiliary = read_rows(*first, reading, report=report)
    test = read_rows(*second, reading, like=auxiliary, report=report)
    return auxiliary, test.without(auxiliary.compared)


def _is_pair(data: Any) -> bool:
    """Say whether data is a pair of queries and their classes."""
    return isinstance(data, tuple) and len(data) == 2


def as_array(values: Any) -> NDArray[Any]:
    """Return numbers as an array of this machine's byte order.

    Args:
        values: An array, a tensor, or what NumPy makes an array of. A sparse tensor becomes dense,
            and bfloat16, which NumPy lacks, float32.
    """
    if not isinstance(values, Tensor):
        array = np.asarray(values)
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    plain = values.detach().cpu().to_dense()
    return np.asarray(plain.float() if plain.dtype == torch.bfloat16 else plain)


def _classes(values: Any) -> NDArray[Any]:
    """Return classes as an array; texts, which pandas keeps as objects, as NumPy's texts."""
    classes = as_array(values)
    texts = classes.dtype == object and all(isinstance(each, str) for each in classes.flat)
    return classes.astype(str) if texts else classes


def _is_data_set(data: Any) -> bool:
    if isinstance(data, np.ndarray):  # of texts, or of images of several sizes
        return data.ndim == 1 and data.dtype.kind in "OSU"
    known = (str, Path, Tensor, Mapping, tuple)
    has_items = hasattr(data, "__getitem__") and isinstance(data, Sized)
    return has_items and not isinstance(data, known) and not hasattr(data, "columns")


def _items(data: Any, name: str) -> tuple[Any, Any]:
    """Return the images or records of a data set, and their classes or None."""
    items = [data[at] for at in range(len(data))]
    pairs = [
        isinstance(item, Sequence) and not isinstance(item, str) and len(item) == 2
        for item in items
    ]
    if not items or any(pairs) is not all(pairs):
        raise InvalidTensorError(
            f"{name} must hold images, or pairs of an image and its class, at least one, but is a "
            f"{type(data).__name__} of {len(items)} items, {sum(pairs)} of them pairs."
        )
    rows = [as_array(item[0] if isinstance(item, tuple) or all(pairs) else item) for item in items]
    if any(row.dtype.kind not in "biuf" for row in rows):
        raise InvalidTensorError(
            f"the items of {name} must be images or records of numbers, or pairs of one and its "
            f"class, but are {type(items[0]).__name__}. Of a model of texts or of other inputs, "
            "pass the (N, K) scores in place of the model and its queries; an audit needs numbers, "
            "such as embeddings, and the function from them to scores."
        )
    if len({(row.shape, row.dtype) for row in rows}) != 1:
        raise InvalidTensorError(
            f"the images of {name} must have one shape and type. Let its transform scale them."
        )
    return np.stack(rows), _classes([as_array(item[1]) for item in items]) if all(pairs) else None


def _as_table(data: Any) -> Any:
    """Return data that is a table, as :func:`load_records` takes it; None for images."""
    if isinstance(data, str | Path):
        return Path(data) if Path(data).suffix.lower() in TABLES else None
    if isinstance(data, np.ndarray | Tensor):
        return {"x": as_array(data)} if data.ndim == 2 else None
    return data if hasattr(data, "columns") else None


def _records(table: Any, name: str, reading: Reading, encoding: RecordEncoding | None) -> Rows:
    loaded = load_records(
        table,
        label=reading.label,
        categorical=reading.categorical,
        drop=reading.drop,
        missing_values=reading.missing_values,
        encoding=encoding,
    )
    names = loaded.class_names or None
    return Rows(
        loaded.encoded,
        loaded.labels,
        names,
        loaded.notes,
        name,
        loaded.encoding,
        loaded.values,
        isinstance(table, dict) and table["x"].dtype == np.float32,
    )


def _images(data: Any, name: str, reading: Reading, report: ProgressCallback) -> Rows:
    if isinstance(data, str | Path):
        read = load_queries(Path(data), channels=reading.channels, size=reading.size, report=report)
        return Rows(read.images, read.labels, read.names, read.notes, name)
    if not isinstance(data, np.ndarray | Tensor):
        remedy = " Pass its `dataset`." if hasattr(data, "dataset") else ""
        raise InvalidTensorError(
            f"{name} must be a path, an array, a tensor, a DataFrame or a data set of PyTorch, but "
            f"is {type(data).__name__}.{remedy}"
        )
    return Rows(image_tensor(as_array(data), Path(name)), None, None, (), name)
