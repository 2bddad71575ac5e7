"""Certified errors of the parts of traffic: of each label, cell or group, all at once.

A mean hides parts that err less. Each part is certified as if it were the whole traffic: attackers
may know which part a query belongs to. Each bound of m parts has 1 / m of the risk (Bonferroni), so
that the least of them holds, too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from oneway.defenses.codebook.measures import CertifiedError, certified_error

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

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "PartErrors":
        """Read what ``dataclasses.asdict`` gave.

        Raises:
            KeyError: A value is missing.
            TypeError: A value is unknown or of another kind.
        """
        errors = {name: CertifiedError(**each) for name, each in values["errors"].items()}
        return cls(**{**values, "errors": errors})


def certify_parts(
    parts: Tensor, cells: Tensor, queries: Tensor, level: float, groups: Tensor | None = None
) -> PartErrors:
    """Certify the error of each part with at least ``LEAST_ROWS`` queries, or groups of them.

    Args:
        parts: ``(N)`` int64, the part that each query belongs to.
        cells: ``(N)`` int64, the cell of each query.
        queries: ``(N, D)`` floating, in [0, 1].
        level: Level of intervals and bounds, in (0, 1), for all parts together.
        groups: ``(N)`` int64, of queries that depend on each other the same number; None: all are
            independent.
    """
    rows = {
        part: (parts == part).nonzero()[:, 0].to(cells.device) for part in parts.unique().tolist()
    }
    draws = {
        part: len(numbers if groups is None else groups[numbers.to(groups.device)].unique())
        for part, numbers in rows.items()
    }
    # How many there are says nothing of what they show: bounds hold for any choice by it.
    enough = [part for part, count in draws.items() if count >= LEAST_ROWS]
    errors = {}
    for part in enough:
        own = rows[part]
        same = None if groups is None else groups[own.to(groups.device)]
        errors[str(part)] = certified_error(
            cells[own], queries[own], level, same, together=len(enough)
        )
    left = sum(len(numbers) for part, numbers in rows.items() if part not in enough)
    return PartErrors(errors, len(rows) - len(enough), left / len(parts))
