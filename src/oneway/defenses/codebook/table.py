"""The table of a codebook: from a row of scores to the number of its cell."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from oneway.checks import check_count, check_logits
from oneway.errors import InvalidTensorError
from oneway.files import digest_tensors

MAX_OFFSET = 1e6
"""Largest offset, in nats: a softmax ignores it, and float32 has no digits left beside it."""

OFFSET_DECIMALS = 3
"""Decimal digits of offsets, in nats."""

NUMBERS_AT_ONCE = 2**21
"""Numbers that a search among boxes compares at once, at most, except for a single row's."""


@dataclass(frozen=True)
class Sizes:
    """How large a table is.

    Attributes:
        num_classes: K.
        explicit_classes: T, classes whose probabilities each label's table stores; the others
            share the rest.
        boxes: m, the largest number of boxes of a label.
        cells: C, cells of all labels together.
    """

    num_classes: int
    explicit_classes: int
    boxes: int
    cells: int

    @property
    def tensors(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Types and shapes of a table's tensors, by name, without the memory that they take."""
        classes, boxes, cells = self.num_classes, self.boxes, self.cells
        width = width_of(classes, self.explicit_classes)
        whole = ("labels", "members", "shared", "groups")
        return {
            "classes": (torch.int64, (classes, self.explicit_classes)),
            "edges": (torch.float64, (classes, boxes, width)),
            "assignment": (torch.int64, (classes, boxes)),
            "values": (torch.float64, (cells, width)),
            "offsets": (torch.float64, (cells,)),
            **dict.fromkeys(whole, (torch.int64, (cells,))),
        }


class Codebook(nn.Module):
    """For each label a few boxes; each box belongs to a cell; each cell has one released vector.

    A row of scores is projected to the probabilities of its label's *explicit* classes, and the
    sum of all others: W numbers, ``T + 1``, or K where all classes are explicit. Its box is the
    first of its label whose upper edges no number exceeds. With T far below K, a table for
    thousands of classes stays small, and so does the search.

    Attributes:
        classes: ``(K, T)`` int64, each label's explicit classes, the label itself first.
        edges: ``(K, m, W)`` float64, upper edges of boxes. The last box of a label has infinite
            edges, so that every row has a box. Unused boxes have edges of minus infinity.
        assignment: ``(K, m)`` int64, the cell of each box.
        values: ``(C, W)`` float64, each cell's released probabilities: of its label's explicit
            classes, and of *each* other class.
        offsets: ``(C)`` float64, in nats: what the logits of a cell's members have in common beyond
            their probabilities. A softmax ignores it; it keeps released logits near clean ones, in
            float32 and wider.
        labels: ``(C)`` int64, the label of each cell.
        members: ``(C)`` int64, distinct calibration queries in each cell. Where labels share
            levels, perhaps few or none; 0 for the only vector of such a label.
        shared: ``(C)`` int64, distinct calibration queries (or groups, where these were given) of
            all labels behind a level that labels share; 0 for a cell of its label's own queries.
        groups: ``(C)`` int64, distinct groups (people, accounts, devices) of these queries; 0 where
            groups were not given.
    """

    classes: Tensor
    edges: Tensor
    assignment: Tensor
    values: Tensor
    offsets: Tensor
    labels: Tensor
    members: Tensor
    shared: Tensor
    groups: Tensor

    def __init__(self, num_classes: int, explicit_classes: int, boxes: int, cells: int) -> None:
        """Build an empty table; :func:`oneway.defenses.codebook.fit.fit_codebook` fills it.

        Args:
            num_classes: K, at least 2.
            explicit_classes: T, at least 1; K if it is larger.
            boxes: m, at least 1.
            cells: C, at least K.

        Raises:
            InvalidOptionError: A size is outside its range.
        """
        super().__init__()
        check_count("num_classes", num_classes, least=2)
        check_count("explicit_classes", explicit_classes)
        check_count("boxes", boxes)
        check_count("cells", cells, least=num_classes)
        self.sizes = Sizes(num_classes, min(explicit_classes, num_classes), boxes, cells)
        self.architecture: dict[str, Any] = asdict(self.sizes)
        width = width_of(num_classes, self.sizes.explicit_classes)
        labels = torch.arange(num_classes)
        order = torch.arange(self.sizes.explicit_classes)
        self.register_buffer("classes", (labels[:, None] + order) % num_classes)
        edges = torch.full((num_classes, boxes, width), -torch.inf, dtype=torch.float64)
        edges[:, 0] = torch.inf
        self.register_buffer("edges", edges)
        self.register_buffer("assignment", labels[:, None].expand(-1, boxes).clone())
        values = torch.full((cells, width), 1 / num_classes, dtype=torch.float64)
        self.register_buffer("values", values)
        self.register_buffer("offsets", torch.zeros(cells, dtype=torch.float64))
        self.register_buffer("labels", torch.arange(cells).clamp_max(num_classes - 1))
        self.register_buffer("members", torch.zeros(cells, dtype=torch.int64))
        self.register_buffer("shared", torch.zeros(cells, dtype=torch.int64))
        self.register_buffer("groups", torch.zeros(cells, dtype=torch.int64))

    @property
    def is_dense(self) -> bool:
        """Whether all classes are explicit, so that no others share a rest."""
        return self.sizes.explicit_classes == self.sizes.num_classes

    @property
    def rows_at_once(self) -> int:
        """How many rows are compared with their label's boxes at once."""
        numbers = max(self.sizes.boxes * self.values.shape[-1], self.sizes.num_classes)
        return max(1, NUMBERS_AT_ONCE // numbers)

    def check(self, logits: Tensor) -> None:
        """Refuse logits that are not finite floating scores over this table's classes.

        Raises:
            InvalidTensorError: ``logits`` are something else.
        """
        check_logits(logits)
        if logits.shape[-1] != self.sizes.num_classes:
            raise InvalidTensorError(
                f"logits must be over the {self.sizes.num_classes} classes that the codebook was "
                f"fitted to, but got {tuple(logits.shape)}. Fit one to scores of this target."
            )

    def forward(self, logits: Tensor) -> Tensor:
        """Return the ``(N)`` int64 cells of ``(N, K)`` logits, which are not checked."""
        assignment = self.assignment.flatten()
        axes = self.search_edges().movedim(-1, 0).contiguous()

        def cells_of(rows: Tensor) -> Tensor:
            labels, compared = self._compared(rows)
            return assignment[labels * self.sizes.boxes + first_boxes(compared, labels, axes)]

        return self.in_parts(cells_of, logits)

    def in_parts(self, function: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
        """Return ``function`` of ``(N, K)`` logits, computed ``rows_at_once`` at a time."""
        at_once = self.rows_at_once
        if len(logits) <= at_once:
            return function(logits)
        return torch.cat([function(rows) for rows in logits.split(at_once)])

    def search_edges(self) -> Tensor:
        """Return ``(K, m, W)`` edges for :meth:`boxes_of`: in the classes' own order if dense.

        Then no row of scores needs to be brought into its label's order.
        """
        if not self.is_dense:
            return self.edges
        index = self.classes.unsqueeze(1).expand_as(self.edges)
        return torch.empty_like(self.edges).scatter(-1, index, self.edges)

    def boxes_of(self, logits: Tensor, edges: Tensor) -> Tensor:
        """Return the ``(N)`` int64 boxes of ``(N, K)`` logits, numbered ``label * m + box``.

        Args:
            logits: Not checked.
            edges: From :meth:`search_edges`.
        """
        labels, rows = self._compared(logits)
        return labels * self.sizes.boxes + first_box(rows, edges.index_select(0, labels))

    def _compared(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the ``(N)`` int64 labels, and the ``(N, W)`` numbers that edges are about."""
        labels = logits.argmax(-1)
        rows = logits.softmax(-1, dtype=torch.float64)
        if not self.is_dense:
            rows = project(rows, self.classes.index_select(0, labels), dense=False)
        return labels, rows

    def expand(self, values: Tensor, cells: Tensor) -> Tensor:
        """Return ``(N, K)`` entries, one per class, of cells.

        Args:
            values: ``(C, W)``, each cell's entries of its explicit classes, and of each other.
            cells: ``(N)`` int64.
        """
        # Several times as fast on a CPU as indexing.
        classes = self.classes.index_select(0, self.labels.index_select(0, cells))
        return self.scatter(values.index_select(0, cells), classes)

    def scatter(self, entries: Tensor, classes: Tensor) -> Tensor:
        """Return ``(N, K)`` entries, one per class, from those of explicit classes.

        Args:
            entries: ``(N, W)``.
            classes: ``(N, T)`` int64, the explicit classes that ``entries`` belong to.
        """
        if self.is_dense:
            return torch.empty_like(entries).scatter(-1, classes, entries)
        explicit = self.sizes.explicit_classes
        others = entries[..., explicit:].expand(*entries.shape[:-1], self.sizes.num_classes)
        return others.scatter(-1, classes, entries[..., :explicit])

    def digest(self) -> str:
        """Return the SHA-256 of the table's sizes and of all its tensors, in hexadecimal."""
        return digest_tensors(self.state_dict(), repr(sorted(self.architecture.items())))

    @property
    def version(self) -> str:
        """A short digest of what decides the answers: each box, in order, and its vector.

        How many queries are behind a vector is not part of it, nor how cells are numbered.
        """
        used = (self.edges > -torch.inf).all(-1)
        cells = self.assignment[used]
        answers = {"counts": used.sum(-1), "classes": self.classes, "edges": self.edges[used]}
        answers |= {"values": self.values[cells], "offsets": self.offsets[cells]}
        return short_digest(digest_tensors(answers))

    def fault(self) -> str | None:
        """Return the first rule that the table breaks, in words; None if it is sound."""
        sizes, values = self.sizes, self.values
        labels, cells = torch.arange(sizes.num_classes), torch.arange(sizes.cells)
        explicit = sizes.explicit_classes
        rest = (sizes.num_classes - explicit) * values[:, explicit:].sum(-1)
        total = values[:, :explicit].sum(-1) + rest
        rules = (
            (
                _outside(self.assignment, sizes.cells),
                "a box refers to a cell that does not exist",
            ),
            (_outside(self.labels, sizes.num_classes), "a label is unknown"),
            (_outside(self.classes, sizes.num_classes), "a class is unknown"),
            ((self.classes[:, 0] != labels).any(), "a label is not the first of its classes"),
            ((self.classes.sort(-1).values.diff() == 0).any(), "a class is explicit twice"),
            (self.edges.isnan().any(), "an edge is not a number"),
            (not self.offsets.isfinite().all(), "an offset is not finite"),
            (
                (self.offsets.abs() > MAX_OFFSET).any(),
                f"an offset is beyond {MAX_OFFSET:g} nats",
            ),
            (not (values.isfinite().all() and (values > 0).all()), "a probability is not positive"),
            ((total - 1).abs().max() > 1e-6, "probabilities do not sum to 1"),
            ((values[:, :1] <= values[:, 1:]).any(), "a label is not the largest"),
            (
                ((self.members < 0) | (self.shared < 0)).any(),
                "a cell has a negative member count",
            ),
            (
                ((self.groups < 0) | (self.groups > self.members)).any(),
                "a cell has more groups than members, or a negative number of groups",
            ),
        )
        fault = next((words for broken, words in rules if bool(broken)), None)
        if fault is None and (
            (self.labels[self.assignment] != labels.unsqueeze(-1)).any()
            or not torch.isin(cells, self.assignment).all()
            or (self.edges == math.inf).all(-1).any(-1).logical_not().any()
        ):
            return "its boxes and cells do not fit together"
        return fault


def short_digest(text: str) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def first_box(rows: Tensor, edges: Tensor) -> Tensor:
    """Return the ``(N)`` int64 number of the first box whose upper edges no number exceeds.

    Args:
        rows: ``(N, W)``.
        edges: ``(N, m, W)`` of each row's label.
    """
    return _first((rows.unsqueeze(-2) <= edges).all(-1))


def first_boxes(rows: Tensor, labels: Tensor, axes: Tensor) -> Tensor:
    """Return what :func:`first_box` does, axis by axis: several times as fast for many rows.

    Args:
        rows: ``(N, W)``.
        labels: ``(N)`` int64, the label of each row.
        axes: ``(W, K, m)`` edges of all labels.
    """
    within = torch.ones(len(rows), axes.shape[-1], dtype=torch.bool, device=rows.device)
    for values, edges in zip(rows.unsqueeze(-1).unbind(1), axes, strict=True):
        within &= values <= edges.index_select(0, labels)
    return _first(within)


def _first(within: Tensor) -> Tensor:
    # The first of several maxima; a byte per box, since truth values have no maximum.
    return within.view(torch.uint8).argmax(-1)


def rounded_offsets(offsets: Tensor) -> Tensor:
    """Return ``(C)`` float64 offsets, in nats, as a table holds them."""
    return offsets.round(decimals=OFFSET_DECIMALS).clamp(-MAX_OFFSET, MAX_OFFSET)


def width_of(num_classes: int, explicit_classes: int) -> int:
    """Return W, how many numbers of a row are compared: all, or the explicit and the rest."""
    return num_classes if explicit_classes == num_classes else explicit_classes + 1


def project(probabilities: Tensor, classes: Tensor, *, dense: bool) -> Tensor:
    """Return ``(N, W)`` rows as a label's table compares them.

    Args:
        probabilities: ``(N, K)``.
        classes: ``(N, T)`` int64, the explicit classes of each row's label.
        dense: Whether these are all classes.

    Returns:
        The explicit entries and, unless ``dense``, what is left of 1.
    """
    explicit = probabilities.gather(-1, classes)
    if dense:
        return explicit
    return torch.cat([explicit, (1 - explicit.sum(-1, keepdim=True)).clamp_min(0)], -1)


def _outside(numbers: Tensor, count: int) -> Tensor:
    """Return whether any number is not in ``[0, count)``."""
    return ((numbers < 0) | (numbers >= count)).any()
