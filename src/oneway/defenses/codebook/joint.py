"""What answers of several versions of a codebook reveal together.

Whoever has the answers of two tables to one query knows the cell of each: the query lies in their
intersection. That is a cell of a finer release, and is certified as any other: the certificate
needs nothing but cells, queries and groups.

Which intersections may hold a query follows from the edges of boxes. A box that comes after another
one in its table holds no row that the other one takes, which gives it lower edges; what lies within
the edges of both boxes must be possible for probabilities of a label. What is left is an upper
bound on the number of cells. It is exact for tables that are nested.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from oneway.defenses.codebook.certificate import Certificate, certify
from oneway.defenses.codebook.identification import chance_named
from oneway.defenses.codebook.measures import bits_beyond_label, estimated_error
from oneway.defenses.codebook.table import Codebook
from oneway.defenses.codebook.together import Alone, Together
from oneway.defenses.codebook.traffic import first_copies, query_keys
from oneway.errors import InvalidOptionError, InvalidTensorError

SLACK = 1e-6
"""Sum of probabilities that rounding may add or take, and more."""


class JointCodebook(Codebook):
    """Several tables that answer the same query: a cell for each set of cells that may hold one.

    Released vectors are those of the first table. How many calibration queries lie in an
    intersection is not known, so that ``members`` are 0. The edges of boxes are not used.

    Attributes:
        tables: The tables.
        parts: ``(C, V)`` int64, the cell of each of V tables that each cell lies in.
        keys: ``(C)`` int64, ascending: these cells as one number.
    """

    parts: Tensor
    keys: Tensor

    def __init__(self, codebooks: Sequence[Codebook]) -> None:
        """Join tables of one model.

        Raises:
            InvalidOptionError: There are fewer than two.
            InvalidTensorError: They are over different classes.
        """
        if len(codebooks) < 2:
            raise InvalidOptionError(
                f"versions must be two tables or more, but got {len(codebooks)}. Pass all of them."
            )
        first = codebooks[0]
        classes = sorted({book.sizes.num_classes for book in codebooks})
        if len(classes) > 1:
            raise InvalidTensorError(
                f"all tables must be over the same classes, but are over {classes}. Pass tables "
                "of one model."
            )
        parts = torch.arange(first.sizes.cells, device=first.labels.device).unsqueeze(-1)
        for place, book in enumerate(codebooks[1:], 1):
            possible = torch.stack(
                [
                    possible_pairs(other, book)[parts[:, at]]
                    for at, other in enumerate(codebooks[:place])
                ]
            ).all(0)
            rows, cells = possible.nonzero(as_tuple=True)
            parts = torch.cat([parts[rows], cells.unsqueeze(-1)], -1)
        super().__init__(classes[0], first.sizes.explicit_classes, 1, len(parts))
        self.tables = codebooks
        self.register_buffer("parts", parts)
        self.register_buffer("keys", self._keys_of(parts))
        cells = parts[:, 0]
        self.classes, self.values = first.classes, first.values[cells]
        self.offsets, self.labels = first.offsets[cells], first.labels[cells]

    def forward(self, logits: Tensor) -> Tensor:
        """Return the ``(N)`` int64 intersections of ``(N, K)`` logits, which are not checked."""
        parts = torch.stack([table(logits) for table in self.tables], -1)
        return torch.searchsorted(self.keys, self._keys_of(parts))

    def _keys_of(self, parts: Tensor) -> Tensor:
        keys = torch.zeros_like(parts[:, 0])
        for table, cells in zip(self.tables, parts.unbind(-1), strict=True):
            keys = keys * table.sizes.cells + cells
        return keys


def possible_pairs(first: Codebook, second: Codebook) -> Tensor:
    """Return ``(C, D)`` truth values: whether a query may be in a cell of each of two tables.

    Where it is not known it is True, so that no query is in any other pair.
    """
    same = first.labels.unsqueeze(-1) == second.labels
    # Edges of different sums say nothing of each other.
    ordered = [book.classes.sort(-1) for book in (first, second)]
    if not torch.equal(ordered[0].values, ordered[1].values):
        return same
    possible = torch.zeros_like(same)
    for label in range(first.sizes.num_classes):
        used = [(book.edges[label] > -torch.inf).all(-1) for book in (first, second)]
        # The second table's numbers, in the order of the first one's classes.
        order = ordered[1].indices[label][ordered[0].indices[label].argsort()]
        order = torch.cat([order, torch.arange(len(order), second.edges.shape[-1]).to(order)])
        mine, others = first.edges[label][used[0]], second.edges[label][used[1]][:, order]
        boxes = _may_hold_rows(mine, others, len(ordered[0].indices[label])).nonzero(as_tuple=True)
        cells = (first.assignment[label][used[0]], second.assignment[label][used[1]])
        possible[cells[0][boxes[0]], cells[1][boxes[1]]] = True
    return possible


def _may_hold_rows(first: Tensor, second: Tensor, explicit: int) -> Tensor:
    """Return ``(m, n)`` truth values: whether a row may be in a box of each table.

    Args:
        first: ``(m, W)`` upper edges of a label's boxes, the label's own first.
        second: ``(n, W)``.
        explicit: T, classes before the rest.
    """
    upper = torch.minimum(first.unsqueeze(1), second).clamp_max(1.0)
    lower = torch.zeros_like(upper)
    dominated = torch.zeros(upper.shape[:-1], dtype=torch.bool, device=upper.device)
    for number, edges in enumerate((*first, *second)):
        later = torch.zeros_like(dominated)
        if number < len(first):
            later[number + 1 :] = True
        else:
            later[:, number - len(first) + 1 :] = True
        # The other box takes what lies below all its edges: along all axes but one that is sure.
        beyond = upper > edges
        dominated |= later & ~beyond.any(-1)
        one = later & (beyond.sum(-1) == 1)
        lower = torch.where(one.unsqueeze(-1) & beyond, lower.maximum(edges), lower)
    top = upper[..., :1]
    capped = torch.cat([upper[..., :explicit].minimum(top), upper[..., explicit:]], -1)
    fits = (lower.sum(-1) <= 1 + SLACK) & (capped.sum(-1) >= 1 - SLACK)
    leads = (top >= lower[..., :explicit] - SLACK).all(-1)
    return ~dominated & fits & leads


def certify_together(
    codebooks: Sequence[Codebook], logits: Tensor, queries: Tensor | None = None, **options: Any
) -> tuple[Certificate, Codebook]:
    """Certify what answers of several tables to the same query reveal together.

    Args:
        codebooks: Two tables of one model or more. Distortion is that of the first.
        logits: See :func:`certify`.
        queries: See :func:`certify`.
        **options: See :func:`certify`.

    Returns:
        The certificate, and the table that it is about, whose cells are the intersections.

    Raises:
        InvalidOptionError: There are fewer than two tables; or see :func:`certify`.
        InvalidTensorError: The tables are over different classes; or see :func:`certify`.
    """
    joint, groups = JointCodebook(codebooks), options.get("groups")
    certificate = certify(joint, logits, queries, **options)
    distinct = first_copies(query_keys(logits if queries is None else queries))
    if options.get("drop_copies"):
        logits, groups = logits[distinct], None if groups is None else groups[distinct]
        queries = None if queries is None else queries[distinct]
        distinct = torch.arange(len(distinct))
    labels = logits.argmax(-1)

    def alone(book: Codebook) -> Alone:
        cells, error = book(logits), None
        if queries is not None:
            flat = queries.flatten(1)
            error = estimated_error(cells, flat, groups)[0]
        return Alone(
            version=book.version,
            cells=book.sizes.cells,
            bits_measured=bits_beyond_label(cells, labels),
            error=error,
            named=chance_named(cells[distinct]),
        )

    counts = joint(logits)[distinct].unique(return_counts=True)[1]
    certificate = replace(
        certificate,
        table="",
        version="",
        labels_alone=0,
        members_least=int(counts.min()),
        together=Together(tuple(map(alone, codebooks)), chance_named(joint(logits)[distinct])),
    )
    return certificate, joint
