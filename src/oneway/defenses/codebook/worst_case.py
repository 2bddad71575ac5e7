"""What share of queries keeps a cap on the distance between clean scores and their answer.

A table of vectors that many queries share has scores that are far from every vector. A cap that
every answer keeps needs vectors of single queries, as ModelGuard's incremental quantiser releases
them (Tang et al., USENIX Security 2024), and such vectors are not k-anonymous. So queries beyond
the cap are answered with their cell's vector all the same, and their share is certified.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from oneway.defenses.codebook.shares import lower_expectation, weights_of_rows


@dataclass(frozen=True)
class WorstCase:
    """A cap on each answer's L1 distance of probabilities, and how often it is kept.

    Attributes:
        limit: The cap, in (0, 2].
        kept: Share of the certified queries within it.
        kept_least: Lower bound on the share of queries to come within it.
    """

    limit: float
    kept: float
    kept_least: float

    def faults(self) -> Iterator[str]:
        """Yield what cannot be true of a cap and shares that keep it."""
        if not (0 < self.limit <= 2 and 0 <= self.kept_least <= self.kept <= 1):
            yield "the share of queries that keep a cap is out of range"


def worst_case(l1: Tensor, limit: float, level: float, groups: Tensor | None = None) -> WorstCase:
    """Return how many queries keep a cap.

    Args:
        l1: ``(N)`` L1 distances of probabilities, in [0, 2], of queries that the codebook was not
            fitted to: independent draws from the traffic.
        limit: The cap, in (0, 2].
        level: Level of the lower bound (Hoeffding 1963, Theorem 1), in (0, 1).
        groups: ``(N)`` int64, the person, account or device behind each query: then groups are the
            independent draws, and each counts as one.
    """
    weights, draws = weights_of_rows(groups, len(l1))
    kept = min(1.0, float(weights[(l1 <= limit).cpu()].sum()) / draws)
    return WorstCase(float(limit), kept, lower_expectation(kept, draws, 1 - level))
