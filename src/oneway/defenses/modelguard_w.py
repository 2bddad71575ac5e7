"""ModelGuard-W: the answer that misleads a copy most, within an L1 distance, label kept."""

import torch
from torch import Tensor

from oneway.defenses.base import ScoreDefense
from oneway.defenses.scores import log_probabilities, logits_of
from oneway.options import option

LEAST = 1e-6
"""Added to each probability before its logarithm. Theirs."""

LEAD = 1e-4
"""Least lead of the label over any other class, unless its clean lead is smaller. Theirs."""

STEPS = 48
"""Steps of the search for the label's probability; each leaves two thirds of the interval."""

TOLERANCE = 1e-12

TIE = 1e-9
"""Price of moving the label's probability: among equal objectives the label moves least."""


class ModelGuardW(ScoreDefense):
    """Minimize the sum of ``log(f) * p`` over p within ``L1(p, f) <= epsilon``, label kept.

    f are the clean confidences. The answer takes probability from likely classes, and gives it to
    the least likely, as far as the label stays on top.

    The paper solves a linear program for each answer. Given the label's probability, its solution
    has a closed form: mass goes to the least likely classes first, each up to just below the
    label, and comes from the most likely first. The label's probability is found by ternary
    search, since the least objective is convex in it.

    Source:
        Tang et al., "ModelGuard: Information-Theoretic Defense Against Model Extraction Attacks",
        USENIX Security 2024. As published the label leads by 0.0001 even where its clean lead is
        smaller; here the clean lead is kept then.
    """

    epsilon: float = option(
        "Most L1 distance of the released probabilities. Theirs: 1.",
        default=1.0,
        above=0,
        is_strength=True,
    )

    def transform(self, logits: Tensor) -> Tensor:
        """Return ``(..., K)`` logits of the misleading probabilities."""
        clean = log_probabilities(logits).exp()
        # Among equals the lowest index comes first: the label.
        order = logits.argsort(dim=-1, descending=True, stable=True)
        ranked = clean.gather(-1, order)
        label, others = ranked[..., :1], ranked[..., 1:].flip(-1)
        lead = (label - others[..., -1:]).clamp_max(LEAD)
        low, high = (label - self.epsilon / 2).clamp_min(0), (label + self.epsilon / 2).clamp_max(1)
        for _ in range(STEPS):
            first, second = low + (high - low) / 3, high - (high - low) / 3
            costs = _cost(label, others, torch.stack([first, second]), lead, self.epsilon)
            left = costs[0] < costs[1]
            low, high = torch.where(left, low, first), torch.where(left, second, high)
        moved, _ = _moved(label, others, high, lead, self.epsilon)
        answer = torch.cat([high, moved.flip(-1)], -1).clamp_min(0)
        return logits_of(torch.empty_like(clean).scatter(-1, order, answer), logits.dtype)


def _cost(label: Tensor, others: Tensor, level: Tensor, lead: Tensor, epsilon: float) -> Tensor:
    """Return the ``(..., 1)`` least objective with the label at ``level``; infinite: none fits."""
    moved, fits = _moved(label, others, level, lead, epsilon)
    cost = level * (label + LEAST).log() + (moved * (others + LEAST).log()).sum(-1, keepdim=True)
    return torch.where(fits, cost + TIE * (level - label).abs(), torch.inf)


def _moved(
    label: Tensor, others: Tensor, level: Tensor, lead: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """Return the best probabilities of the other classes, and whether the label's level fits.

    Args:
        label: ``(..., 1)`` the label's clean probability.
        others: ``(..., K - 1)`` those of the other classes, ascending.
        level: ``(..., 1)`` the label's released probability.
        lead: ``(..., 1)`` least lead of the label.
        epsilon: Most L1 distance.

    Returns:
        ``(..., K - 1)`` probabilities, and ``(..., 1)`` bool.
    """
    most, taken = level - lead, label - level
    ranks = torch.arange(others.shape[-1], dtype=others.dtype, device=others.device)
    # Without the bound on L1, the least likely classes are filled up, one after the other.
    filled = torch.minimum((1 - level - most * ranks).clamp_min(0), most.clamp_min(0))
    received = (filled - others).clamp_min(0).sum(-1, keepdim=True)
    received = torch.minimum(received, epsilon / 2 - (-taken).clamp_min(0))
    forced = (others - most).clamp_min(0)
    given = received - taken - forced.sum(-1, keepdim=True)
    fits = (given > -TOLERANCE) & (most * others.shape[-1] > 1 - level - TOLERANCE)
    gains = _spread(received, (most - others).clamp_min(0))
    losses = _spread(given, (others - forced).flip(-1)).flip(-1)
    return others - forced + gains - losses, fits


def _spread(amount: Tensor, rooms: Tensor) -> Tensor:
    """Fill ``(..., n)`` rooms one after the other, until the ``(..., 1)`` amount is used up."""
    before = rooms.cumsum(-1) - rooms
    return torch.minimum((amount - before).clamp_min(0), rooms)
