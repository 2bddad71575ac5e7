"""Which rows fit a codebook, which certify it, and of which traffic a certificate speaks.

Rows are split at random, with their copies: a query that makes up half of the traffic makes up half
of each part. Otherwise the rows that certify would not be drawn from the traffic, and a bound on
their error would be false for the queries that a server sees. Copies never make members of a cell:
a hundred copies of one query are no company to each other.

Rows that depend on each other (frames of a video, images of one person) share a *group*. Groups are
split whole.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from oneway.checks import in_parts
from oneway.defenses.codebook.table import Codebook
from oneway.errors import InvalidTensorError

LEAST_SHARED = 20
"""Certified queries of a cell below which the share of its largest group says nothing."""

Copies = Literal["kept", "dropped"]


@dataclass(frozen=True)
class Traffic:
    """Which traffic a certificate speaks of, and who is behind each of its cells.

    Attributes:
        copies: ``"kept"``: copies of a query count, as in the traffic. ``"dropped"``: the traffic
            is one in which each of these queries is as frequent as any other.
        cells: Number of certified queries in each cell of the table; empty for a release without a
            table.
        distinct: Number of distinct certified queries; None if the queries were not given.
        commonest: Share of the most frequent query, in (0, 1]; None if the queries were not given.
        groups: Number of groups (people, accounts, devices) of the certified queries; None if they
            were not given.
        one_group: Share of queries whose cell holds certified queries of one group alone; None
            without groups.
        group_share: Share of the largest group in the worst cell, among cells with at least 20
            certified queries; None without groups or without such a cell.
    """

    copies: Copies
    cells: tuple[int, ...]
    distinct: int | None
    commonest: float | None
    groups: int | None
    one_group: float | None
    group_share: float | None

    def faults(self, codebook: Codebook, queries: int) -> Iterator[str]:
        """Yield what cannot be true of certified queries of a table, in words.

        Args:
            codebook: The table.
            queries: Number of certified queries.
        """
        if len(self.cells) != codebook.sizes.cells or min(self.cells) < 0:
            yield "it does not say how many queries each cell has"
        elif sum(self.cells) != queries:
            yield "its cells hold another number of queries"
        for name in ("distinct", "groups"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= queries:
                yield f"the number of {name} is out of range"
        for name, given in (
            ("commonest", self.distinct),
            ("one_group", self.groups),
            ("group_share", self.groups),
        ):
            value = getattr(self, name)
            if value is not None and (given is None or not 0 <= value <= 1):
                yield f"{name} is not a share"


def measure_traffic(
    cells: Tensor,
    copies: Copies,
    *,
    keys: Tensor | None = None,
    groups: Tensor | None = None,
) -> Traffic:
    """Return which traffic certified queries stand for, without the counts of a table's cells.

    Args:
        cells: ``(N)`` int64, the cell of each certified query.
        copies: Whether copies of queries were dropped.
        keys: ``(N)`` int64, from :func:`query_keys`; None if the queries were not given.
        groups: ``(N)`` int64, or None.
    """
    distinct, commonest, one_group, group_share = None, None, None, None
    if keys is not None:
        counts = keys.unique(return_counts=True)[1]
        distinct, commonest = len(counts), float(counts.max()) / len(cells)
    if groups is not None:
        inverse = cells.unique(return_inverse=True)[1]
        sizes, largest = inverse.bincount(), largest_groups(inverse, groups.to(cells.device))
        one_group = float(sizes[sizes == largest].sum()) / len(cells)
        enough = sizes >= LEAST_SHARED
        if enough.any():
            group_share = float((largest[enough] / sizes[enough].double()).max())
    return Traffic(
        copies=copies,
        cells=(),
        distinct=distinct,
        commonest=commonest,
        groups=None if groups is None else len(groups.unique()),
        one_group=one_group,
        group_share=group_share,
    )


def largest_groups(cells: Tensor, groups: Tensor) -> Tensor:
    """Return how many rows the largest group of each cell has, ``(C)`` int64.

    Args:
        cells: ``(N)`` int64 from 0 to C - 1, each number at least once.
        groups: ``(N)`` int64.
    """
    pairs, counts = torch.stack([cells, groups], -1).unique(dim=0, return_counts=True)
    largest = torch.zeros(int(cells.max()) + 1, dtype=torch.int64, device=cells.device)
    return largest.scatter_reduce(0, pairs[:, 0], counts, "amax")


def split_rows(
    count: int,
    shares: Sequence[float],
    generator: Generator,
    groups: Tensor | None = None,
) -> list[Tensor]:
    """Split rows at random; a group stays in one part.

    The same generator and the same first shares give the same first parts, however the rest is
    split.

    Args:
        count: N, number of rows.
        shares: Shares of the rows, or of the groups, of all parts but the last, which has the rest.
        generator: On the CPU.
        groups: ``(N)`` int64; None: each row is a group by itself.

    Returns:
        ``(n)`` int64 row numbers of each part, on the CPU.
    """
    if groups is None:
        units = torch.arange(count)
    else:
        check_groups(groups, count)
        units = groups.cpu().unique(return_inverse=True)[1]
    total = int(units.max()) + 1 if count else 0
    order = torch.randperm(total, generator=generator)
    place = order.argsort()[units]
    rows, sizes, start, taken = place.argsort(stable=True), [], 0, 0.0
    for share in shares:
        taken += share
        end = int((place < round(taken * total)).sum())
        sizes.append(end - start)
        start = end
    return list(rows.split([*sizes, count - start]))


def check_groups(groups: Tensor, rows: int) -> None:
    """Refuse groups that are not one whole number per row.

    Raises:
        InvalidTensorError: They are something else.
    """
    _check_numbers("groups", groups, rows, "Number the people, accounts or devices.")


def check_sensitive(sensitive: Tensor, rows: int) -> None:
    """Refuse sensitive values that are not one whole number per row.

    Raises:
        InvalidTensorError: They are something else.
    """
    _check_numbers("sensitive", sensitive, rows, "Number the values.")


def _check_numbers(name: str, numbers: Tensor, rows: int, remedy: str) -> None:
    if numbers.dtype != torch.int64 or numbers.shape != (rows,):
        raise InvalidTensorError(
            f"{name} must be int64 of shape ({rows},), one per query, but got {numbers.dtype} of "
            f"shape {tuple(numbers.shape)}. {remedy}"
        )


def query_bytes(queries: Tensor) -> Iterator[bytes]:
    """Yield what tells one of ``(N, ...)`` queries from others: its values in float32."""
    return (row.tobytes() for row in _values_of(queries))


def query_keys(queries: Tensor) -> Tensor:
    """Return ``(N)`` int64 keys on the CPU: equal queries of ``(N, ...)`` have the same.

    They are 64 bits of a SHA-256: of a million different queries two have the same key with a
    chance of one to 37 million.
    """
    digests = b"".join([hashlib.sha256(row.data).digest() for row in _values_of(queries)])
    return torch.from_numpy(np.frombuffer(digests, np.int64)[::4].copy())


def _values_of(queries: Tensor) -> Iterator[NDArray[np.float32]]:
    for rows in in_parts(queries.detach().flatten(1)):
        # Adding 0 turns -0 into 0, which is the same value in other bytes.
        yield from (rows.cpu().to(torch.float32) + 0.0).numpy()


def select_rows(values: Tensor | None, rows: Tensor) -> Tensor | None:
    """Return the rows with ``(n)`` int64 numbers of ``(N, ...)`` values; None without values."""
    return None if values is None else values[rows.to(values.device)]


def first_copies(keys: Tensor) -> Tensor:
    """Return the ``(M)`` int64 rows of distinct ``(N)`` keys: of equal ones, the first."""
    numbers = keys.unique(return_inverse=True)[1]
    rows = torch.arange(len(keys), device=keys.device)
    first = torch.full_like(rows, len(keys)).scatter_reduce(0, numbers, rows, "amin")
    return (first[numbers] == rows).nonzero()[:, 0]
