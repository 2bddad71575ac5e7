"""One label's calibration rows, cut into boxes."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from oneway.defenses.codebook.boxes import Matrix, Vector, center_of, distances_from_center
from oneway.defenses.codebook.merging import Cell
from oneway.defenses.codebook.nesting import Box, Nesting
from oneway.defenses.codebook.sorted_rows import SortedRows
from oneway.defenses.codebook.table import project

NUMBERS_AT_ONCE = 2**20
"""Numbers of images that are added up at once."""

NUMBERS_SIDE_BY_SIDE = 2**18
"""Numbers of rows of several labels that are merged at the same time."""


@dataclass
class LabelRows:
    """One label's calibration rows, cut into boxes.

    Attributes:
        logits: ``(N, K)`` clean scores of all labels.
        numbers: ``(n)`` int64, which of them are the label's, on the CPU.
        classes: ``(T)`` int64, the label's explicit classes.
        center: See :class:`FitSettings`.
        cap: ``max_l1_worst``; infinite without one.
        boxes: Each box's upper edges, ``(W)``, and the numbers of its rows among the label's, in
            the order in which a table tries them; none if the label has too few rows.
        groups: ``(n)`` int64, the group of each row, or None.
        nesting: How the boxes lie in an older table's cells; None: in no others.
        image_distances: ``(m, m)`` mean squared differences of the boxes' mean images, or None.
        crossings: ``(m, m)`` float64, how many queries each pair of boxes parts from their changed
            copies; see :mod:`oneway.defenses.codebook.crossings`; None without these.
        pairs: See :class:`oneway.defenses.codebook.merging.Mergeable`.
        known: See there.
        vectors: Offset, in nats, and ``(W)`` center of cells, as far as they were computed.
    """

    logits: Tensor
    numbers: Tensor
    classes: Tensor
    center: str
    cap: float
    boxes: list[Box] = field(default_factory=list)
    groups: Tensor | None = None
    nesting: Nesting | None = None
    image_distances: Matrix | None = None
    crossings: Tensor | None = None
    pairs: dict[tuple[Cell, ...], Vector] = field(default_factory=dict)
    known: dict[int, float] = field(default_factory=dict)
    vectors: dict[Cell, tuple[float, Tensor]] = field(default_factory=dict)

    def scores(self) -> Tensor:
        """Return ``(n, K)`` float64 clean scores."""
        return self.logits[self.numbers.to(self.logits.device)].double().cpu()

    def rows(self, probabilities: Tensor) -> Tensor:
        """Return ``(n, W)`` probabilities as the table compares them."""
        dense = len(self.classes) == self.logits.shape[-1]
        return project(probabilities, self.classes.expand(len(probabilities), -1), dense=dense)

    def tails(self, probabilities: Tensor) -> Tensor | None:
        """Return ``(n)`` L1 distances of rows from rows that share their rest evenly; None: 0."""
        others = self.logits.shape[-1] - len(self.classes)
        if not others:
            return None
        rest = probabilities.index_fill(-1, self.classes, 0)
        even = (rest.sum(-1, keepdim=True) / others).expand_as(rest)
        return (rest - even.index_fill(-1, self.classes, 0)).abs().sum(-1)

    def union(self, numbers: Cell) -> Tensor:
        """Return the row numbers of several boxes together."""
        return torch.cat([self.boxes[number][1] for number in sorted(numbers)])

    def cells(self, cells: list[Cell]) -> list[Matrix]:
        """Return the ``(W, n)`` probabilities of each cell's rows, as the table compares them."""
        turned = np.ascontiguousarray(self.rows(self.scores().softmax(-1)).numpy().T)
        return [turned[:, self.union(cell).numpy()] for cell in cells]

    @cached_property
    def _rows_and_tails(self) -> tuple[Tensor, Tensor | None]:
        """Kept where there is a cap: each union is looked at row by row then."""
        probabilities = self.scores().softmax(-1)
        return self.rows(probabilities), self.tails(probabilities)

    @cached_property
    def _beyond(self) -> dict[Cell, int]:
        return {}

    def beyond(self, numbers: Cell) -> int:
        """Return how many of several boxes' rows are beyond the cap from their released vector.

        Where classes share a rest evenly, a row's distance is bounded by the sum of that from its
        own even rest, and that row's from the center.
        """
        if numbers not in self._beyond:
            (rows, tails), members = self._rows_and_tails, self.union(numbers)
            apart = distances_from_center(rows[members], self.center)
            apart = apart if tails is None else apart + tails[members]
            self._beyond[numbers] = int((apart > self.cap).sum())
        return self._beyond[numbers]

    def vectors_of(self, cells: list[Cell]) -> tuple[Tensor, Tensor]:
        """Return the ``(C)`` mean offsets and the ``(C, W)`` centers of cells; 0 without rows."""
        new = [cell for cell in cells if cell not in self.vectors]
        if new:
            # Before anything large, so that what stays leaves no hole in memory behind it.
            centers = torch.zeros(len(new), len(self.boxes[0][0]), dtype=torch.float64)
            scores = self.scores()
            rows, offsets = self.rows(scores.softmax(-1)), scores.logsumexp(-1)
            for cell, center in zip(new, centers, strict=True):
                own = self.union(cell)
                if len(own):
                    center.copy_(center_of(rows[own], self.center))
                self.vectors[cell] = float(offsets[own].mean()) if len(own) else 0.0, center
        found = [self.vectors[cell] for cell in cells]
        offsets = torch.tensor([offset for offset, _ in found], dtype=torch.float64)
        return offsets, torch.stack([center for _, center in found])

    def group_share(self, numbers: Cell) -> float:
        """Return the share of the largest group in several boxes; 0 without groups."""
        if self.groups is None:
            return 0.0
        counts = self.groups[self.union(numbers)].unique(return_counts=True)[1]
        return float(counts.max() / counts.sum())

    def weigh_images(self, images: Tensor) -> None:
        """Compare the boxes' mean images.

        Args:
            images: ``(N, D)`` of all labels; no copy of more than a few is made.
        """
        means, at_once = [], max(1, NUMBERS_AT_ONCE // max(1, images.shape[1]))
        for _, rows in self.boxes:
            total = torch.zeros(images.shape[1], dtype=torch.float64)
            for part in self.numbers[rows].split(at_once):
                total += images[part.to(images.device)].sum(0, dtype=torch.float64).cpu()
            means.append(total / max(1, len(rows)))
        stacked = torch.stack(means)
        distances: Matrix = torch.stack(
            [(stacked - each).square().mean(-1) for each in stacked]
        ).numpy()
        self.image_distances = distances


def sorted_rows_of(labels: Sequence[LabelRows], cells: list[list[Cell]]) -> SortedRows:
    """Return what weighs unions of the cells of each label; see :func:`merging.merge`."""
    rows, slots = dict[int, Matrix](), 0
    for label, own in zip(labels, cells, strict=True):
        rows |= dict(enumerate(label.cells(own), slots))
        slots += 2 * len(own)
    return SortedRows(rows, slots, labels[0].center)


def side_by_side(labels: Iterable[LabelRows]) -> Iterator[list[LabelRows]]:
    """Yield the labels that have boxes, as many at once as bounded memory allows."""
    together, numbers = list[LabelRows](), 0
    for label in labels:
        if label.boxes:
            own = len(label.numbers) * (len(label.classes) + 1)
            if together and numbers + own > NUMBERS_SIDE_BY_SIDE:
                yield together
                together, numbers = [], 0
            together, numbers = [*together, label], numbers + own
    if together:
        yield together
