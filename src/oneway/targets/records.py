"""A model of tabular records as a target that is asked about encoded ones."""

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
    """Answers encoded records by a target that takes them as they stand in the table.

    Attacks see records as numbers in [0, 1], while the model was trained on the table's own
    values. Each query is decoded, so that the model is asked about the very record.
    """

    def __init__(self, target: Target, decode: Decode) -> None:
        """Put ``decode`` before ``target``; see :func:`records_target`."""
        self.target, self.decode = target, decode

    def __call__(self, images: Tensor) -> Tensor:
        """Answer with the target's confidences.

        Args:
            images: ``(N, D)`` encoded records, floating.

        Returns:
            ``(N, K)`` probabilities.

        Raises:
            InvalidTensorError: The records, or what they are decoded to, cannot be used.
        """
        return self.target(_decoded(images, self.decode))


class ScoredRecordsTarget:
    """The same where the target's logits are at hand, too."""

    def __init__(self, target: ScoredTarget, decode: Decode) -> None:
        """Put ``decode`` before ``target``; see :func:`records_target`."""
        self.target, self.decode = target, decode

    def __call__(self, images: Tensor) -> Tensor:
        """Answer with the target's confidences: see :class:`RecordsTarget`."""
        return self.target(_decoded(images, self.decode))

    def logits(self, images: Tensor) -> Tensor:
        """Return the target's ``(N, K)`` logits: for the defender only.

        Raises:
            InvalidTensorError: The records, or what they are decoded to, cannot be used.
        """
        return self.target.logits(_decoded(images, self.decode))


def records_target(target: Target, decode: Decode) -> RecordsTarget | ScoredRecordsTarget:
    """Let a target of a table's own values answer encoded records.

    A model that was trained on DataFrames needs no such target, but a function that makes one:
    ``CallableTarget(lambda rows: model.predict_proba(encoding.decode_frame(rows)))``.

    Args:
        target: Takes ``(N, F)`` queries, one number for each column of the table.
        decode: Such as ``encoding.decode``; for a network of float32 weights,
            ``partial(encoding.decode, dtype=np.float32)``.

    Returns:
        A target that has ``logits`` if ``target`` has.
    """
    if isinstance(target, ScoredTarget):
        return ScoredRecordsTarget(target, decode)
    return RecordsTarget(target, decode)


def _decoded(records: Tensor, decode: Decode) -> Tensor:
    check_images(records)
    decoded = torch.as_tensor(decode(records)).to(records.device)
    check_images(decoded, rows=len(records))
    return decoded
