"""Measures of membership inference: ROC with interpolated ties, intervals, total variation.

Members are the positives. A discrete release gives many candidates the same score. An attacker may
order them at random, so that the ROC runs straight through a tie; the largest TPR at an FPR of at
most 1 % would read 0 there.

Source:
    Carlini et al., "Membership Inference Attacks From First Principles", IEEE S&P 2022: the true
    positive rate at a low false positive rate.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from oneway.checks import check_count, check_level
from oneway.errors import InvalidTensorError
from oneway.metrics.intervals import Interval

LOW_RATE, LOWEST_RATE = 0.01, 0.001
"""False positive rates at which the true positive rate is read."""

LEAST_FOR_LOW, LEAST_FOR_LOWEST = 1_000, 10_000
"""Non-members of which ten lie beyond each rate: with fewer, intervals of the first miss too often,
and the second is not read."""

RESAMPLES = 400
LEVEL = 0.95


def rates(scores: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
    """Return the corners of the ROC curve, from (0, 0) to (1, 1).

    Args:
        scores: ``(N)`` floating, without NaN; high for members.
        members: ``(N)`` bool, with at least one member and one non-member.

    Returns:
        ``(C)`` float64 false positive rates, and ``(C)`` true positive rates.

    Raises:
        InvalidTensorError: A tensor breaks the lines above.
    """
    _check(scores, members)
    ones = torch.ones(1, len(scores), dtype=torch.float64)
    false, true = _corners(scores, members, ones)
    return false[0], true[0]


def area_under_curve(scores: Tensor, members: Tensor) -> float:
    """Return the area under the ROC curve: .5 for a guess, 1 where members score highest.

    Args:
        scores: ``(N)`` floating, without NaN; high for members.
        members: ``(N)`` bool, with at least one member and one non-member.

    Raises:
        InvalidTensorError: A tensor breaks the lines above.
    """
    return float(torch.trapezoid(*reversed(rates(scores, members))))


def true_positive_rate(scores: Tensor, members: Tensor, at: float) -> float:
    """Return the true positive rate at a false positive rate, ties interpolated.

    Args:
        scores: ``(N)`` floating, without NaN; high for members.
        members: ``(N)`` bool, with at least one member and one non-member.
        at: The false positive rate, in ``[0, 1]``.

    Raises:
        InvalidTensorError: A tensor breaks the lines above.
    """
    false, true = rates(scores, members)
    return float(_read(false.unsqueeze(0), true.unsqueeze(0), at))


@dataclass(frozen=True)
class MembershipMeasures:
    """Measures of an attack over all resamples, the candidates themselves first.

    Attributes:
        area: ``(1 + R)`` float64, area under the ROC curve.
        low: ``(1 + R)`` true positive rate at a false positive rate of 1 %.
        lowest: ``(1 + R)`` the same at .1 %; None below 10,000 non-members.
    """

    area: Tensor
    low: Tensor
    lowest: Tensor | None


def resampled_counts(rows: int, generator: Generator, resamples: int = RESAMPLES) -> Tensor:
    """Return how often each candidate is drawn: in the first row once, then at random.

    Args:
        rows: N, at least 2.
        generator: On the CPU.
        resamples: R, at least 2.

    Returns:
        ``(1 + R, N)`` float64. The same draws for several attacks pair them.
    """
    check_count("rows", rows, least=2)
    check_count("resamples", resamples, least=2)
    drawn = torch.randint(rows, (resamples, rows), generator=generator)
    places = drawn + rows * torch.arange(resamples).unsqueeze(-1)
    counts = torch.bincount(places.flatten(), minlength=resamples * rows).view(resamples, rows)
    return torch.cat([torch.ones(1, rows), counts]).double()


def membership_measures(scores: Tensor, members: Tensor, counts: Tensor) -> MembershipMeasures:
    """Measure an attack on every resample of the candidates.

    Args:
        scores: ``(N)`` floating, without NaN; high for members.
        members: ``(N)`` bool, with at least one member and one non-member.
        counts: ``(1 + R, N)``: see :func:`resampled_counts`.

    Raises:
        InvalidTensorError: A tensor breaks the lines above.
    """
    _check(scores, members)
    false, true = _corners(scores, members, counts)
    enough = int((~members).sum()) >= LEAST_FOR_LOWEST
    return MembershipMeasures(
        torch.trapezoid(true, false),
        _read(false, true, LOW_RATE),
        _read(false, true, LOWEST_RATE) if enough else None,
    )


def percentile_interval(values: Tensor, level: float = LEVEL) -> Interval:
    """Return the percentile interval of a statistic; values without a number count at both ends.

    Args:
        values: ``(1 + R)``: the estimate first, then one value per resample.
        level: Share of the resamples between the ends.

    Raises:
        InvalidOptionError: ``level`` is not in (0, 1).
    """
    check_level(level)
    draws = values[1:].double()
    beyond = math.floor((1 - level) / 2 * (len(draws) - 1))
    low = draws.nan_to_num(-torch.inf, torch.inf, -torch.inf).sort().values
    high = draws.nan_to_num(torch.inf, torch.inf, -torch.inf).sort(descending=True).values
    return Interval(float(low[beyond]), float(values[0]), float(high[beyond]))


def over_models(values: Sequence[Tensor], generator: Generator) -> Tensor:
    """Return the mean of a statistic over attacked models, resampled with the candidates.

    Args:
        values: ``(1 + R)`` for each model, on the same draws of candidates.
        generator: On the CPU; draws models.

    Returns:
        ``(1 + R)``: the mean of all models first, then of as many drawn with replacement.
    """
    stacked = torch.stack(list(values))
    drawn = torch.randint(len(stacked), (len(stacked), stacked.shape[1] - 1), generator=generator)
    return torch.cat([stacked[:, :1].mean(0), stacked[:, 1:].gather(0, drawn).mean(0)])


def membership_gap(clean: Tensor, released: Tensor, label: Tensor) -> Tensor:
    """Return G_mem: the share of what scores leak beyond the label that a release hides.

    Args:
        clean: ``(...)`` a measure of the strongest attack on clean scores, high for a leak.
        released: ``(...)`` of the strongest on the release.
        label: ``(...)`` of the strongest on the label alone.

    Returns:
        ``(clean - released) / (clean - label)``: 0 = nothing hidden, 1 = as if only labels were
        released; NaN where clean scores leak no more than the label.
    """
    whole = clean - label
    return torch.where(whole > 0, (clean - released) / whole, torch.nan)


@dataclass(frozen=True)
class TotalVariation:
    """Total variation of (cell, true label) between members and non-members.

    It bounds TPR - FPR of every attacker who sees the cell and knows the true label, and nothing
    else of the candidate. Attackers who know the candidate itself may reach more.

    Attributes:
        plug_in: That of the two histograms, which is too high on average.
        by_chance: Mean of the plug-in estimate when membership is shuffled: its size where nothing
            leaks.
        low: Lower bound: the advantage of the sets that one half of the candidates chooses on the
            other half, less the width of its interval; at least 0.
        high: Upper bound. Both hold together with probability ``level``, whatever the
            distributions.
        level: Confidence of the two bounds.
    """

    plug_in: float
    by_chance: float
    low: float
    high: float
    level: float


def total_variation(
    cells: Tensor, labels: Tensor, members: Tensor, *, generator: Generator, level: float = LEVEL
) -> TotalVariation:
    """Estimate the total variation between cells of members and of non-members, with bounds.

    The plug-in estimate is convex in the histograms, so that it is too high on average; it changes
    by at most 1/n with one candidate of a side of n. By McDiarmid's inequality, the total variation
    is at most the estimate plus ``sqrt(log(1 / risk) (1/n + 1/m) / 2)``.

    Args:
        cells: ``(N)`` int64, at least 0: the cell of each candidate.
        labels: ``(N)`` int64, at least 0: the true classes.
        members: ``(N)`` bool, with at least two members and two non-members.
        generator: On the CPU; halves and shuffles.
        level: Confidence of both bounds together, in (0, 1).

    Raises:
        InvalidTensorError: A tensor breaks the lines above.
        InvalidOptionError: ``level`` is not in (0, 1).
    """
    check_level(level)
    _check(cells, members)
    joint = torch.stack([cells, labels], -1).unique(dim=0, return_inverse=True)[1]
    kinds, risk = int(joint.max()) + 1, (1 - level) / 2

    def shares(rows: Tensor, inside: Tensor) -> Tensor:
        return torch.bincount(rows[inside], minlength=kinds).double() / int(inside.sum())

    def distance(inside: Tensor) -> float:
        return float((shares(joint, inside) - shares(joint, ~inside)).abs().sum() / 2)

    def width(inside: Tensor) -> float:
        total = 1 / int(inside.sum()) + 1 / int((~inside).sum())
        return math.sqrt(math.log(1 / risk) * total / 2)

    plug_in, halves = distance(members), torch.zeros_like(members)
    for side in (members, ~members):
        rows = side.nonzero().squeeze(-1)
        if len(rows) < 2:
            raise InvalidTensorError(
                f"there must be two members and two non-members, but one side has {len(rows)}."
            )
        halves[rows[torch.randperm(len(rows), generator=generator)[: len(rows) // 2]]] = True
    first, second = ((joint[half], members[half]) for half in (halves, ~halves))
    chosen = (shares(first[0], first[1]) > shares(first[0], ~first[1])).double()
    advantage = float((shares(second[0], second[1]) - shares(second[0], ~second[1])) @ chosen)
    shuffled = [
        distance(members[torch.randperm(len(members), generator=generator)]) for _ in range(100)
    ]
    return TotalVariation(
        plug_in,
        sum(shuffled) / len(shuffled),
        max(0.0, advantage - width(second[1])),
        min(1.0, plug_in + width(members)),
        level,
    )


def _corners(scores: Tensor, members: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``(R, C)`` rates after each distinct score, from the highest on, with (0, 0) first."""
    order = scores.argsort(descending=True)
    ordered = scores[order]
    last = torch.cat([ordered[1:] != ordered[:-1], torch.ones(1, dtype=torch.bool)])
    weights, inside = counts[:, order], members[order]
    found = []
    for side in (~inside, inside):
        reached = (weights * side).cumsum(-1)[:, last]
        total = reached[:, -1:].clamp_min(1)
        found.append(torch.nn.functional.pad(reached / total, (1, 0)))
    return found[0], found[1]


