"""Measures of calibration: whether released probabilities match the share of right answers."""

from dataclasses import dataclass

import torch
from torch import Tensor

from oneway.checks import check_confidences
from oneway.metrics.inputs import check_rows, check_true_labels

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
