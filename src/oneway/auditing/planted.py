"""Planted entries: the entries of a query that some controls reveal on purpose."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

HALVINGS = 3
"""Times that the values of a planted entry are halved: at most ``2 ** 3`` levels."""

SCALE = 4.0
"""Nats that a planted entry which is 1 larger adds to a score of :class:`PlantedScores`."""


@dataclass(frozen=True)
class Planted:
    """The planted entries of the queries.

    Attributes:
        positions: ``(P)`` int64 flat indices in rising order, on the CPU; P is at most K - 1.
        values: ``(N, P)`` values of these entries in the auxiliary queries.
        classes: Number of classes, K.
    """

    positions: Tensor
    values: Tensor
    classes: int


def plant(images: Tensor, classes: int, most: int | None = None) -> Planted:
    """Plant the entries that vary most.

    Args:
        images: ``(N, ...)`` auxiliary queries.
        classes: Number of classes, K.
        most: Most entries to plant; None: K - 1.
    """
    positions = planted_positions(images, classes if most is None else min(classes, most + 1))
    return Planted(positions, images.flatten(1)[:, positions.to(images.device)], classes)


def planted_positions(images: Tensor, classes: int) -> Tensor:
    """Return the entries of a query that a planted leak reveals: the entries that vary most.

    Args:
        images: ``(N, ...)`` auxiliary queries.
        classes: Number of classes, K.

    Returns:
        ``(P)`` int64 flat indices in rising order, on the CPU; P is at most K - 1.
    """
    variances = images.flatten(1).double().var(0, correction=0)
    # A softmax ignores a constant, so that K probabilities carry K - 1 numbers.
    count = min(classes - 1, int((variances > 0).sum()))
    return variances.topk(max(1, count)).indices.sort().values.cpu()


def planted_errors(images: Tensor, reconstructions: Tensor, places: Tensor) -> Tensor:
    """Return ``(N)`` float64 mean squared errors per query over the planted entries alone.

    Args:
        images: ``(N, ...)`` true queries.
        reconstructions: Same shape.
        places: ``(P)`` int64 flat indices of the planted entries.
    """
    index = places.to(images.device)
    differences = images.flatten(1)[:, index] - reconstructions.flatten(1)[:, index]
    return differences.double().square().mean(1)


def level_borders(values: Tensor) -> tuple[float, ...]:
    """Return rising borders between levels: the mean, then the means of both halves, and so on.

    Values on both sides of each mean make levels for binary entries as well as for smooth ones.

    Args:
        values: ``(N)`` values of an entry.
    """
    groups, borders = [values.double().flatten()], set[float]()
    for _ in range(HALVINGS):
        halves = list[Tensor]()
        for group in groups:
            mean = group.mean()
            low, high = group[group <= mean], group[group > mean]
            if len(low) and len(high):
                borders.add(float(mean))
                halves += [low, high]
        groups = halves
    return tuple(sorted(borders))


class PlantedScores(nn.Module):
    """A model whose logits are the planted entries: its scores determine them.

    The entries repeat over all classes but the last, whose logit is 0.
    """

    positions: Tensor

    def __init__(self, planted: Planted) -> None:
        """Take the planted entries."""
        super().__init__()
        repeated = torch.arange(planted.classes - 1) % len(planted.positions)
        self.register_buffer("positions", planted.positions[repeated])

    def forward(self, queries: Tensor) -> Tensor:
        """Map ``(N, ...)`` queries to ``(N, K)`` logits."""
        entries = SCALE * queries.flatten(1)[:, self.positions.to(queries.device)]
        return nn.functional.pad(entries, (0, 1))
