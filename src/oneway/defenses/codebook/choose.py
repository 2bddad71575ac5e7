"""Choose a codebook: the best one within a budget, among all weights of a bit."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from oneway.checks import check_weight
from oneway.defenses.codebook.certificate import bits_beyond_label, distances
from oneway.defenses.codebook.fit import Calibration, merge_calibration
from oneway.defenses.codebook.table import Codebook
from oneway.errors import InvalidOptionError

RATE_WEIGHTS = (math.inf, *(10 ** (-power / 4) for power in range(17)), 0.0)
"""What one bit may be worth in L1: from one cell per label, over 1 to 1e-4, to all boxes apart."""

QUANTILE = 0.95
"""Of the distances that ``l1_quantile`` bounds."""

TOP = 5

MOST = {"l1_mean": 2.0, "l1_quantile": 2.0, "top5_kept": 1.0}
"""The largest values that there are of some figures."""


@dataclass(frozen=True)
class Budget:
    """What users may lose, or attackers may gain. All that are set must be kept.

    Within them the table with fewest bits is chosen, which is the one with the best certified
    error; with ``bits`` alone, the one that distorts least.

    Attributes:
        l1_mean: Mean L1 distance of probabilities, in [0, 2].
        l1_quantile: Its 95 % quantile, in [0, 2].
        logits: Mean absolute difference of centered logits per class, in nats.
        top5_kept: Share of the clean five likeliest classes that must be among the released ones,
            in [0, 1].
        bits: Measured bits beyond the label, at most.
    """

    l1_mean: float | None = None
    l1_quantile: float | None = None
    logits: float | None = None
    top5_kept: float | None = None
    bits: float | None = None

    def __post_init__(self) -> None:
        """Refuse values outside their range.

        Raises:
            InvalidOptionError: One is, or none is set.
        """
        told = {name: value for name, value in vars(self).items() if value is not None}
        if not told:
            raise InvalidOptionError(f"a budget must set one of {', '.join(vars(self))}.")
        for name, value in told.items():
            check_weight(name, value)
            if value > MOST.get(name, math.inf):
                raise InvalidOptionError(
                    f"{name} must be from 0 to {MOST[name]:g}, but got {value!r}."
                )


@dataclass(frozen=True)
class Measured:
    """What one codebook does to calibration scores: see :class:`Budget` for the names."""

    l1_mean: float
    l1_quantile: float
    logits: float
    top5_kept: float
    bits: float

    def keeps_within(self, budget: Budget) -> bool:
        """Say whether it keeps all that a budget sets."""
        for name, limit in vars(budget).items():
            own = getattr(self, name)
            if limit is not None and not (own >= limit if name == "top5_kept" else own <= limit):
                return False
        return True


@torch.no_grad()
def measure_codebook(book: Codebook, logits: Tensor) -> Measured:
    """Measure what a codebook does to ``(N, K)`` clean logits."""
    cells = book(logits)
    at_once = book.rows_at_once
    parts = [
        _moved(book, *some)
        for some in zip(cells.split(at_once), logits.split(at_once), strict=True)
    ]
    moved, difference, kept = (torch.cat(rows) for rows in zip(*parts, strict=True))
    return Measured(
        l1_mean=float(moved.mean()),
        l1_quantile=float(moved.quantile(QUANTILE)),
        logits=float(difference.mean()),
        top5_kept=float(kept.sum() / (len(kept) * min(TOP, logits.shape[-1]))),
        bits=bits_beyond_label(cells, book.labels[cells]),
    )


def _moved(book: Codebook, cells: Tensor, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return of each row the L1 distance, the mean difference of logits, and how many it keeps."""
    released, top = book.spread(book.values, cells), min(TOP, logits.shape[-1])
    moved, difference = distances(released, logits)
    kept = torch.zeros_like(released).scatter(-1, released.topk(top).indices, 1.0)
    likeliest = logits.double().softmax(-1).topk(top).indices
    return moved, difference, kept.gather(-1, likeliest).sum(-1)


def choose_codebook(calibration: Calibration, logits: Tensor, budget: Budget) -> Codebook:
    """Return the best codebook within a budget.

    Args:
        calibration: From :func:`oneway.defenses.codebook.fit.cut_calibration`.
        logits: ``(N, K)`` the scores that it was cut from.
        budget: What must be kept.

    Raises:
        InvalidOptionError: No codebook keeps within the budget; the message tells how near the
            nearest comes.
    """
    found: list[tuple[Measured, Codebook]] = []
    weight = calibration.settings.image_weight
    for rate_weight in RATE_WEIGHTS:
        book = merge_calibration(calibration, rate_weight, weight)
        found.append((measure_codebook(book.to(logits.device), logits), book))
    within = [pair for pair in found if pair[0].keeps_within(budget)]
    if not within:
        nearest = []
        for name, limit in vars(budget).items():
            if limit is not None:
                best = max if name == "top5_kept" else min
                nearest.append(f"{name} {best(getattr(one, name) for one, _ in found):.4g}")
        raise InvalidOptionError(
            f"no codebook of {calibration.settings.min_members} members keeps within the budget: "
            f"the nearest, each by itself, reach {'; '.join(nearest)}. Allow more, lower "
            "min_members, or pass more calibration queries."
        )
    only_bits = all(limit is None for name, limit in vars(budget).items() if name != "bits")
    if only_bits:
        return min(within, key=lambda pair: pair[0].l1_mean)[1]
    return min(within, key=lambda pair: (pair[0].bits, pair[0].l1_mean))[1]
