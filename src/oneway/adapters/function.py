"""A scoring function with a guard behind it: what is left to do in most model servers."""

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor

from oneway.adapters.guard import Guard, check_rows
from oneway.errors import OnewayError
from oneway.targets.failure import failed


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
            queries: ``(N, ...)`` as the function takes them; an array or a tensor, if the guard
                needs queries. Not modified.

        Returns:
            ``(N, K)`` probabilities, of the kind and type of the scores.

        Raises:
            TargetFailedError: The function raised. Its text is left out.
            InvalidTensorError: Queries or scores cannot be used.
            DefenseFailedError: The defense failed.
        """
        try:
            scores = self._score(copied(queries))
        except OnewayError:
            raise
        except Exception as error:  # noqa: BLE001  raised as ours, without its text
            raise failed("the model", len(queries), error, caused=False) from None
        check_rows(scores, len(queries), "the model")
        return self._guard(scores, queries)


def copied(queries: Any) -> Any:
    """Return a copy of queries of any kind, for a model that works in place."""
    return queries.detach().clone() if isinstance(queries, Tensor) else copy.deepcopy(queries)
