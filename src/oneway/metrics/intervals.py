"""Paired bootstrap intervals: the uncertainty of a number that comes from the choice of queries.

Each draw takes N of N queries with replacement, and the statistic is computed on it. Attacks are
compared on the same draws. Queries that are hard for an attack are hard for other attacks, too, and
this common part cancels.

The intervals hold for the networks at hand. The effect of another training shows in several seeds.

SciPy's ``bootstrap`` returns the same interval, but gathers every value of every draw (for a closed
gap of 100,000 queries it takes several times as long), and refuses a draw without a gap.

Source:
    Efron & Tibshirani, "An Introduction to the Bootstrap", 1993: the percentile interval.
"""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from oneway.checks import check_count, check_level, name_of
from oneway.errors import InvalidTensorError
from oneway.metrics.reconstruction import closed_gap

DRAWS_AT_ONCE = 2**17
"""Most drawn queries at once: draws, counts, and counts in float64 take 1 MiB each."""


@dataclass(frozen=True)
class Interval:
    """An estimate from all queries, and the ends of its interval.

    Attributes:
        low: Lower end.
        estimate: Estimate from all queries, each once.
        high: Upper end.
    """

    low: float
    estimate: float
    high: float


def bootstrap_mean(
    values: Tensor, *, generator: Generator, level: float = 0.95, resamples: int = 2000
) -> Interval:
    """Return the mean of one value per query, with its percentile interval.

    Args:
        values: ``(N)`` floating, finite, ``N >= 2``.
        generator: Source of the draws, on any device; the work is done there.
        level: Share of the draws between the ends, in ``(0, 1)``.
        resamples: Number of draws, at least ``2 / (1 - level)``, so that one lies beyond each end.

    Raises:
        InvalidTensorError: A tensor breaks the lines above.
        InvalidOptionError: An option is outside its range.
    """
    _check({"values": values}, level, resamples)
    means = _resampled_means(values.unsqueeze(0), generator, resamples)[0]
    return percentile_ends(means, means, float(values.double().mean()), level)


def bootstrap_gap(
    adaptive_errors: Tensor,
    clean_errors: Tensor,
    label_errors: Tensor,
    *,
    generator: Generator,
    level: float = 0.95,
    resamples: int = 2000,
) -> Interval:
    """Return the closed gap of the mean errors, with its interval.

    All three means of a draw are over the same queries. A draw where the label's mean does not
    exceed the clean mean has no gap, and counts below the low and above the high end. If many draws
    have no gap, the ends are infinite: these queries are inconclusive.

    Args:
        adaptive_errors: ``(N)`` each query's error of the strongest attack on the release;
            floating, finite, at least 0, ``N >= 2``.
        clean_errors: ``(N)`` errors of the best attack on clean scores, same queries.
        label_errors: ``(N)`` errors of the best attack on the label alone, same queries.
        generator: Source of the draws, on any device; the work is done there.
        level: Share of the draws between the ends, in ``(0, 1)``.
        resamples: Number of draws, at least ``2 / (1 - level)``, so that one lies beyond each end.

    Raises:
        InvalidTensorError: A tensor breaks the lines above.
        InvalidOptionError: An option is outside its range, or over all queries there is no gap
            (see :func:`oneway.metrics.closed_gap`).
    """
    rows = {
        "adaptive_errors": adaptive_errors,
        "clean_errors": clean_errors,
        "label_errors": label_errors,
    }
    _check(rows, level, resamples)
    stacked = torch.stack([row.double() for row in rows.values()])
    adaptive, clean, label = stacked.mean(-1).tolist()
    estimate = closed_gap(adaptive, clean, label)
    adaptive_means, clean_means, label_means = _resampled_means(stacked, generator, resamples)
    whole = label_means - clean_means
    gaps = (adaptive_means - clean_means) / whole
    none = whole <= 0
    return percentile_ends(
        gaps.masked_fill(none, -torch.inf), gaps.masked_fill(none, torch.inf), estimate, level
    )


def _resampled_means(rows: Tensor, generator: Generator, resamples: int) -> Tensor:
    """Return ``(R, resamples)`` means of ``(R, N)`` rows, over the same draws of the columns."""
    count, device = rows.shape[-1], generator.device
    values = rows.to(device, torch.float64)
    at_once = max(1, DRAWS_AT_ONCE // count)
    parts = []
    for start in range(0, resamples, at_once):
        shape = (min(at_once, resamples - start), count)
        drawn = torch.randint(count, shape, generator=generator, device=device)
        # The count of each query in a draw serves all rows at once, and is read in order.
        places = drawn + count * torch.arange(len(drawn), device=device).unsqueeze(-1)
        counts = torch.bincount(places.flatten(), minlength=drawn.numel()).view_as(drawn)
        parts.append(values @ counts.to(values.dtype).mT / count)
    return torch.cat(parts, -1)


def percentile_ends(lowest: Tensor, highest: Tensor, estimate: float, level: float) -> Interval:
    """Return the ends: order statistics, not between two of them, so that they may be infinite."""
    beyond = math.floor((1 - level) / 2 * (len(lowest) - 1))
    low, high = lowest.sort().values, highest.sort(descending=True).values
    return Interval(float(low[beyond]), estimate, float(high[beyond]))


def _check(rows: dict[str, Tensor], level: float, resamples: int) -> None:
    shape = next(iter(rows.values())).shape
    for name, row in rows.items():
        if row.ndim != 1 or len(row) < 2 or not row.is_floating_point():
            raise InvalidTensorError(
                f"{name} must be floating of shape (N,) with N >= 2, one per query, but got "
                f"{name_of(row.dtype)} of shape {tuple(row.shape)}."
            )
        if row.shape != shape:
            raise InvalidTensorError(
                f"{name} must be of the same {shape[0]} queries as the rest, but got {len(row)}. "
                "Pass values of the same queries in the same order."
            )
        if not row.isfinite().all():
            bad = int((~row.isfinite()).sum())
            raise InvalidTensorError(
                f"{name} must be finite, but {bad} of {len(row)} are NaN or infinity."
            )
    check_level(level)
    check_count("resamples", resamples, math.ceil(2 / (1 - level)))
