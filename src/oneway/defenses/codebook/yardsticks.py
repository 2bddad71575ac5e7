"""What a certified error is compared with, on the same queries: mean query, label, clean scores.

With the certified error F, the label's error Y and the least error C of any attack on clean scores,
the share of what clean scores reveal beyond the label that a release hides is

    G = (F - C) / (Y - C),    G <= g    if and only if    F <= (1 - g) C + g Y.

:func:`least_gap` tests each g by bets on all three at once. Rows wait, ask and are paired off as
:mod:`oneway.defenses.codebook.betting` says. An attack on clean scores and a guess for each label
are fixed: fitted to rows that neither ask nor wait. A row q that asks and its partner z, which
waited in its cell, give

    X = half their mean squared distance,
    c, y = mean error of the attack, and of the guess, over q and z.

Without a partner X is 0, and c and y are those of q alone, which does not wait then. The gain
X - (1 - g) c - g y has a mean of at most 0 given the past, if G <= g. For of rows that wait only
the cells were used, so that z is one more draw from the cell of q: X adds up to at most F, and as
q and z are alike, c and y have the means of the attack's and the guess's errors, at least C and Y.
Gains are at least -L, with L = (1 - g) + g times the largest error of a guess: with stakes below
1 / L that depend on earlier gains alone, the product of 1 + stake * gain is an e-value, and so is
its average over orders. What z adds is what makes it sharp: X - y is minus the product of what q
and z differ from the guess by, which is near 0 for most pairs, though X and y are not. An attack
that errs more than the best one makes the bound smaller: conservative.

Source: Waudby-Smith & Ramdas, "Estimating means of bounded random variables by betting" (Journal of
the Royal Statistical Society B 86, 2024). The statement about three means at once is ours.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from oneway.checks import filled
from oneway.defenses.codebook.betting import (
    LARGEST,
    MOST,
    half_squared,
    orders_of_pairs,
    stakes_for,
)
from oneway.defenses.codebook.measures import CellMoments, in_cache, mean_square
from oneway.defenses.codebook.traffic import query_keys
from oneway.errors import InvalidOptionError
from oneway.metrics import bootstrap_mean

MOST_LEVEL = 0.999
"""Largest level of a bootstrap interval."""

MOST_RESAMPLED = 1024
"""Errors that are resampled at most: of twice as many or more, means of random batches stand for
them, which spread around the mean as the errors themselves do."""

GAPS = tuple(hundredth / 100 for hundredth in range(100))
"""Values of G that are tested, in rising order until one is not rejected."""


@dataclass(frozen=True)
class Yardstick:
    """The mean squared error per pixel of one way of guessing, with its bootstrap interval.

    Attributes:
        error: Mean over queries, in [0, 1].
        low: Lower end of the interval.
        high: Upper end of the interval.
    """

    error: float
    low: float
    high: float


@dataclass(frozen=True)
class Yardsticks:
    """Errors to compare a certified error with, on the same traffic.

    Attributes:
        prior: Guess: the mean of all queries.
        label: Guess: the mean of the queries with the same label. No release that keeps the label
            hides more.
        by_label: The same among the queries of each label, by label; of labels with two or more.
        clean: The best attack that was run on clean scores; None if none was.
        least_gap: Lower bound on the closed gap G of any attacker, at the certificate's level, from
            one bet on all errors; None where it does not exclude that G is 0 or less.
    """

    prior: Yardstick
    label: Yardstick
    by_label: Mapping[str, float]
    clean: Yardstick | None = None
    least_gap: float | None = None

    def gap(self, error: float) -> float | None:
        """Return the closed gap that an error estimates; None where there is no gap to close.

        Args:
            error: Mean squared error per pixel.
        """
        if self.clean is None or self.clean.error >= self.label.error:
            return None
        return (error - self.clean.error) / (self.label.error - self.clean.error)

    def faults(self) -> Iterator[str]:
        """Yield what cannot be true of them, in words."""
        for name, each in (("prior", self.prior), ("label", self.label), ("clean", self.clean)):
            if each is not None and not 0 <= each.low <= each.error <= each.high <= 1:
                yield f"the error of the {name} and its interval are not in order from 0 to 1"
        if not all(0 <= error <= 1 for error in self.by_label.values()):
            yield "the error of a label alone is not from 0 to 1"
        if self.least_gap is not None and not 0 <= self.least_gap < 1:
            yield "least_gap is not from 0 to 1"


def yardstick(errors: Tensor, level: float) -> Yardstick:
    """Return the mean of ``(N)`` errors in [0, 1] with its bootstrap interval.

    Args:
        errors: ``(N)`` floating, N at least 2.
        level: Level of the interval.

    Raises:
        InvalidOptionError: ``level`` is above ``MOST_LEVEL``.
    """
    if level > MOST_LEVEL:
        raise InvalidOptionError(
            f"level must be at most {MOST_LEVEL}, as far as resamples show, but got {level!r}."
        )
    # Always the same draws, so that nobody picks them.
    generator, estimate = Generator().manual_seed(0), float(errors.double().mean())
    size = len(errors) // MOST_RESAMPLED
    if size > 1:
        drawn = torch.randperm(len(errors), generator=generator)[: size * MOST_RESAMPLED]
        errors = errors.cpu().double()[drawn].view(-1, size).mean(-1)
    interval = bootstrap_mean(errors, generator=generator, level=level)
    low, high = max(0.0, min(interval.low, estimate)), min(1.0, max(interval.high, estimate))
    return Yardstick(estimate, low, high)


def yardsticks_of_labels(
    labels: Tensor, queries: Tensor, level: float, moments: CellMoments
) -> Yardsticks:
    """Return what guesses by mean and by label err, estimated as the certified error is.

    Queries that are alone in their label may add up to 1/4 each to the upper end.

    Args:
        labels: ``(N)`` int64, the predicted label of each query.
        queries: ``(N, D)`` floating, in [0, 1].
        level: Level of the intervals.
        moments: Those of the labels' queries.
    """
    prior, label = squared_errors(queries, moments)
    numbers, counts = labels.cpu().unique(return_counts=True)
    by_label = {
        str(number): float(label[labels.cpu() == number].mean())
        for number in numbers[counts > 1].tolist()
    }
    guess = yardstick(label, level)
    alone = (moments.counts == 1)[moments.cells].cpu()
    if alone.any():
        most = yardstick(label.masked_fill(alone, LARGEST), level)
        guess = replace(guess, high=most.high)
    return Yardsticks(yardstick(prior, level), guess, by_label)


def squared_errors(queries: Tensor, moments: CellMoments) -> tuple[Tensor, Tensor]:
    """Return ``(N)`` float64 errors of guessing the mean query, and the mean of the query's label.

    A query is no part of the mean that it is compared with: alone in its label, it errs by 0.

    Args:
        queries: ``(N, D)`` floating, in [0, 1].
        moments: Those of the labels' queries.
    """
    count, labels = len(queries), moments.counts[moments.cells]
    # Differences in float32, whose mean square is right to six digits.
    wide = torch.promote_types(queries.dtype, torch.float32)
    prior = (moments.sums.sum(0) / count).to(wide)
    means = (moments.sums / moments.counts.unsqueeze(-1)).to(wide)

    def parts() -> Iterator[Tensor]:
        for part, own in in_cache(queries, moments.cells):
            rows = part.to(wide)
            yield torch.stack(
                [mean_square(rows - prior), mean_square(rows - means.index_select(0, own))]
            )

    errors = filled(moments.sums.new_empty(2, count), parts())
    company = torch.stack([torch.full_like(labels, count), labels])
    errors *= company / (company - 1).clamp_min(1)
    return errors[0].cpu(), errors[1].cpu()


def least_gap(
    cells: Tensor,
    queries: Tensor,
    clean_errors: Tensor,
    label_errors: Tensor,
    *,
    largest: float,
    level: float,
    groups: Tensor | None = None,
    keys: Tensor | None = None,
) -> float | None:
    """Return a lower bound on the closed gap of any attacker; see the module.

    Args:
        cells: ``(N)`` int64, the cell of each query.
        queries: ``(N, D)`` floating, in [0, 1].
        clean_errors: ``(N)`` errors of a fixed attack on clean scores, in [0, 1].
        label_errors: ``(N)`` errors of a fixed guess for each label, in [0, 1].
        largest: Largest error that such a guess can have, for any query.
        level: Probability with which the bound holds, in (0, 1).
        groups: ``(N)`` int64, of queries that depend on each other the same number; None: all are
            independent.
        keys: See :func:`oneway.defenses.codebook.betting.bound_error`.

    Returns:
        The largest tested value up to which all are rejected, at least 0; None if 0 is not.
    """
    asked, met = orders_of_pairs(cells, query_keys(queries) if keys is None else keys, groups)
    # What a row that asked in vain differs by is known: nobody meets it.
    vain = torch.zeros(len(asked), len(cells) + 1, dtype=torch.bool)
    vain.scatter_(1, torch.where(met < 0, asked, -1) + 1, True)
    real, paired = asked >= 0, (met >= 0) & ~vain.gather(1, met + 1)
    halves = torch.zeros(asked.shape, dtype=torch.float64)
    halves[paired] = half_squared(queries, asked[paired], met[paired])
    partners = torch.where(paired, met, asked)
    clean, label = (
        torch.where(real, (errors[asked] + errors[partners]) / 2, 0.0)
        for errors in (clean_errors.double().cpu(), label_errors.double().cpu())
    )
    draws = len(cells) if groups is None else len(groups.unique())
    risk, found = 1 - level, None
    for gap in GAPS:
        logs = log_wealth(halves, clean, label, gap, expected=draws / 2, largest=largest, risk=risk)
        if float(logs.logsumexp(0)) < math.log(len(logs) / risk):
            break
        found = gap
    return found


def log_wealth(
    halves: Tensor,
    clean: Tensor,
    label: Tensor,
    gap: float,
    *,
    expected: float,
    largest: float,
    risk: float,
) -> Tensor:
    """Return the logarithm of what betting against "G is at most ``gap``" earned, by order.

    Args:
        halves: ``(O, A)`` float64, half the squared distances of pairs, in [0, 1/2].
        clean: ``(O, A)`` float64 errors of the attack on clean scores, in [0, 1].
        label: ``(O, A)`` float64 errors of the guess for the label, in [0, ``largest``].
        gap: From 0 to 1.
        expected: Number of pairs that was expected before any row came. How many there were is
            known at the end alone: a stake that rests on it would not depend on the past alone.
        largest: See :func:`least_gap`.
        risk: Probability with which the bound may fail.
    """
    gains = halves - (1 - gap) * clean - gap * label
    stakes = stakes_for(gains, expected, risk, 0.0)
    return (stakes.clamp_max(MOST / (1 - gap + gap * largest)) * gains).log1p().sum(-1)
