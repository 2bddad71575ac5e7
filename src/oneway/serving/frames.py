"""A model of tables behind a guard: clients send an input for each column."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from oneway.contracts import FrameTarget
from oneway.defenses import ServableDefense
from oneway.errors import InvalidOptionError, InvalidTensorError
from oneway.extras import load_extra
from oneway.openinference.frames import ColumnKind
from oneway.serving.guarded import GuardedHere


class GuardedFrames(GuardedHere[Any]):
    """A model of tables behind a guard. A request is a DataFrame of the model's columns."""

    def __init__(
        self,
        target: FrameTarget,
        guard: ServableDefense,
        *,
        example: Any,
        device: torch.device,
        decimals: int | None = None,
        batch_multiple: int | None = None,
        batch_size: int = 512,
    ) -> None:
        """Put a guard before a model of tables. Call :meth:`check` before it serves.

        Args:
            target: The undefended model.
            guard: The defense; one that needs the queries is refused.
            example: A DataFrame with the model's columns and at least one row, for the types of
                the columns and the self test.
            device: Device of the defense.
            decimals: Decimals of the release: see :func:`oneway.release`.
            batch_multiple: Batches are filled up to a multiple of this. None: :meth:`check`
                chooses the smallest that the guard needs.
            batch_size: Most rows that model and guard get at once; a multiple of that.

        Raises:
            InvalidOptionError: An option is outside its range, or the guard needs the queries.
            InvalidTensorError: The example has no row, or lacks a column.
        """
        super().__init__(
            guard,
            device=device,
            decimals=decimals,
            batch_multiple=batch_multiple,
            batch_size=batch_size,
        )
        if guard.defense.requires_input:
            raise InvalidOptionError(
                f"the guard {guard.name} needs the queries as numbers, and this model takes "
                "columns of a table. Take a guard that needs scores alone, such as a codebook."
            )
        names = list(target.feature_names)
        missing = [name for name in names if name not in example.columns]
        if missing or not len(example):
            raise InvalidTensorError(
                f"the example must have at least one row and the model's {len(names)} columns, "
                f"but has {len(example)} rows and lacks {', '.join(map(repr, missing)) or 'none'}."
            )
        self.target, self.example = target, example[names].reset_index(drop=True)
        self.columns: Mapping[str, ColumnKind] = {
            name: _kind_of(self.example[name]) for name in names
        }

    def frame(self, columns: Mapping[str, Sequence[Any]]) -> Any:
        """Return a request's columns as a DataFrame of the example's types.

        Numbers that a type of whole numbers does not hold, such as 45.5, make a column of float64.

        Args:
            columns: N values by the name of each column; None where a value is missing.
        """
        pandas = load_extra("pandas", extra="records", purpose="serving a model of tables")
        series = {}
        for name, values in columns.items():
            kind = self.example[name].dtype
            if self.columns[name] == "texts":
                kind = None  # pandas' own type of texts: a category that is new stays itself
            elif self.columns[name] == "numbers":
                kind = _holding(kind, values)
            elif None in values:
                kind = np.dtype(object)
            series[name] = pandas.Series(list(values), dtype=kind)
        return pandas.DataFrame(series)

    def _join(self, requests: Sequence[Any]) -> Any:
        pandas = load_extra("pandas", extra="records", purpose="serving a model of tables")
        return requests[0] if len(requests) == 1 else pandas.concat(requests, ignore_index=True)

    def _take(self, queries: Any, places: Sequence[int]) -> Any:
        return queries.iloc[list(places)].reset_index(drop=True)

    def _clean_logits(self, queries: Any) -> Tensor:
        return self.target.frame_logits(queries).to(self.device)

    def _images(self, queries: Any) -> None:  # noqa: ARG002
        return None

    def _probes(self, count: int) -> Any:
        return self._take(self.example, [place % len(self.example) for place in range(count)])


def _holding(kind: np.dtype[Any], numbers: Sequence[float | None]) -> np.dtype[Any]:
    """Return the type of a column, or float64 if that cannot hold these numbers."""
    if kind.kind == "f":
        return kind
    least, most = np.iinfo(kind).min, np.iinfo(kind).max
    whole = all(n is not None and n == int(n) and least <= n <= most for n in numbers)
    return kind if whole else np.dtype(np.float64)


def _kind_of(column: Any) -> ColumnKind:
    if column.dtype.kind == "b":
        return "booleans"
    return "numbers" if column.dtype.kind in "iuf" else "texts"
