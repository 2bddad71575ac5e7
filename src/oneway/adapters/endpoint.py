"""Somebody else's endpoint, asked through a guard: for a defender who only sees probabilities."""

from typing import Any, Literal, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oneway.adapters.guard import Guard, as_tensor
from oneway.contracts import Defense, ScoredTarget
from oneway.targets import open_target

Array = NDArray[np.generic]


class GuardedEndpoint:
    """A client of an endpoint whose answers are guarded before anybody sees them.

    It speaks the Open Inference Protocol, version 2, or plain JSON by a mapping. A bearer token is
    taken from the environment variable ``ONEWAY_TOKEN``.
    """

    def __init__(
        self,
        address: str,
        defense: Defense,
        *,
        outputs: Literal["logits", "confidences"] = "confidences",
        decimals: int | None = None,
        batch_size: int = 512,
        **options: Any,
    ) -> None:
        """Ask whether the endpoint is ready, and put a guard before it.

        Args:
            address: Such as ``https://host/v2/models/NAME``.
            defense: What changes the scores. It is given log probabilities, as all that there is.
            outputs: What the endpoint answers with.
            decimals: Decimals of what is released; None: all.
            batch_size: Most queries in one request.
            **options: ``output_name``, ``input_name``, ``timeout_seconds`` and others: see
                :func:`oneway.targets.http_endpoint.open_endpoint`.

        Raises:
            OnewayError: The endpoint is not ready or an option is wrong. The message says which.
        """
        self._guard = Guard(defense, outputs, decimals=decimals, batch_size=batch_size)
        self._target = open_target(
            address,
            outputs=outputs,
            device=torch.device("cpu"),
            batch_size=batch_size,
            **options,
        )

    @overload
    def __call__(self, queries: Tensor) -> Tensor: ...

    @overload
    def __call__(self, queries: Array) -> Array: ...

    def __call__(self, queries: Tensor | Array) -> Tensor | Array:
        """Ask the endpoint, and guard what it says.

        Args:
            queries: ``(N, ...)`` floating, at least one.

        Returns:
            ``(N, K)`` float32 probabilities, an array for an array and a tensor for a tensor.

        Raises:
            TargetFailedError: The endpoint does not answer.
            InvalidTensorError: Queries or answers cannot be used.
            DefenseFailedError: The defense failed.
        """
        asked = as_tensor(queries, "queries")
        if isinstance(self._target, ScoredTarget):
            released = self._guard(self._target.logits(asked).float(), asked)
        else:
            released = self._guard(self._target(asked), asked)
        return released.numpy() if isinstance(queries, np.ndarray) else released
