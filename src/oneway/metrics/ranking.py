"""Measures of how much of the scores' order a release keeps."""

import torch
from torch import Tensor

from oneway.checks import check_count, check_same_shape
from oneway.errors import InvalidOptionError
from oneway.metrics.inputs import check_rows, check_true_labels


def top_accuracy(released: Tensor, labels: Tensor, within: int = 1) -> float:
    """Return the share of rows whose true label is among the ``within`` largest scores.

    Ties across that edge count by the chance that the label is inside if ties are broken at random:
    between tied classes a user has to guess.

    Args:
        released: ``(N, K)`` scores or probabilities, ``N >= 1``.
        labels: ``(N)`` int64 true classes in ``[0, K)``.
        within: Number of largest scores, in ``[1, K]``.

    Raises:
        InvalidTensorError: A tensor breaks the lines above.
        InvalidOptionError: ``within`` is outside its range.
    """
    check_rows(released)
    check_true_labels(labels, released)
    _check_within(within, released)
    return float(_places(released, within).gather(-1, labels.unsqueeze(-1)).mean())


def top_agreement(clean: Tensor, released: Tensor, within: int = 5) -> float:
    """Return the share of the clean ``within`` largest classes that the release still has there.

    Ties across the edge count as in :func:`top_accuracy`; a release that ties the same classes
    as the clean scores loses nothing.

    Args:
        clean: ``(N, K)`` scores or probabilities without a defense, ``N >= 1``.
        released: ``(N, K)`` released scores or probabilities.
        within: Number of largest scores, in ``[1, K]``.

    Returns:
        The mean over rows, in ``[0, 1]``.

    Raises:
        InvalidTensorError: A tensor breaks the lines above.
        InvalidOptionError: ``within`` is outside its range.
    """
    check_rows(clean, "clean")
    check_same_shape(released, "released", clean)
    _check_within(within, clean)
    shared = torch.minimum(_places(clean, within), _places(released, within))
    return float(shared.sum(-1).mean() / within)


def rank_correlation(clean: Tensor, released: Tensor) -> float:
    """Return Spearman's correlation of clean and released scores, mean over rows.

    Ties share the mean of their ranks. A row that is all ties, clean or released, has no order, and
    counts 0.

    Args:
        clean: ``(N, K)`` scores or probabilities without a defense, ``N >= 1``.
        released: ``(N, K)`` released scores or probabilities.

    Returns:
        A number in ``[-1, 1]``: 1 if every row keeps its order.

    Raises:
        InvalidTensorError: A tensor breaks the lines above.
    """
    check_rows(clean, "clean")
    check_same_shape(released, "released", clean)
    middle = (clean.shape[-1] + 1) / 2
    first, second = _average_ranks(clean) - middle, _average_ranks(released) - middle
    spread = (first.square().sum(-1) * second.square().sum(-1)).sqrt()
    # Ranks are multiples of a half: a spread is either 0 or far from it.
    return float(((first * second).sum(-1) / spread.clamp_min(0.25)).mean())


def failure_auroc(released: Tensor, labels: Tensor) -> float | None:
    """Return how well the largest score separates right from wrong predictions.

    Args:
        released: ``(N, K)`` scores or probabilities, ``N >= 1``.
        labels: ``(N)`` int64 true classes in ``[0, K)``.

    Returns:
        The area under the ROC curve, which is the chance that a right row has a larger maximum
        than a wrong row, ties counting half. None if all rows are right, or all wrong.

    Raises:
        InvalidTensorError: A tensor breaks the lines above.
    """
    check_rows(released)
    check_true_labels(labels, released)
    largest, predicted = released.double().max(-1)
    right = predicted == labels
    count = int(right.sum())
    others = len(right) - count
    if not count or not others:
        return None
    # The Mann-Whitney statistic: the rank sum of right rows, less its least possible value.
    ranks = _average_ranks(largest)[right].sum()
    return float((ranks - count * (count + 1) / 2) / (count * others))


def _places(scores: Tensor, within: int) -> Tensor:
    """Return each entry's chance to be among the largest, if ties are broken at random."""
    edge = scores.topk(within, -1).values[..., -1:]
    above, tied = scores > edge, scores == edge
    left = within - above.sum(-1, keepdim=True)
    return above.double() + tied.double() * left / tied.sum(-1, keepdim=True)


def _average_ranks(scores: Tensor) -> Tensor:
    """Return float64 ranks from 1 along the last axis, smallest first; ties share their mean."""
    scores = scores.double().contiguous()
    ordered = scores.sort(-1).values
    below = torch.searchsorted(ordered, scores)
    up_to = torch.searchsorted(ordered, scores, right=True)
    return (below + up_to + 1).double() / 2


def _check_within(within: int, scores: Tensor) -> None:
    check_count("within", within)
    if within > scores.shape[-1]:
        raise InvalidOptionError(
            f"within must be at most the {scores.shape[-1]} classes, but got {within}."
        )