def _read(false: Tensor, true: Tensor, at: float) -> Tensor:
    """Return ``(R)`` true positive rates at a false positive rate, between corners on a line."""
    # The last corner at or below the rate: the highest of those on a vertical line.
    place = (false <= at).sum(-1, keepdim=True) - 1
    after = (place + 1).clamp_max(false.shape[-1] - 1)
    x0, x1 = false.gather(-1, place), false.gather(-1, after)
    y0, y1 = true.gather(-1, place), true.gather(-1, after)
    share = torch.where(x1 > x0, (at - x0) / (x1 - x0).clamp_min(1e-300), 0.0)
    return (y0 + share * (y1 - y0)).squeeze(-1)


def _check(scores: Tensor, members: Tensor) -> None:
    inside = int(members.sum()) if members.dtype == torch.bool else -1
    if scores.ndim != 1 or members.shape != scores.shape or scores.isnan().any() or inside < 0:
        raise InvalidTensorError(
            "there must be (N) scores without NaN and (N) bool members, but there are scores of "
            f"shape {tuple(scores.shape)} and members of shape {tuple(members.shape)} and type "
            f"{members.dtype}."
        )
    if not 0 < inside < len(members):
        raise InvalidTensorError(
            f"there must be members and non-members, but {inside} of {len(members)} are members."
        )
