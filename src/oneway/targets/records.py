"""A model of tabular records as a target for encoded records."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from oneway.checks import check_images
from oneway.contracts import FrameTarget, ScoredTarget, Target
from oneway.errors import InvalidOptionError, InvalidTensorError
from oneway.targets.answers import class_names_of, lifts_labels
from oneway.targets.estimator import EstimatorTarget
from oneway.targets.fitted_columns import match_columns

Decode = Callable[[Tensor], Any]
"""``(N, D)`` encoded records to ``(N, F)`` numbers, or a DataFrame, as the model takes them."""


class RecordsTarget:
    """Answers encoded records with a target that takes the table's own values.

    Attacks work on records as numbers in [0, 1]; the model was trained on the table's values.
    Each query is decoded first, so the model is asked about the exact record.
    """

    def __init__(self, target: Target, decode: Decode) -> None:
        """Put ``decode`` before ``target``; see :func:`records_target`."""
        self.target, self.decode = target, decode
        self.class_names = class_names_of(target)
        self.lifts_labels = lifts_labels(target)

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
        # The target decides whether it takes missing values.
        check_images(decoded.masked_fill(decoded.isnan(), 0), rows=len(records))
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


class FrameRecordsTarget(RecordsTarget):
    """A :class:`RecordsTarget` whose target is asked with DataFrames."""

    target: FrameTarget

    def __call__(self, images: Tensor) -> Tensor:
        """Answer with the target's confidences; see :meth:`RecordsTarget.__call__`."""
        return self.target.frame_confidences(self._frame(images)).to(images.device)

    def logits(self, images: Tensor) -> Tensor:
        """Return the target's ``(N, K)`` logits, in nats: for the defender only.

        Raises:
            InvalidTensorError: See :meth:`RecordsTarget.__call__`.
        """
        return self.target.frame_logits(self._frame(images)).to(images.device)

    def _frame(self, records: Tensor) -> Any:
        check_images(records)
        return self.decode(records.clone())


def records_target(
    target: Target,
    decode: Decode,
    *,
    columns: Sequence[str] = (),
    missing: Collection[str] = (),
) -> RecordsTarget:
    """Let a target of a table's own values answer encoded records.

    Args:
        target: Takes ``(N, F)`` queries, one number for each column of the table; or DataFrames,
            if it is a :class:`oneway.contracts.FrameTarget`.
        decode: Such as ``encoding.decode``; for a network of float32 weights,
            ``partial(encoding.decode, dtype=np.float32)``; for a target of DataFrames,
            ``encoding.decode_frame``.
        columns: The table's columns, to be checked before any query. Empty: not checked.
        missing: Those of them in which values are missing.

    Returns:
        A target that has ``logits`` if ``target`` has.

    Raises:
        InvalidTensorError: The model was fitted on other columns, or on another number of columns.
        InvalidOptionError: Values are missing, and the model is no estimator.
    """
    if columns:
        _check_columns(target, columns, missing)
    if isinstance(target, FrameTarget):
        return FrameRecordsTarget(target, decode)
    if isinstance(target, EstimatorTarget):
        target = target.naming(columns)
    kind = ScoredRecordsTarget if isinstance(target, ScoredTarget) else RecordsTarget
    return kind(target, decode)


def _check_columns(target: Target, columns: Sequence[str], missing: Collection[str]) -> None:
    if isinstance(target, FrameTarget):
        match_columns(target.feature_names, columns, "the model")
    elif missing and not isinstance(target, EstimatorTarget):
        raise InvalidOptionError(
            f"the table has missing values in column {', '.join(map(repr, missing))}, which only "
            "scikit-learn classifiers are asked with. Fill them in as the model's own training "
            "did, or leave those rows out."
        )
    features = getattr(target, "features", None)
    if features not in (None, len(columns)):
        raise InvalidTensorError(
            f"the model was fitted on {features} features without names, but the table has "
            f"{len(columns)} columns: {', '.join(map(repr, columns))}. Drop what is no input of "
            "the model: --drop COLUMN (drop=(...)); name the label: --label COLUMN (label=...)."
        )
