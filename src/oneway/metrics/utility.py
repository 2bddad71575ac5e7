"""What users of the scores pay for a defense: distortion, accuracy, ranking and calibration."""

from dataclasses import dataclass

import torch
from torch import Tensor

from oneway.checks import check_confidences, check_count, check_same_shape
from oneway.errors import InvalidOptionError
from oneway.metrics.inputs import check_rows, check_true_labels


@dataclass(frozen=True)
class Distortion:
    """The distance of a release from the clean scores.

    Attributes:
        logits: Mean absolute difference of the logits over samples and classes, in nats: the
            paper's "confidence score distortion" (section V-B2).
        l1_mean: Mean over samples of the L1 distance of the probabilities, in [0, 2].
        l1_p99: The 99th percentile of that L1 distance.
        l1_max: The largest L1 distance.
    """

    logits: float
    l1_mean: float
    l1_p99: float
    l1_max: float


def distortion(
    clean_logits: Tensor, noisy_logits: Tensor, clean: Tensor, released: Tensor
) -> Distortion:
    """Measure the distortion of logits and of probabilities.

    Args:
        clean_logits: ``(N, K)`` logits before the defense, in nats.
        noisy_logits: ``(N, K)`` logits after the defense.
        clean: ``(N, K)`` probabilities without a defense.
        released: ``(N, K)`` released probabilities.

    Returns:
        Both distortions. Logits are compared as they are, as the paper does, so that a constant
        added to a row counts, although a softmax ignores it.

    Raises:
        InvalidTensorError: The shapes differ.
    """
    check_same_shape(noisy_logits, "noisy_logits", clean_logits)
    check_same_shape(released, "released", clean)
    rows = (released.double() - clean.double()).abs().sum(-1)
    return Distortion(
        logits=float((noisy_logits.double() - clean_logits.double()).abs().mean()),
        l1_mean=float(rows.mean()),
        l1_p99=float(torch.quantile(rows, 0.99)),
        l1_max=float(rows.max()),
    )


def label_changes(clean_logits: Tensor, released: Tensor) -> int:
    """Count rows where the clean arg max is not the unique maximum of the release.

    A tie counts: a client's arg max may then give another class.

    Args:
        clean_logits: ``(N, K)`` logits before the defense, in nats.
        released: ``(N, K)`` released probabilities.

    Raises:
        InvalidTensorError: The shapes differ.
    """
    check_same_shape(released, "released", clean_logits)
    index = clean_logits.argmax(-1, keepdim=True)
    rival = released.scatter(-1, index, -torch.inf).amax(-1, keepdim=True)
    return int((released.gather(-1, index) <= rival).sum())


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


CALIBRATION_BINS = 15
"""Bins of equal width on [0, 1], as in Guo et al. 2017."""

LEAST_PROBABILITY = torch.finfo(torch.float32).tiny
"""The smallest normal float32, which replaces a released zero in a logarithm."""


def negative_log_likelihood(released: Tensor, labels: Tensor) -> float:
    """Return the mean of ``-log`` of the true class's released probability, in nats.

    A probability below the smallest normal float32 counts as that number, about 87 nats, since the
    logarithm of 0 is infinite.

    Args:
        released: ``(N, K)`` probabilities, ``N >= 1``.
        labels: ``(N)`` int64 true classes in ``[0, K)``.

    Raises:
        InvalidTensorError: A tensor breaks the lines above.
    """
    true = _check_probabilities(released, labels).gather(-1, labels.unsqueeze(-1))
    return float(-true.clamp_min(LEAST_PROBABILITY).log().mean())


def expected_calibration_error(released: Tensor, labels: Tensor) -> float:
    """Return the expected calibration error of the largest probability.

    Rows are put into 15 bins ``(b / 15, (b + 1) / 15]`` by their largest probability. Each bin
    adds its share of the rows, times the absolute difference between its accuracy and the mean
    of those probabilities.

    Args:
        released: ``(N, K)`` probabilities, ``N >= 1``.
        labels: ``(N)`` int64 true classes in ``[0, K)``.

    Returns:
        A number in ``[0, 1]``.

    Raises:
        InvalidTensorError: A tensor breaks the lines above.

    Source:
        Guo, Pleiss, Sun & Weinberger, "On Calibration of Modern Neural Networks", ICML 2017,
        Equation 3.
    """
    confidence, right, bins = _binned(released, labels)
    sums = right.new_zeros(CALIBRATION_BINS).index_add(0, bins, confidence - right)
    return float(sums.abs().sum() / len(labels))


@dataclass(frozen=True)
class ReliabilityBin:
    """The rows with their largest probability in a bin.

    Attributes:
        count: Number of rows, at least 1.
        confidence: Mean of the largest probabilities, in [0, 1].
        accuracy: Share of the rows with the right label, in [0, 1].
    """

    count: int
    confidence: float
    accuracy: float


def reliability_bins(released: Tensor, labels: Tensor) -> list[ReliabilityBin]:
    """Return the non-empty bins of :func:`expected_calibration_error`, in rising order.

    Args:
        released: ``(N, K)`` probabilities, ``N >= 1``.
        labels: ``(N)`` int64 true classes in ``[0, K)``.

    Raises:
        InvalidTensorError: A tensor breaks the lines above.

    Source:
        Guo, Pleiss, Sun & Weinberger, "On Calibration of Modern Neural Networks", ICML 2017,
        Equations 1 and 2; DeGroot & Fienberg, The Statistician 32, 1983: reliability diagrams.
    """
    confidence, right, bins = _binned(released, labels)
    return [
        ReliabilityBin(
            int((bins == place).sum()),
            float(confidence[bins == place].mean()),
            float(right[bins == place].mean()),
        )
        for place in bins.unique().tolist()
    ]


def _binned(released: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return each row's largest probability, whether its label is right, and its bin's number."""
    confidence, predicted = _check_probabilities(released, labels).max(-1)
    bins = (confidence * CALIBRATION_BINS).ceil().long().clamp(1, CALIBRATION_BINS) - 1
    return confidence, (predicted == labels).double(), bins


def brier_score(released: Tensor, labels: Tensor) -> float:
    """Return the mean squared distance of the probabilities from the true one-hot vector.

    Args:
        released: ``(N, K)`` probabilities, ``N >= 1``.
        labels: ``(N)`` int64 true classes in ``[0, K)``.

    Returns:
        The sum of squares over classes, mean over rows, in ``[0, 2]``.

    Raises:
        InvalidTensorError: A tensor breaks the lines above.

    Source:
        Brier, "Verification of Forecasts Expressed in Terms of Probability", Monthly Weather
        Review 78(1), 1950.
    """
    rows = _check_probabilities(released, labels)
    true = torch.zeros_like(rows).scatter(-1, labels.unsqueeze(-1), 1)
    return float((rows - true).square().sum(-1).mean())


def _check_probabilities(released: Tensor, labels: Tensor) -> Tensor:
    """Return ``released`` in float64."""
    check_confidences(released, "released")
    check_rows(released)
    check_true_labels(labels, released)
    return released.double()
