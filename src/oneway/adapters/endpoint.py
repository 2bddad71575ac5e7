"""A third party's endpoint behind a guard: for a defender who sees only probabilities."""

from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from oneway.adapters.guard import Array, Guard, as_tensor
from oneway.contracts import Defense, ScoredTarget
from oneway.releases import Outputs
from oneway.targets import open_target
from oneway.targets.failure import ask


class GuardedEndpoint:
    """A client of an endpoint whose answers are guarded before anybody sees them.

    It speaks the Open Inference Protocol, version 2, or plain JSON by a mapping. The environment
    variable ``ONEWAY_TOKEN`` holds the bearer token.
    """

    def __init__(
        self,
        address: str,
        defense: Defense,
        *,
        outputs: Outputs = "confidences",
        decimals: int | None = None,
        batch_size: int = 512,
        **options: Any,
    ) -> None:
        """Ask whether the endpoint is ready, and put a guard before it.

        Args:
            address: Such as ``https://host/v2/models/NAME``.
            defense: Changes the scores; of confidences it gets the logarithms.
            outputs: What the endpoint answers with.
            decimals: Decimals of the released probabilities; None: all.
            batch_size: Most queries in one request.
            **options: ``output_name``, ``input_name``, ``timeout_seconds`` and others: see
                :func:`oneway.targets.http_endpoint.open_endpoint`.

        Raises:
            OnewayError: The endpoint is not ready, or an option is wrong.
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
        """Ask the endpoint, and guard its answer.

        Args:
            queries: ``(N, ...)`` floating, at least one.

        Returns:
            ``(N, K)`` float32 probabilities, an array for an array and a tensor for a tensor.

        Raises:
            TargetFailedError: The endpoint does not answer.
            InvalidTensorError: Queries or answers cannot be used.
            DefenseFailedError: The defense failed.
        """
        tensor = as_tensor(queries, "queries")
        target = self._target
        question = target.logits if isinstance(target, ScoredTarget) else target
        scores = ask("the endpoint", len(tensor), lambda: question(tensor).float())
        released = self._guard(scores, tensor)
        return released.numpy() if isinstance(queries, np.ndarray) else released
