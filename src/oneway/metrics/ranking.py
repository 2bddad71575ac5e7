"""What a release keeps of the order of the scores, and of what their order tells."""

import torch
from torch import Tensor

from oneway.checks import check_count, check_same_shape
from oneway.errors import InvalidOptionError
from oneway.metrics.inputs import check_rows, check_true_labels


def top_accuracy(released: Tensor, labels: Tensor, within: int = 1) -> float:
    """Return the share of rows whose true label is among the ``within`` largest scores.

    Scores that tie across that edge count by the chance that ties broken at random leave the
    label inside: what a release no longer tells apart is a guess.

    Args:
        released: ``(N, K)`` scores or probabilities, ``N >= 1``.
        labels: ``(N)`` int64 true classes in ``[0, K)``.
        within: How many of the largest, in ``[1, K]``.

    Raises:
        InvalidTensorError: A tensor breaks the lines above.
        InvalidOptionError: ``within`` does.
    """
    check_rows(released)
    check_true_labels(labels, released)
    _check_within(within, released)
    return float(_places(released, within).gather(-1, labels.unsqueeze(-1)).mean())


def top_agreement(clean: Tensor, released: Tensor, within: int = 5) -> float:
    """Return which share of the clean ``within`` largest classes the release still has there.

    Ties across the edge count as in :func:`top_accuracy`; a release that ties the same classes
    as the clean scores loses nothing.

    Args:
        clean: ``(N, K)`` scores or probabilities without a defense, ``N >= 1``.
        released: ``(N, K)`` those that left the building.
        within: How many of the largest, in ``[1, K]``.

    Returns:
        The mean over rows, in ``[0, 1]``.

    Raises:
        InvalidTensorError: A tensor breaks the lines above.
        InvalidOptionError: ``within`` does.
    """
    check_rows(clean, "clean")
    check_same_shape(released, "released", clean)
    _check_within(within, clean)
    shared = torch.minimum(_places(clean, within), _places(released, within))
    return float(shared.sum(-1).mean() / within)


def rank_correlation(clean: Tensor, released: Tensor) -> float:
    """Return Spearman's correlation of clean and released scores, mean over rows.

    Scores that tie share the mean of their ranks. A row that is all ties, clean or released,
    has no order to keep or tell, and counts 0.

    Args:
        clean: ``(N, K)`` scores or probabilities without a defense, ``N >= 1``.
        released: ``(N, K)`` those that left the building.

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
    # Ranks are halves: a spread that is not 0 is far from it.
    return float(((first * second).sum(-1) / spread.clamp_min(0.25)).mean())


def failure_auroc(released: Tensor, labels: Tensor) -> float | None:
    """Return how well the largest score tells right predictions from wrong ones.

    Args:
        released: ``(N, K)`` scores or probabilities, ``N >= 1``.
        labels: ``(N)`` int64 true classes in ``[0, K)``.

    Returns:
        The area under the ROC curve, which is the chance that a right row has a larger maximum
        than a wrong one, ties counting half. None where all rows are right, or all wrong.

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
    # The Mann-Whitney statistic: of the right rows' ranks, less what they have among themselves.
    ranks = _average_ranks(largest)[right].sum()
    return float((ranks - count * (count + 1) / 2) / (count * others))


def _places(scores: Tensor, within: int) -> Tensor:
    """Return for each entry the chance to be among the largest, if ties are broken at random."""
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
