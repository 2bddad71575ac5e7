"""Search for the boundaries between labels: each is an exact equation on a linear model."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from oneway.attacks.stealing.base import Copy, StealingAttack, ThiefKnowledge
from oneway.attacks.stealing.equation_solving import with_one

HALVINGS = 22
"""Queries for each boundary: float32 has hardly more digits between two inputs."""

STARTS = 4
"""A part, one in so many, of the budget that finds inputs of unlike answers."""

SPANNED = 1e-6
"""Directions in which asked inputs differ by less, as a share of the largest, tell nothing."""


class Crossings(NamedTuple):
    """Boundaries between answers.

    Attributes:
        points: ``(M, ...)`` inputs on the boundaries.
        low: ``(M, ...)`` what is answered on one side.
        high: ``(M, ...)`` what is answered on the other side.
    """

    points: Tensor
    low: Tensor
    high: Tensor


class Boundary(StealingAttack):
    """Halve segments between two inputs of unlike labels, and solve for a linear model.

    On the boundary of two labels their logits are equal. Enough of these equations give a linear
    model up to one scale. No release that keeps the label hides them.

    Source:
        Lowd & Meek, "Adversarial Learning", KDD 2005.
    """

    name = "boundary"
    knows = "inputs like the queries, and that the model is linear; it uses labels alone"
    requires = frozenset({"own"})

    def run(self, knowledge: ThiefKnowledge) -> Mapping[str, Copy]:
        """Ask about a quarter of the budget, and spend the rest on halving."""
        starts = knowledge.own[: knowledge.budget // STARTS]
        labels = knowledge.ask(starts).argmax(-1)
        wanted = (knowledge.budget - len(starts)) // HALVINGS
        found = crossings(
            lambda inputs: knowledge.ask(inputs).argmax(-1),
            starts,
            labels,
            wanted,
            knowledge.generator,
        )
        copy = None if found is None else _solve(found, starts, labels)
        return {} if copy is None else {"labels": copy}


def crossings(
    ask: Callable[[Tensor], Tensor],
    starts: Tensor,
    answers: Tensor,
    wanted: int,
    generator: Generator,
) -> Crossings | None:
    """Return boundaries between answers, or None where there is none to find.

    Args:
        ask: ``(M, ...)`` inputs to ``(M)`` numbers of their answers.
        starts: ``(N, ...)`` inputs that were asked.
        answers: ``(N)`` numbers of their answers.
        wanted: M, number of boundaries; each costs ``HALVINGS`` queries.
        generator: Draws the pairs.
    """
    if not (wanted and len(starts)):
        return None
    first, second = (
        torch.randint(len(starts), (64 * wanted,), generator=generator).to(starts.device)
        for _ in range(2)
    )
    unlike = (answers[first] != answers[second]).nonzero().flatten()[:wanted]
    if not len(unlike):
        return None
    low, high = starts[first[unlike]], starts[second[unlike]]
    below, above = answers[first[unlike]], answers[second[unlike]]
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        answer = ask(middle)
        same = answer == below
        inside = same.view(-1, *[1] * (low.ndim - 1))
        low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
        above = torch.where(same, above, answer)
    return Crossings((low + high) / 2, below, above)


def _solve(found: Crossings, starts: Tensor, labels: Tensor) -> Copy | None:
    """Return the linear model whose logits are equal on all boundaries; None if they are too few.

    Directions in which the asked inputs do not differ are left out: nothing is known of them.
    """
    flat = starts.flatten(1).double().cpu()
    middle = flat.mean(0)
    scales, directions = torch.linalg.svd(flat - middle, full_matrices=False)[1:]
    basis = directions[scales > SPANNED * scales.max()].mT

    def coordinates(inputs: Tensor) -> Tensor:
        return with_one((inputs.flatten(1).double().cpu() - middle) @ basis)

    classes, known = labels.cpu().unique(return_inverse=True)
    place = {int(label): number for number, label in enumerate(classes)}
    points = coordinates(found.points)
    sides = [torch.tensor([place.get(int(one), -1) for one in side]) for side in found[1:]]
    usable = (sides[0] >= 0) & (sides[1] >= 0)  # a label in between may be new
    points, sides = points[usable], [side[usable] for side in sides]
    unknown = (len(classes) - 1) * points.shape[-1]
    if len(points) < unknown - 1:
        return None
    equations = torch.zeros(len(points), len(classes), points.shape[-1], dtype=torch.float64)
    rows = torch.arange(len(points))
    equations[rows, sides[0]] += points
    equations[rows, sides[1]] -= points
    # Logits have an offset for each input that no label shows: those of the first class are 0.
    solution = torch.linalg.svd(equations[:, 1:].flatten(1), full_matrices=True)[2][-1]
    weights = torch.zeros(len(classes), points.shape[-1], dtype=torch.float64)
    weights[1:] = solution.view(len(classes) - 1, -1)
    agree = (coordinates(starts) @ weights.mT).argmax(-1) == known
    opposed = (coordinates(starts) @ -weights.mT).argmax(-1) == known
    weights = weights if agree.sum() >= opposed.sum() else -weights
    count = int(classes.max()) + 1

    def copy(inputs: Tensor) -> Tensor:
        logits = torch.full((len(inputs), count), -torch.inf, dtype=torch.float64)
        logits[:, classes] = coordinates(inputs) @ weights.mT
        return logits.to(inputs.device)

    return copy
