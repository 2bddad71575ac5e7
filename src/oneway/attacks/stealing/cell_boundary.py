"""Search for the boundaries between cells: with a known table they give the weights exactly."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from oneway.attacks.stealing.base import Copy, StealingAttack, ThiefKnowledge
from oneway.attacks.stealing.boundary import HALVINGS, STARTS, crossings
from oneway.attacks.stealing.equation_solving import as_copy, with_one

RANGE = 20.0
"""Largest margin of two classes, in nats, at which the guard is searched for boundaries."""

GRID = 40_001
"""Margins at which the thief asks its own copy of the guard."""

MOST = 1000
"""Most boundaries: with more, answers are no cells."""


class CellBoundary(StealingAttack):
    """Halve segments between two inputs of unlike answers, where a known guard tells the margin.

    For a linear model of two classes behind a codebook. The boundary between two cells lies at one
    margin of the clean logits, which the thief finds in its own copy of the guard. D + 1 boundaries
    give the weights exactly, scale included, as D + 1 clean answers do; each costs ``HALVINGS``
    queries.

    Source:
        Tramer et al., "Stealing Machine Learning Models via Prediction APIs", USENIX Security 2016,
        whose equations come from clean scores.
    """

    name = "cell-boundary"
    knows = "inputs like the queries, that the model is linear with two classes, and the guard"
    requires = frozenset({"own", "release"})

    def run(self, knowledge: ThiefKnowledge) -> Mapping[str, Copy]:
        """Ask about a quarter of the budget, and spend the rest on halving."""
        if knowledge.release is None:
            return {}
        starts = knowledge.own[: knowledge.budget // STARTS]
        answers = knowledge.ask(starts)
        known = _known_boundaries(knowledge.release) if answers.shape[-1] == 2 else None
        if known is None:
            return {}
        levels, margins = known

        def number(released: Tensor) -> Tensor:
            return (released[:, 1:].double().cpu() - levels).abs().argmin(-1)

        found = crossings(
            lambda inputs: number(knowledge.ask(inputs)),
            starts,
            number(answers),
            (knowledge.budget - len(starts)) // HALVINGS,
            knowledge.generator,
        )
        if found is None:
            return {}
        at = margins[found.low, found.high]
        rows, at = with_one(found.points).cpu()[~at.isnan()], at[~at.isnan()]
        if len(at.unique()) < 2:  # of labels alone, the scale is unknown
            return {}
        weights = torch.linalg.pinv(rows) @ at.unsqueeze(-1)
        return {"cells": as_copy(torch.cat([-weights / 2, weights / 2], -1))}


def _known_boundaries(release: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor] | None:
    """Find the answers that a guard gives to two classes, and the margins where they change.

    Args:
        release: The thief's own copy of the guard.

    Returns:
        ``(L)`` released confidences of the second class, and ``(L, L)`` clean margins in nats
        between neighbouring answers, NaN where two answers meet nowhere, or at several margins.
        None if answers are no cells.
    """

    def answer(margins: Tensor) -> Tensor:
        return release(torch.stack([-margins / 2, margins / 2], -1))[:, 1].double().cpu()

    grid = torch.linspace(-RANGE, RANGE, GRID, dtype=torch.float64)
    levels, numbers = answer(grid).unique(return_inverse=True)
    if len(levels) > MOST:
        return None
    changes = (numbers[1:] != numbers[:-1]).nonzero().flatten()
    low, high, below = grid[changes], grid[changes + 1], levels[numbers[changes]]
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        same = answer(middle) == below
        low, high = torch.where(same, middle, low), torch.where(same, high, middle)
    margins = torch.full((len(levels), len(levels)), torch.nan, dtype=torch.float64)
    sides = torch.stack([numbers[changes], numbers[changes + 1]]).sort(0).values
    _, place, counts = sides.unique(dim=1, return_inverse=True, return_counts=True)
    once = counts[place] == 1
    first, second = sides[:, once]
    margins[first, second] = margins[second, first] = ((low + high) / 2)[once]
    return levels, margins
