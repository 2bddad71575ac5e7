"""What a certified error is compared with, on the same queries: mean query, label, clean scores.

With the certified error F, the label's error Y and the least error C of any attack on clean scores,
the share of what clean scores reveal beyond the label that a release hides is

    G = (F - C) / (Y - C),    G <= g    if and only if    F <= (1 - g) C + g Y.

:func:`least_gap` tests each g by one bet on all three at once. Queries meet rows of a pool: X is
half the squared distance of a query to a row of its cell that no other query met, 0 if none is
left, so that E X <= F. A fixed attack on clean scores errs c >= C on average, and a fixed guess by
label y >= Y. If G <= g, then X - (1 - g) c - g y has a mean of at most 0 given all earlier queries,
and for each bet b in [0, 1] the product of 1 + b (X - (1 - g) c - g y) is a nonnegative
supermartingale: it exceeds 1 / risk with a probability of at most risk (Ville's inequality). A
mixture of bets keeps this. An attack that errs more than the best one makes the bound smaller:
conservative. Pool, queries, and the rows that attack and guess were fitted to must be different
draws.

Source: Waudby-Smith & Ramdas, "Estimating means of bounded random variables by betting" (Journal of
the Royal Statistical Society B 86, 2024). The statement about three means at once is ours.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from oneway.defenses.codebook.measures import ROWS_AT_ONCE, error_shares
from oneway.metrics import bootstrap_mean

BETS = (1.0, 0.5, 0.25, 0.125, 0.0625)
"""Fractions that are bet at once; each has half the stake of the one before."""

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

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Yardsticks":
        """Read what :func:`dataclasses.asdict` returned.

        Raises:
            KeyError: A value is missing.
            TypeError: A value is unknown or of another kind.
        """
        errors = {
            name: None if values[name] is None else Yardstick(**values[name])
            for name in ("prior", "label", "clean")
        }
        return cls(**{**values, **errors})

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
        for name in ("prior", "label", "clean"):
            each: Yardstick | None = getattr(self, name)
            if each is None and name == "clean":
                continue
            ends = (None,) if each is None else (each.low, each.error, each.high)
            if not all(isinstance(end, float) and 0 <= end <= 1 for end in ends):
                yield f"the error of the {name} is not from 0 to 1"
            elif each is not None and not each.low <= each.error <= each.high:
                yield f"the interval of the {name} does not hold its error"
        if not all(
            isinstance(error, float) and 0 <= error <= 1 for error in self.by_label.values()
        ):
            yield "the error of a label alone is not from 0 to 1"
        least: object = self.least_gap
        if least is not None and not (isinstance(least, float) and 0 <= least < 1):
            yield "least_gap is not from 0 to 1"


def yardstick(errors: Tensor, level: float) -> Yardstick:
    """Return the mean of ``(N)`` errors in [0, 1] with its bootstrap interval.

    Args:
        errors: ``(N)`` floating, N at least 2.
        level: Level of the interval.
    """
    # Always the same draws, so that nobody picks them.
    interval = bootstrap_mean(errors, generator=Generator().manual_seed(0), level=level)
    return Yardstick(interval.estimate, interval.low, min(interval.high, 1.0))


def yardsticks_of_labels(labels: Tensor, queries: Tensor, level: float) -> Yardsticks:
    """Return what guesses by mean and by label err, estimated as the certified error is.

    Args:
        labels: ``(N)`` int64, the predicted label of each query.
        queries: ``(N, D)`` floating, in [0, 1].
        level: Level of the intervals.
    """
    prior, label = (error_shares(cells, queries)[0] for cells in (torch.zeros_like(labels), labels))
    numbers, counts = labels.cpu().unique(return_counts=True)
    by_label = {
        str(number): float(label[labels.cpu() == number].mean())
        for number in numbers[counts > 1].tolist()
    }
    ends = [yardstick(errors, level) for errors in (prior, label)]
    return Yardsticks(ends[0], ends[1], by_label)


def halves_to_pool(cells: Tensor, queries: Tensor, pool_cells: Tensor, pool: Tensor) -> Tensor:
    """Return half the squared distance of each query to an unused pool row of its cell.

    Args:
        cells: ``(N)`` int64, the cell of each query.
        queries: ``(N, D)`` floating, in [0, 1].
        pool_cells: ``(M)`` int64, the cell of each pool row.
        pool: ``(M, D)`` the pool rows.

    Returns:
        ``(N)`` float64 means over entries, in [0, 1/2]; 0 where no row of the cell is left.
    """
    numbers = torch.cat([cells, pool_cells]).unique(return_inverse=True)[1]
    own, theirs = numbers[: len(cells)], numbers[len(cells) :]
    counts = theirs.bincount(minlength=int(numbers.max()) + 1)
    order = theirs.argsort(stable=True)
    begin = counts.cumsum(0) - counts
    # A query's number within its cell is that of the pool row that it meets.
    sizes = own.bincount(minlength=len(counts))
    ranks = torch.empty_like(own)
    first = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    ranks[own.argsort(stable=True)] = torch.arange(len(own), device=own.device) - first
    meets = ranks < counts[own]
    met = order[(begin[own] + ranks)[meets]]
    halves = torch.zeros(len(own), dtype=torch.float64, device=own.device)
    parts = zip(queries[meets].split(ROWS_AT_ONCE), pool[met].split(ROWS_AT_ONCE), strict=True)
    halves[meets] = torch.cat(
        [(one.double() - other.double()).square().mean(-1) / 2 for one, other in parts]
    )
    return halves


def least_gap(
    halves: Tensor, clean_errors: Tensor, label_errors: Tensor, level: float
) -> float | None:
    """Return a lower bound on the closed gap of any attacker; see the module.

    Args:
        halves: ``(N)`` from :func:`halves_to_pool`, in [0, 1/2].
        clean_errors: ``(N)`` errors of a fixed attack on clean scores, in [0, 1], same queries.
        label_errors: ``(N)`` errors of a fixed guess by label, in [0, 1], same queries.
        level: Probability with which the bound holds, in (0, 1).

    Returns:
        The largest tested value up to which all are rejected, at least 0; None if 0 is not.
    """
    found = None
    for gap in GAPS:
        if log_wealth(halves, clean_errors, label_errors, gap) < -math.log(1 - level):
            break
        found = gap
    return found


def log_wealth(halves: Tensor, clean_errors: Tensor, label_errors: Tensor, gap: float) -> float:
    """Return the logarithm of what betting against "G is at most ``gap``" earned.

    Args:
        halves: See :func:`least_gap`.
        clean_errors: See :func:`least_gap`.
        label_errors: See :func:`least_gap`.
        gap: From 0 to 1.
    """
    gains = (halves - (1 - gap) * clean_errors - gap * label_errors).double()
    bets = torch.tensor(BETS, dtype=torch.float64, device=gains.device)
    earned = torch.stack([(bet * gains).log1p().sum() for bet in bets])
    return float((earned + (bets / bets.sum()).log()).logsumexp(0))
