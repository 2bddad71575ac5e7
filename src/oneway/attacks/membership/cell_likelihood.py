"""The likelihood ratio attack on discrete releases: smoothed counts of cells, not normals."""

from typing import ClassVar

import torch
from torch import Tensor

from oneway.attacks.base import MembershipAttack
from oneway.attacks.membership.scores import scaled_confidence
from oneway.contracts import MembershipKnowledge

BINS = 20
"""Bins of the score, where a release has too many distinct vectors for counts."""

ROWS_PER_CELL = 4
"""Least number of candidates for each distinct vector; with fewer, scores are binned."""

LEAST_SHARED = 0.9
"""Least share of candidates whose vector reference models give, too; below, scores are binned."""

STRENGTHS = (1.0, 4.0, 16.0, 64.0, 1e6)
"""Counts that the distribution of a label's candidates is worth beside a candidate's own."""


class CellLikelihood(MembershipAttack):
    """Compare how often models with and without the candidate put it into its cell.

    A cell is a released vector. Counts of one candidate are smoothed with those of all candidates
    of its label; how strongly is chosen by the likelihood of the reference models' own cells, each
    predicted from the others. LiRA's normal distributions do not fit a codebook's few values, so
    that a gap that LiRA finds closed may be a failed attack. The Q answers count as independent.
    """

    name: ClassVar = "cell-likelihood"
    knows: ClassVar = "released scores, the true label, and reference models trained on candidates"
    requires: ClassVar = frozenset({"references"})

    def run(self, knowledge: MembershipKnowledge) -> Tensor:
        """Return the logarithms of the likelihood ratios."""
        total = torch.zeros(len(knowledge.labels), dtype=torch.float64)
        for answer in range(knowledge.released.shape[1]):
            cells = released_cells(knowledge, answer)
            total += _log_ratio(cells[0], cells[1:], knowledge)
        return total


def released_cells(knowledge: MembershipKnowledge, answer: int) -> Tensor:
    """Return ``(1 + S, N)`` int64 cells: of the attacked model, and of the references.

    Args:
        knowledge: The attacker's data and access.
        answer: Which of the Q answers to each candidate.
    """
    vectors = torch.cat([knowledge.released.unsqueeze(0), knowledge.reference_released])
    shown = vectors[:, :, answer]
    rounded = (shown.double() * 1e6).round()
    distinct, places = rounded.flatten(0, 1).unique(dim=0, return_inverse=True)
    cells: Tensor = places.view(shown.shape[:2])
    shared = torch.isin(cells[0], cells[1:]).double().mean()
    if len(distinct) * ROWS_PER_CELL <= len(knowledge.labels) and shared >= LEAST_SHARED:
        return cells
    scores = scaled_confidence(vectors, knowledge.labels)[:, :, answer]
    edges = scores.flatten().quantile(torch.linspace(0, 1, BINS + 1, dtype=torch.float64)[1:-1])
    bins: Tensor = torch.searchsorted(edges, scores.contiguous())
    return bins


def _log_ratio(own: Tensor, theirs: Tensor, knowledge: MembershipKnowledge) -> Tensor:
    """Return ``(N)`` log likelihood ratios of own cells under members and non-members."""
    members, labels = knowledge.reference_members, knowledge.labels
    count = int(theirs.max().maximum(own.max())) + 1
    overall = _shares(theirs, torch.ones_like(members), labels, count, None)
    sides = []
    for chosen in (members, ~members):
        prior = _shares(theirs, chosen, labels, count, overall)
        strength = max(STRENGTHS, key=lambda s: _predicted(theirs, chosen, prior, labels, s))
        hits = ((theirs == own) & chosen).sum(0)
        sides.append(
            (hits + strength * prior[labels, own]).log() - (chosen.sum(0) + strength).log()
        )
    return sides[0] - sides[1]


def _shares(
    cells: Tensor, chosen: Tensor, labels: Tensor, count: int, prior: Tensor | None
) -> Tensor:
    """Return ``(K, cells)`` shares of cells among the chosen answers of each label, smoothed."""
    kinds = int(labels.max()) + 1
    places = (labels * count + cells)[chosen]
    counts = torch.bincount(places, minlength=kinds * count).view(kinds, count).double()
    smooth = torch.full_like(counts, 1 / count) if prior is None else 2 * prior
    return (counts + smooth) / (counts + smooth).sum(-1, keepdim=True)


def _predicted(
    cells: Tensor, chosen: Tensor, prior: Tensor, labels: Tensor, strength: float
) -> float:
    """Return the mean log probability of each chosen cell, predicted from the other models."""
    total, rows = 0.0, 0
    number = chosen.sum(0)
    for own, mine in zip(cells, chosen, strict=True):
        hits = ((cells == own) & chosen).sum(0) - 1
        share = (hits + strength * prior[labels, own]) / (number - 1 + strength)
        total += float(share[mine].log().sum())
        rows += int(mine.sum())
    return total / max(rows, 1)
