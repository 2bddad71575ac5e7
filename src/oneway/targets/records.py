"""A model of tabular records as a target for encoded records."""

from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from oneway.checks import check_images
from oneway.contracts import ScoredTarget, Target

Decode = Callable[[Tensor], Tensor | NDArray[Any]]
"""``(N, D)`` encoded records to ``(N, F)`` numbers as the model takes them."""


class RecordsTarget:
    """Answers encoded records with a target that takes the table's own values.

    Attacks work on records as numbers in [0, 1]; the model was trained on the table's values.
    Each query is decoded first, so the model is asked about the exact record.
    """

    def __init__(self, target: Target, decode: Decode) -> None:
        """Put ``decode`` before ``target``; see :func:`records_target`."""
        self.target, self.decode = target, decode

    def __call__(self, images: Tensor) -> Tensor:
        """Answer with the target's confidences.

        Args:
            images: ``(N, D)`` encoded records, floating. Not modified.

        Returns:
            ``(N, K)`` probabilities.

        Raises:
            InvalidTensorError: The records, or their decoded values, cannot be used.
        """
        return self.target(self._decoded(images))

    def _decoded(self, records: Tensor) -> Tensor:
        check_images(records)
        decoded = torch.as_tensor(self.decode(records.clone())).to(records.device)
        check_images(decoded, rows=len(records))
        return decoded


class ScoredRecordsTarget(RecordsTarget):
    """A :class:`RecordsTarget` whose target also gives its logits."""

    target: ScoredTarget

    def logits(self, images: Tensor) -> Tensor:
        """Return the target's ``(N, K)`` logits, in nats: for the defender only.

        Raises:
            InvalidTensorError: See :meth:`RecordsTarget.__call__`.
        """
        return self.target.logits(self._decoded(images))


def records_target(target: Target, decode: Decode) -> RecordsTarget:
    """Let a target of a table's own values answer encoded records.

    For a model that was trained on DataFrames, a function is enough:
    ``CallableTarget(lambda rows: model.predict_proba(encoding.decode_frame(rows)))``.

    Args:
        target: Takes ``(N, F)`` queries, one number for each column of the table.
        decode: Such as ``encoding.decode``; for a network of float32 weights,
            ``partial(encoding.decode, dtype=np.float32)``.

    Returns:
        A target that has ``logits`` if ``target`` has.
    """
    kind = ScoredRecordsTarget if isinstance(target, ScoredTarget) else RecordsTarget
    return kind(target, decode)
