"""One family of releases from coarse to fine, and the choice of one by what it certifies.

Label only, codebooks, the largest entries rounded, everything rounded: all map many scores to
one. All are judged by the same figures on the same queries: what users lose, and the least error
of any attacker. Queries that are alone in their cell count as read, so that a fine grid is
credited with what its cells hold together, and no more.
"""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from oneway.checks import check_images, check_logits
from oneway.contracts import Defense
from oneway.defenses.codebook import (
    CodebookRelease,
    FitSettings,
    cut_calibration,
    merge_calibration,
)
from oneway.defenses.codebook.certificate import bits_beyond_label, error_shares
from oneway.defenses.codebook.choose import RATE_WEIGHTS
from oneway.defenses.registry import build_defense
from oneway.errors import InvalidOptionError
from oneway.releases import guarded_release

LATTICES: tuple[tuple[str, Mapping[str, Any]], ...] = (
    *(
        ("top-rounding", {"count": count, "decimals": decimals})
        for decimals in (1, 2, 3)
        for count in (1, 2, 3)
    ),
    *(("rounding", {"decimals": decimals}) for decimals in (1, 2, 3, 4)),
)
"""Releases without a table, by defense and options."""

MEMBERS = (5, 20)
"""Least members of the codebooks in the family, unless asked otherwise."""


CENTERS: tuple[Literal["median", "mean"], ...] = ("median", "mean")


@dataclass(frozen=True)
class Member:
    """One release of the family, and what was found of it on queries that it was not fitted to.

    Attributes:
        defense: Its registered name.
        options: Those of its constructor, or of its fit.
        release: It.
        l1_mean: Mean L1 distance of the probabilities.
        certified: The least mean squared error per pixel of any attacker, estimated; queries that
            are alone in their cell count as 0.
        alone: Share of those.
        bits: Measured bits beyond the label.
    """

    defense: str
    options: Mapping[str, Any]
    release: Defense
    l1_mean: float
    certified: float
    alone: float
    bits: float


def measure_family(
    logits: Tensor,
    queries: Tensor,
    *,
    generator: Generator,
    members: tuple[int, ...] = MEMBERS,
    held_out: float = 0.5,
    on_share: Callable[[float], None] | None = None,
) -> list[Member]:
    """Fit and certify all releases of the family.

    Args:
        logits: ``(N, K)`` clean scores of queries like those that will be asked.
        queries: ``(N, ...)`` in [0, 1], what was asked.
        generator: On the CPU; draws who certifies.
        members: Least members of codebooks.
        held_out: Share of the queries that certify.
        on_share: Called with the share that is done.

    Raises:
        InvalidTensorError: There are too few queries, or they are not what is said above.
        InvalidOptionError: ``held_out`` leaves nothing to fit or to certify with.
    """
    check_logits(logits)
    check_images(queries, rows=len(logits))
    apart = round(held_out * len(logits))
    if not 1 < apart < len(logits):
        raise InvalidOptionError(
            f"held_out must leave queries to fit and to certify with, but {held_out} of "
            f"{len(logits)} leaves {len(logits) - apart} and {apart}."
        )
    order = torch.randperm(len(logits), generator=generator).to(logits.device)
    own, fitting = order[:apart], order[apart:]
    shown = queries[own].flatten(1)
    total = len(members) * len(CENTERS) * len(RATE_WEIGHTS) + len(LATTICES)
    found = dict[tuple[float, ...], Member]()
    places = itertools.count(1)

    def tell(name: str, options: Mapping[str, Any], defense: Defense) -> None:
        one = _measured(name, options, defense, logits[own], shown)
        # Two weights may give the same table: the first stands for both.
        found.setdefault((one.l1_mean, one.certified, one.bits), one)
        if on_share is not None:
            on_share(next(places) / total)

    for least in members:
        for center in CENTERS:
            settings = FitSettings(min_members=least, center=center)
            calibration = cut_calibration(logits[fitting], settings)
            for rate_weight in RATE_WEIGHTS:
                book = merge_calibration(calibration, rate_weight).to(logits.device)
                fitted = {"min_members": least, "rate_weight": rate_weight, "center": center}
                tell("codebook", fitted, CodebookRelease(book))
    for name, options in LATTICES:
        tell(name, options, build_defense(name, options, None))
    return list(found.values())


def _measured(
    name: str, options: Mapping[str, Any], defense: Defense, logits: Tensor, queries: Tensor
) -> Member:
    released = guarded_release(defense, logits, dtype=torch.float64).confidences
    cells = released.unique(dim=0, return_inverse=True)[1]
    values, alone = error_shares(cells, queries)
    moved = (released - logits.double().softmax(-1)).abs().sum(-1)
    return Member(
        defense=name,
        options=options,
        release=defense,
        l1_mean=float(moved.mean()),
        certified=float(values.mean()),
        alone=float(alone.double().mean()),
        bits=bits_beyond_label(cells, logits.argmax(-1)),
    )


def choose_member(family: list[Member], l1_budget: float) -> Member:
    """Return the release with the best certified error within a budget.

    Args:
        family: From :func:`measure_family`.
        l1_budget: Mean L1 distance of probabilities that users may lose.

    Raises:
        InvalidOptionError: None keeps within it.
    """
    within = [member for member in family if member.l1_mean <= l1_budget]
    if not within:
        nearest = min(member.l1_mean for member in family)
        raise InvalidOptionError(
            f"no release of the family moves probabilities by {l1_budget} or less; the nearest "
            f"moves them by {nearest:.2g}. Allow more."
        )
    return max(within, key=lambda member: member.certified)


def best_members(family: list[Member]) -> list[Member]:
    """Return those that no other beats in both: what they move, and what they certify."""
    best, kept = -1.0, list[Member]()
    for member in sorted(family, key=lambda one: (one.l1_mean, -one.certified)):
        if member.certified > best:
            best = member.certified
            kept.append(member)
    return kept
