"""A scoring function with a guard behind it: what is left to do in most model servers."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from oneway.adapters.guard import Guard
from oneway.errors import InvalidTensorError, OnewayError
from oneway.targets.failure import failed

Array = NDArray[np.generic]


class GuardedFunction:
    """Asks a model about queries, and gives what the guard releases, or an error without a value.

    A server that writes an exception's text into its answer or its log shows nothing clean, even
    where the model raises.
    """

    def __init__(self, score: Callable[[Any], Any], guard: Guard) -> None:
        """Put a guard behind a function.

        Args:
            score: ``(N, ...)`` queries to ``(N, K)`` scores, as an array or a tensor.
            guard: What releases them.
        """
        self._score, self._guard = score, guard

    def __call__(self, queries: Any) -> Any:
        """Answer with guarded probabilities.

        Args:
            queries: ``(N, ...)`` as the function takes them; an array or a tensor, if the guard
                needs queries.

        Returns:
            ``(N, K)`` probabilities, of the kind and type of the scores.

        Raises:
            TargetFailedError: The function raised. Its own text is left out.
            InvalidTensorError: Queries or scores cannot be used.
            DefenseFailedError: The defense failed.
        """
        try:
            scores = self._score(queries)
        except OnewayError:
            raise
        except Exception as error:  # noqa: BLE001  raised as ours, without its text
            raise failed("the model", len(queries), error, caused=False) from None
        if (
            not isinstance(scores, np.ndarray | Tensor)
            or len(scores.shape) != 2
            or len(scores) != len(queries)
        ):
            got = getattr(scores, "shape", None)
            told = type(scores).__name__ if got is None else str(tuple(got))
            raise InvalidTensorError(
                f"the model must answer {len(queries)} queries with scores of shape "
                f"({len(queries)}, K), but gave {told}."
            )
        return self._guard(scores, queries)
