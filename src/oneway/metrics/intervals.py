"""Paired bootstrap intervals: the uncertainty of a number that comes from the choice of queries.

A ratio of means, X / Y, is the number g for which residuals x - g y have the mean 0. Let t(g) be
their mean divided by its standard error. Each of many draws takes N of N queries with replacement,
and gives a t of the residuals of X / Y. The interval holds each g whose t(g) lies between quantiles
of these (Fieller's way to divide). No quantile counts as closer to 0 than that of the normal
distribution. A mean is a ratio whose denominators are 1.

So the skewness of errors, and the uncertainty of the denominator, count on the side where they
matter. With 30 queries the percentile interval of the same draws misses up to twice as often as it
says. No interval of resampled queries knows of a rare kind of query of which none was drawn.

Attacks are compared on the same queries. Queries that are hard for an attack are hard for other
attacks, too, and this common part cancels.

The intervals hold for the networks at hand. The effect of another training shows in several seeds.

Source:
    Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, 12.5: the bootstrap-t interval.
    Fieller, "Some problems in interval estimation" (JRSS B 16, 1954): ratios of means.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Generator, Tensor

from oneway.checks import check_count, check_level, name_of
from oneway.errors import InvalidTensorError
from oneway.metrics.reconstruction import closed_gap

DRAWS_AT_ONCE = 2**17
"""Most drawn queries at once: draws, counts, and counts in float64 take 1 MiB each."""

ROUNDING = 1e-12
"""Residuals that are smaller, as a share of the largest value, come from rounding."""


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
    """Return the mean of one value per query, with its interval.

    Args:
        values: ``(N)`` floating, finite, ``N >= 2``.
        generator: Source of the draws, on any device; the work is done there.
        level: Share of the draws between the ends, in ``(0, 1)``.
        resamples: Number of draws, at least ``2 / (1 - level)``, so that one lies beyond each end.

    Returns:
        The interval. An end is infinite if many draws hold a single value.

    Raises:
        InvalidTensorError: A tensor breaks the lines above.
        InvalidOptionError: An option is outside its range.
    """
    _check({"values": values}, level, resamples)
    rows = torch.stack([values.double(), torch.ones_like(values, dtype=torch.float64)])
    return _ratio(rows, generator, level, resamples)


def bootstrap_ratio(
    numerators: Tensor,
    denominators: Tensor,
    *,
    generator: Generator,
    level: float = 0.95,
    resamples: int = 2000,
) -> Interval:
    """Return the mean of numerators, divided by that of denominators, with its interval.

    An end is infinite where these queries do not show that the denominators' mean is above 0.

    Args:
        numerators: ``(N)`` floating, finite, ``N >= 2``, one per query.
        denominators: ``(N)`` the same, of the same queries; their mean is above 0.
        generator: Source of the draws, on any device; the work is done there.
        level: Share of the draws between the ends, in ``(0, 1)``.
        resamples: Number of draws, at least ``2 / (1 - level)``, so that one lies beyond each end.

    Raises:
        InvalidTensorError: A tensor breaks the lines above.
        InvalidOptionError: An option is outside its range.
    """
    _check({"numerators": numerators, "denominators": denominators}, level, resamples)
    rows = torch.stack([numerators.double(), denominators.double()])
    return _ratio(rows, generator, level, resamples)


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

    All three means are over the same queries. Where these do not show that the label's mean exceeds
    the clean mean, an end is infinite: these queries are inconclusive.

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
    adaptive, clean, label = (row.double() for row in rows.values())
    closed_gap(float(adaptive.mean()), float(clean.mean()), float(label.mean()))  # or there is none
    return _ratio(torch.stack([adaptive - clean, label - clean]), generator, level, resamples)


def _ratio(rows: Tensor, generator: Generator, level: float, resamples: int) -> Interval:
    """Return the ratio of the means of two ``(2, N)`` float64 rows, with its interval."""
    above, below = rows.to(generator.device)
    ratio = float(above.mean() / below.mean())
    residuals = above - ratio * below
    # What is left of values that are equal in all but rounding is 0.
    largest = torch.maximum(above.abs(), (ratio * below).abs()).amax()
    residuals = residuals.where(residuals.abs() > ROUNDING * largest, 0.0)
    means, squares = _resampled_means(
        torch.stack([residuals, residuals.square()]), generator, resamples
    )
    variances = (squares - means.square()).clamp_min(0) / (rows.shape[-1] - 1)
    ts = torch.where(means == 0, 0.0, means / variances.sqrt()).sort().values
    beyond = math.floor((1 - level) / 2 * (resamples - 1))
    least = NormalDist().inv_cdf((1 + level) / 2)
    covariances = torch.stack([residuals, below]).cov() / rows.shape[-1]
    moments = float(below.mean()), *covariances.flatten()[[0, 1, 3]].tolist()
    low = _farthest(max(float(ts[-1 - beyond]), least), *moments, sign=-1)
    high = _farthest(max(-float(ts[beyond]), least), *moments, sign=1)
    return Interval(ratio + low, ratio, ratio + high)


def _farthest(
    errors: float, mean: float, variance: float, covariance: float, spread: float, *, sign: int
) -> float:
    """Return how far from the ratio a number is whose residuals' mean is standard errors from 0.

    Args:
        errors: Number of standard errors, above 0.
        mean: Mean of the denominators, above 0.
        variance: Variance of the mean residual.
        covariance: Covariance of the mean residual and the mean denominator.
        spread: Variance of the mean denominator.
        sign: -1 for a number below the ratio, 1 for one above.

    Returns:
        The distance, with its sign; infinite where there is no such number.
    """
    # With the distance d: (d mean)^2 = errors^2 (variance - 2 d covariance + d^2 spread).
    left = mean**2 - errors**2 * spread if math.isfinite(errors) else 0.0
    if not left > 0:
        return sign * math.inf
    root = math.sqrt((errors * covariance) ** 2 + left * variance)
    return errors * (sign * root - errors * covariance) / left


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
