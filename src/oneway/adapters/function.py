"""A scoring function with a guard behind it: what is left to do in most model servers."""

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from oneway.adapters.guard import Array, Guard, check_rows
from oneway.errors import InvalidTensorError
from oneway.targets.failure import ask

NEEDS_NO_QUERY = "Take a defense that does not need the queries, such as rounding or a codebook."


class GuardedFunction:
    """Asks a model, and answers with guarded probabilities, or an error without a value.

    A server that writes an exception's text into its answer or its log shows nothing clean, even
    where the model raises.
    """

    def __init__(self, score: Callable[[Any], Any], guard: Guard) -> None:
        """Put a guard behind a function.

        Args:
            score: ``(N, ...)`` queries to ``(N, K)`` scores, as an array or a tensor. Gets a copy
                of the queries.
            guard: Turns the scores into probabilities.
        """
        self._score, self._guard = score, guard

    def __call__(self, queries: Any) -> Any:
        """Answer with guarded probabilities.

        Args:
            queries: N queries as the function takes them: an array, a tensor, a frame, a sparse
                matrix, a list, or a mapping of names to these. If the guard needs queries, an
                array or a tensor of floats, or a frame or a sparse matrix of numbers. Not
                modified.

        Returns:
            ``(N, K)`` probabilities, of the kind and type of the scores.

        Raises:
            TargetFailedError: The function raised. Its text is left out.
            InvalidTensorError: Queries or scores cannot be used, or queries cannot be counted.
            DefenseFailedError: The defense failed.
        """
        rows = count_rows(queries)
        needed = queries
        if self._guard.requires_input and not isinstance(queries, np.ndarray | Tensor):
            needed = as_numbers(queries)
        scores = ask("the model", rows, lambda: self._score(copied(queries)))
        check_rows(scores, rows, "the model")
        return self._guard(scores, needed)


def count_rows(queries: Any) -> int:
    """Return the number of queries.

    Args:
        queries: N queries of any kind; a mapping holds the inputs of a model by their names, each
            with N rows.

    Raises:
        InvalidTensorError: The queries cannot be counted, or a mapping's inputs differ in N.
    """
    if isinstance(queries, Mapping):
        counts = {name: count_rows(values) for name, values in queries.items()}
        if len(set(counts.values())) != 1:
            raise InvalidTensorError(
                "a mapping of inputs must hold as many rows for each, and at least one input, but "
                f"got {', '.join(f'{name}: {count}' for name, count in counts.items()) or 'none'}."
            )
        return next(iter(counts.values()))
    shape = getattr(queries, "shape", None)  # a sparse matrix has no length
    if isinstance(shape, tuple) and shape and isinstance(shape[0], int):
        return shape[0]
    try:
        return len(np.asarray(queries) if hasattr(queries, "__array__") else queries)
    except TypeError:
        pass
    raise InvalidTensorError(
        "queries must be an array, a tensor, a frame, a sparse matrix, a list, or a mapping of "
        f"these, whose rows can be counted, but got {type(queries).__name__}. Pass the rows, and "
        "build the object within the function, as by `lambda rows: booster.predict(DMatrix(rows))`."
    )


def unmatched_columns(frame: Any, known: Iterable[str], required: Iterable[str]) -> str:
    """Return which columns of a frame do not match, in sentences; empty if all do.

    Args:
        frame: A frame of queries.
        known: Names of the columns that it may have.
        required: Names of the columns that it must have.
    """
    given = set(frame.columns)
    sentences = [
        f"{what}: {', '.join(sorted(map(str, names)))}."
        for what, names in (
            ("Columns that are missing", set(required) - given),
            ("Columns that are not known", given - set(known)),
        )
        if names
    ]
    return " ".join(sentences)


def copied(queries: Any) -> Any:
    """Return a copy of queries of any kind, for a model that works in place."""
    if isinstance(queries, Tensor):
        return queries.detach().clone()
    if type(queries) is dict:
        return {name: copied(values) for name, values in queries.items()}
    if type(queries) in (list, tuple):
        return type(queries)(map(copied, queries))
    return copy.deepcopy(queries)


def as_numbers(queries: Any, *, reader: str = "the defense", remedy: str = NEEDS_NO_QUERY) -> Array:
    """Return queries as ``(N, ...)`` float64.

    Args:
        queries: An array, a frame, a sparse matrix or a list of numbers. Not modified.
        reader: What needs numbers, for the message.
        remedy: What to do if there are none, in sentences.

    Raises:
        InvalidTensorError: The queries are not numbers. The message names the columns of a frame
            that are not, and no value.
    """
    dense = queries.toarray() if hasattr(queries, "toarray") else queries
    numbers = _floats(dense)
    if numbers is not None:
        return numbers
    names = [str(name) for name in getattr(dense, "columns", ()) if _floats(dense[name]) is None]
    where = f"in the columns {', '.join(names)}" if names else f"in {type(queries).__name__}"
    raise InvalidTensorError(
        f"{reader} takes queries of numbers only, but got something else {where}. {remedy}"
    )


def _floats(values: Any) -> Array | None:
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError):  # its text quotes a cell
        return None
