"""Certified errors of the parts of traffic: of each label, cell or group, all at once.

A mean hides parts that err less. Each part is certified as if it were the whole traffic: attackers
may know which part a query belongs to. Each bound of m parts has 1 / m of the risk (Bonferroni), so
that the least of them holds, too.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from oneway.defenses.codebook.betting import bound_errors
from oneway.defenses.codebook.measures import CertifiedError, error_within, estimated_error
from oneway.defenses.codebook.traffic import select_rows

LEAST_ROWS = 20
"""Queries, or groups of queries, of a part below which its error is not certified by itself."""


@dataclass(frozen=True)
class PartErrors:
    """Certified errors of the parts of one kind.

    Attributes:
        errors: By the part's number, of parts with enough queries. Interval and lower bound hold
            for all of them at once.
        few: Number of parts with too few queries, of which nothing is certified by itself.
        few_share: Share of queries that belong to them.
    """

    errors: Mapping[str, CertifiedError]
    few: int
    few_share: float


def certify_parts(
    parts: Tensor,
    cells: Tensor,
    queries: Tensor,
    level: float,
    groups: Tensor | None = None,
    keys: Tensor | None = None,
    shares: tuple[Tensor, Tensor] | None = None,
) -> PartErrors:
    """Certify the error of each part with at least ``LEAST_ROWS`` queries, or groups of them.

    Args:
        parts: ``(N)`` int64, the part that each query belongs to.
        cells: ``(N)`` int64, the cell of each query.
        queries: ``(N, D)`` floating, in [0, 1].
        level: Level of intervals and bounds, in (0, 1), for all parts together.
        groups: ``(N)`` int64, of queries that depend on each other the same number; None: all are
            independent.
        keys: See :func:`oneway.defenses.codebook.betting.bound_error`.
        shares: From :func:`oneway.defenses.codebook.measures.error_shares`, of all queries, if each
            cell lies in one part; None: they are computed part by part.
    """
    numbers, sizes = parts.unique(return_counts=True)
    order = parts.argsort(stable=True).cpu()
    rows = dict(zip(numbers.tolist(), order.split(sizes.tolist()), strict=True))

    # How many there are says nothing of what they show: bounds hold for any choice by it.
    enough = {
        part: own
        for part, own in rows.items()
        if len(own) >= LEAST_ROWS
        and (groups is None or len(groups[own.to(groups.device)].unique()) >= LEAST_ROWS)
    }
    bounds = bound_errors(list(enough.values()), cells, queries, level, groups, len(enough), keys)
    errors = {
        str(part): error_within(bound, *_estimate(own, cells, queries, groups, shares), len(own))
        for (part, own), bound in zip(enough.items(), bounds, strict=True)
    }
    left = len(parts) - sum(len(own) for own in enough.values())
    return PartErrors(errors, len(rows) - len(enough), left / len(parts))


def _estimate(
    own: Tensor,
    cells: Tensor,
    queries: Tensor,
    groups: Tensor | None,
    shares: tuple[Tensor, Tensor] | None,
) -> tuple[float, float]:
    """Return the estimate of a part with ``(n)`` int64 rows; see :func:`certify_parts`."""
    if shares is not None:
        values, lone = shares
        return float(values[own].mean()), float(lone[own.to(lone.device)].double().mean())
    rows = own.to(cells.device), own.to(queries.device)
    return estimated_error(cells[rows[0]], queries[rows[1]], select_rows(groups, own))
