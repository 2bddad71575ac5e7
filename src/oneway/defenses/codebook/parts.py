"""Certified errors of the parts of traffic: of each label, cell or group, all at once.

A mean hides parts that err less. Each part is certified as if it were the whole traffic: attackers
may know which part a query belongs to. Each bound of m parts has 1 / m of the risk (Bonferroni), so
that the least of them holds, too.
"""

from collections.abc import Mapping, Sequence
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


@dataclass(frozen=True)
class Kind:
    """One way to part the traffic.

    Attributes:
        parts: ``(N)`` int64, the part that each query belongs to.
        shares: From :func:`oneway.defenses.codebook.measures.error_shares`, of all queries, if each
            cell lies in one part; None: they are computed part by part.
        least: Queries, or groups of queries, of a part below which its error is not certified.
    """

    parts: Tensor
    shares: tuple[Tensor, Tensor] | None = None
    least: int = LEAST_ROWS


def certify_parts(
    kinds: Sequence[Kind],
    cells: Tensor,
    queries: Tensor,
    level: float,
    groups: Tensor | None = None,
    keys: Tensor | None = None,
) -> list[PartErrors]:
    """Certify the error of each part of each kind that has enough queries, or groups of them.

    Args:
        kinds: Ways to part the traffic.
        cells: ``(N)`` int64, the cell of each query.
        queries: ``(N, D)`` floating, in [0, 1].
        level: Level of intervals and bounds, in (0, 1), for all parts of a kind together.
        groups: ``(N)`` int64, of queries that depend on each other the same number; None: all are
            independent.
        keys: See :func:`oneway.defenses.codebook.betting.bound_errors`.
    """
    all_rows = [_rows_of(kind.parts) for kind in kinds]
    # How many there are says nothing of what they show: bounds hold for any choice by it.
    enough = [
        {part: own for part, own in rows.items() if _draws(own, groups) >= kind.least}
        for kind, rows in zip(kinds, all_rows, strict=True)
    ]
    bounds = iter(
        bound_errors(
            [own for rows in enough for own in rows.values()],
            cells,
            queries,
            level,
            groups,
            [len(rows) for rows in enough for _ in rows],
            keys,
        )
    )
    found = list[PartErrors]()
    for kind, rows, certified in zip(kinds, all_rows, enough, strict=True):
        errors = {
            str(part): error_within(
                next(bounds), *_estimate(own, cells, queries, groups, kind.shares), len(own)
            )
            for part, own in certified.items()
        }
        left = len(cells) - sum(map(len, certified.values()))
        found.append(PartErrors(errors, len(rows) - len(certified), left / len(cells)))
    return found


def _rows_of(parts: Tensor) -> dict[int, Tensor]:
    """Return the int64 row numbers of each part, on the CPU."""
    numbers, sizes = parts.unique(return_counts=True)
    order = parts.argsort(stable=True).cpu()
    return dict(zip(numbers.tolist(), order.split(sizes.tolist()), strict=True))


def _draws(rows: Tensor, groups: Tensor | None) -> int:
    """Return how many queries, or groups of queries, some rows are."""
    return len(rows) if groups is None else len(groups[rows.to(groups.device)].unique())


def _estimate(
    own: Tensor,
    cells: Tensor,
    queries: Tensor,
    groups: Tensor | None,
    shares: tuple[Tensor, Tensor] | None,
) -> tuple[float, float]:
    """Return the estimate of a part with ``(n)`` int64 rows, and the share that is alone."""
    if shares is not None:
        values, lone = shares
        return float(values[own].mean()), float(lone[own.to(lone.device)].double().mean())
    rows = own.to(cells.device), own.to(queries.device)
    return estimated_error(cells[rows[0]], queries[rows[1]], select_rows(groups, own))
