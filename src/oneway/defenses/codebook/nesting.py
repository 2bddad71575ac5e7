"""Tables whose cells lie within those of an older table: answers of both tell what the newer tells.

Two tables that answer one query tell in which cell of each it falls, and the intersection of two
cells is smaller than either. A table that is fitted *within* an older one only cuts the older one's
cells. So the older cell is a function of the newer one, and whoever has both answers knows no more
than whoever has the newer one.

An older cell with too few new queries stays as it is, and keeps the vector that it has released
already. So nothing is joined across the borders of older cells, and no vector stands for fewer
queries than its table says.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from oneway.defenses.codebook.table import Codebook, first_box
from oneway.errors import InvalidOptionError, InvalidTensorError

Box = tuple[Tensor, Tensor]
"""Upper edges, ``(W)``, and the numbers of the rows within."""


@dataclass(frozen=True)
class Nesting:
    """How a label's boxes lie in the cells of an older table.

    Attributes:
        older: The older table.
        parents: The older cell of each box.
        kept: Older cells that stay as they are.
        cells: The cells that joining starts from, as numbers of boxes.
    """

    older: Codebook
    parents: list[int]
    kept: frozenset[int]
    cells: list[frozenset[int]]

    def keep(self, book: Codebook, span: slice, cells: list[frozenset[int]]) -> None:
        """Copy what the older table has of the kept ones among the cells at ``span``."""
        for number, boxes in enumerate(cells):
            parent = self.parents[min(boxes)]
            if parent in self.kept:
                for name in ("values", "offsets", "members", "shared", "groups"):
                    target, source = getattr(book, name), getattr(self.older, name)
                    target[span.start + number] = source[parent]


def older_boxes(older: Codebook, label: int, rows: Tensor) -> tuple[list[Box], list[int]]:
    """Return an older table's boxes of a label, with the rows in them, and the cell of each.

    Args:
        older: The older table, on the CPU.
        label: The label.
        rows: ``(n, W)`` float64, probabilities as the older table compares them.
    """
    used = (older.edges[label] > -torch.inf).all(-1)
    edges = older.edges[label][used]
    places = first_box(rows, edges.expand(len(rows), -1, -1))
    boxes = [(each, (places == number).nonzero()[:, 0]) for number, each in enumerate(edges)]
    return boxes, older.assignment[label][used].tolist()


def nest(
    older: Codebook,
    boxes: list[Box],
    parents: list[int],
    is_enough: Callable[[Tensor], bool],
) -> Nesting:
    """Return the cells that joining starts from: enough rows in each, or an older cell as it is.

    Args:
        older: The older table.
        boxes: A label's boxes.
        parents: The older cell of each.
        is_enough: Whether rows, by their numbers, may stand behind a vector.
    """
    cells, kept = list[frozenset[int]](), set[int]()
    for parent in sorted(set(parents)):
        own = [number for number, each in enumerate(parents) if each == parent]
        large = [number for number in own if is_enough(boxes[number][1])]
        if not is_enough(torch.cat([boxes[number][1] for number in own])):
            kept.add(parent)
            large = []
        if not large:
            cells.append(frozenset(own))
            continue
        # Boxes with few rows go with the fullest one: they hold too few to be worth more.
        fullest = max(large, key=lambda number: len(boxes[number][1]))
        cells += [
            frozenset({number, *(set(own) - set(large) if number == fullest else ())})
            for number in large
        ]
    return Nesting(older, parents, frozenset(kept), cells)


def check_older(older: Codebook, num_classes: int) -> None:
    """Refuse an older table over other classes.

    Raises:
        InvalidTensorError: It is.
    """
    if older.sizes.num_classes != num_classes:
        raise InvalidTensorError(
            f"the older table must be over the {num_classes} classes of the scores, but is over "
            f"{older.sizes.num_classes}. Take one that was fitted to scores of the same model."
        )


def refuse_kept(nestings: Iterable[Nesting], least: int, *, with_groups: bool) -> None:
    """Refuse to keep older vectors that stand for too few queries, or for nobody knows whom.

    Args:
        nestings: Of all labels.
        least: Members that the new table promises.
        with_groups: Whether it counts groups.

    Raises:
        InvalidOptionError: A vector that must stay does not keep the promise.
    """
    for nesting in nestings:
        for parent in sorted(nesting.kept):
            members, groups, shared = (
                int(counts[parent])
                for counts in (nesting.older.members, nesting.older.groups, nesting.older.shared)
            )
            company = groups if with_groups else members
            # A vector of a shared level stands for the queries of all labels that share it.
            if not shared and company < least:
                kind = "groups" if with_groups else "queries"
                raise InvalidOptionError(
                    f"each vector must stand for {least} {kind} or more, but the new ones are too "
                    f"few to renew a vector of the older table that stands for {company}. Pass "
                    f"more queries, lower min_members, or fit a table of its own."
                )
