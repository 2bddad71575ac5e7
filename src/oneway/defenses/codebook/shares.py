"""Bounds on shares of queries to come, from shares of the certified queries."""

import math

import torch
from torch import Tensor


def weights_of_rows(groups: Tensor | None, rows: int) -> tuple[Tensor, int]:
    """Return the ``(N)`` float64 weight of each row, and the number of draws: their sum.

    Args:
        groups: ``(N)`` int64, dependent rows share a number and one draw; None: rows are draws.
        rows: N.
    """
    if groups is None:
        return torch.ones(rows, dtype=torch.float64), rows
    numbers, counts = groups.cpu().unique(return_inverse=True, return_counts=True)[1:]
    return 1 / counts[numbers].double(), len(counts)


def lower_expectation(mean: float, count: int, risk: float) -> float:
    """Return a lower bound on the expectation of independent values in [0, 1].

    Args:
        mean: Mean of the values, in [0, 1].
        count: Number of values, at least 1.
        risk: Probability with which the expectation may be lower, in (0, 1).

    Returns:
        The least p with ``count * KL(mean || p) <= log(1 / risk)``.

    Source:
        Hoeffding, "Probability inequalities for sums of bounded random variables" (1963),
        Theorem 1.
    """
    if mean <= 0:
        return 0.0
    mean, limit = min(mean, 1.0), math.log(1 / risk) / count
    low, high = 0.0, mean
    for _ in range(60):
        middle = (low + high) / 2
        if middle > 0 and _relative_entropy(mean, middle) <= limit:
            high = middle
        else:
            low = middle
    return low  # the end on the safe side


def _relative_entropy(mean: float, other: float) -> float:
    """Return KL of two Bernoulli distributions, in nats."""
    return sum(p * math.log(p / q) for p, q in ((mean, other), (1 - mean, 1 - other)) if p > 0)
