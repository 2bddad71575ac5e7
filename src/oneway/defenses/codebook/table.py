"""The table of a codebook: from a row of scores to the number of its cell."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from oneway.checks import check_count, check_logits
from oneway.errors import InvalidTensorError

MOST_OFFSET = 1e6
"""Largest offset, in nats: a softmax ignores it, and float32 could say no more beside it."""

AT_ONCE = 2**24
"""Numbers that a search among boxes compares at once, at most, but for a single row's."""


@dataclass(frozen=True)
class Sizes:
    """How large a table is.

    Attributes:
        num_classes: K.
        listed: T, classes that each label's table tells apart; the others share what is left.
        boxes: m, the most boxes of a label.
        cells: C, cells of all labels together.
    """

    num_classes: int
    listed: int
    boxes: int
    cells: int


class Codebook(nn.Module):
    """For each label a few boxes; each box belongs to a cell; each cell has one released vector.

    A row of scores is looked at through its label's *listed* classes, and the sum of all others:
    ``T + 1`` numbers, or K where all are listed. Its box is the first of its label whose upper
    edges they all keep within. With ``T`` far below K, a table for thousands of classes stays
    small, and so does the search.

    Attributes:
        classes: ``(K, T)`` int64, each label's listed classes, the label itself first.
        edges: ``(K, m, W)`` float64, upper edges of boxes; W is ``T + 1``, or K where all are
            listed. A label's last box has none, so that every row finds one. Places that no box
            fills are minus infinity.
        owner: ``(K, m)`` int64, the cell of each box.
        values: ``(C, W)`` float64, each cell's released probabilities: of its label's listed
            classes, and of *each* other class.
        offsets: ``(C)`` float64, in nats: what the logits of a cell's members have in common beyond
            their probabilities. A softmax ignores it; it keeps released logits near clean ones, in
            float32 and wider.
        labels: ``(C)`` int64, the label of each cell.
        members: ``(C)`` int64, calibration queries that were in each cell; 0 for a label that
            has too few, whose vector is the same whatever was asked.
    """

    classes: Tensor
    edges: Tensor
    owner: Tensor
    values: Tensor
    offsets: Tensor
    labels: Tensor
    members: Tensor

    def __init__(self, num_classes: int, listed: int, boxes: int, cells: int) -> None:
        """Build an empty table; :func:`oneway.defenses.codebook.fit.fit_codebook` fills it.

        Args:
            num_classes: K, at least 2.
            listed: T, from 1 to K.
            boxes: m, at least 1.
            cells: C, at least K.

        Raises:
            InvalidOptionError: A size is outside its range.
        """
        super().__init__()
        check_count("num_classes", num_classes, least=2)
        check_count("listed", listed)
        check_count("boxes", boxes)
        check_count("cells", cells, least=num_classes)
        self.sizes = Sizes(num_classes, min(listed, num_classes), boxes, cells)
        self.architecture: dict[str, Any] = dict(vars(self.sizes))
        width = width_of(num_classes, self.sizes.listed)
        labels = torch.arange(num_classes)
        listing = (labels[:, None] + torch.arange(self.sizes.listed)) % num_classes
        self.register_buffer("classes", listing)
        edges = torch.full((num_classes, boxes, width), -torch.inf, dtype=torch.float64)
        edges[:, 0] = torch.inf
        self.register_buffer("edges", edges)
        self.register_buffer("owner", labels[:, None].expand(-1, boxes).clone())
        values = torch.full((cells, width), 1 / num_classes, dtype=torch.float64)
        self.register_buffer("values", values)
        self.register_buffer("offsets", torch.zeros(cells, dtype=torch.float64))
        self.register_buffer("labels", torch.arange(cells).clamp_max(num_classes - 1))
        self.register_buffer("members", torch.zeros(cells, dtype=torch.int64))

    @property
    def is_dense(self) -> bool:
        """Whether all classes are listed, so that nothing is left for the others."""
        return self.sizes.listed == self.sizes.num_classes

    @property
    def rows_at_once(self) -> int:
        """How many rows are compared with their label's boxes at once."""
        sizes = self.sizes
        numbers = max(sizes.boxes * width_of(sizes.num_classes, sizes.listed), sizes.num_classes)
        return max(1, AT_ONCE // numbers)

    def check(self, logits: Tensor) -> None:
        """Refuse logits that are not finite floating scores over this table's classes.

        Raises:
            InvalidTensorError: They are not.
        """
        check_logits(logits)
        if logits.shape[-1] != self.sizes.num_classes:
            raise InvalidTensorError(
                f"logits must be over the {self.sizes.num_classes} classes that the codebook was "
                f"fitted to, but got {tuple(logits.shape)}. Fit one to scores of this target."
            )

    def forward(self, logits: Tensor) -> Tensor:
        """Return the ``(N)`` int64 cells of ``(N, K)`` logits, which are not checked."""
        at_once = self.rows_at_once
        if len(logits) <= at_once:
            return self._cells(logits)
        return torch.cat([self._cells(rows) for rows in logits.split(at_once)])

    def _cells(self, logits: Tensor) -> Tensor:
        labels = logits.argmax(-1)
        rows = seen_through(
            logits.softmax(-1, dtype=torch.float64), self.classes[labels], self.is_dense
        )
        cells: Tensor = self.owner[labels, first_box(rows, self.edges[labels])]
        return cells

    def edges_by_class(self) -> Tensor:
        """Return ``(K, m, K)`` edges in the classes' own order, of a table that lists them all.

        Scores are then compared as they come.
        """
        index = self.classes.unsqueeze(1).expand_as(self.edges)
        return torch.empty_like(self.edges).scatter(-1, index, self.edges)

    def spread(self, values: Tensor, cells: Tensor) -> Tensor:
        """Return ``(N, K)`` entries from a table of listed ones.

        Args:
            values: ``(C, W)`` of each cell's listed classes, and of each other.
            cells: ``(N)`` which cells.
        """
        return self.laid_out(values[cells], self.classes[self.labels[cells]])

    def laid_out(self, chosen: Tensor, classes: Tensor) -> Tensor:
        """Return ``(N, K)`` entries from listed ones.

        Args:
            chosen: ``(N, W)``.
            classes: ``(N, T)`` int64, which classes they are of.
        """
        if self.is_dense:
            return torch.empty_like(chosen).scatter(-1, classes, chosen)
        listed = self.sizes.listed
        others = chosen[..., listed:].expand(*chosen.shape[:-1], self.sizes.num_classes)
        return others.scatter(-1, classes, chosen[..., :listed])


def first_box(rows: Tensor, edges: Tensor) -> Tensor:
    """Return the ``(N)`` number of the first box whose upper edges each row keeps within.

    Args:
        rows: ``(N, W)``.
        edges: ``(N, m, W)`` of each row's label.
    """
    within = (rows.unsqueeze(-2) <= edges).all(-1)
    # The first of several maxima; a byte per box, since truth values have no maximum.
    return within.view(torch.uint8).argmax(-1)


def width_of(num_classes: int, listed: int) -> int:
    """Return how many numbers a row is looked at through: all, or the listed and the rest."""
    return num_classes if listed == num_classes else listed + 1


def seen_through(probabilities: Tensor, classes: Tensor, dense: bool) -> Tensor:
    """Return rows as a label's table sees them.

    Args:
        probabilities: ``(N, K)``.
        classes: ``(N, T)`` int64, the listed classes of each row's label.
        dense: Whether they are all classes.

    Returns:
        ``(N, W)``: the listed entries, and unless ``dense`` what is left of 1.
    """
    listed = probabilities.gather(-1, classes)
    if dense:
        return listed
    return torch.cat([listed, (1 - listed.sum(-1, keepdim=True)).clamp_min(0)], -1)
