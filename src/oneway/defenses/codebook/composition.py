"""What several answers reveal, to a query and to changed copies of it.

A certificate speaks of one answer. A client that sends frames of a video, or an attacker who shifts
a picture by a pixel, gets a *sequence* of cells. Of M equally likely candidates it names

    (different sequences of the candidates) / M,    at most min(M, C^m) / M

where whoever attacks can make the same copies of each candidate: with m answers of a table of C
cells the argument of :mod:`oneway.defenses.codebook.identification` holds for sequences. Other
attackers know less. The number of sequences is that of one draw of changes; other changes of the
same kind, and changes of another kind, give other numbers. Only the right side bounds them all.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from oneway.defenses.codebook.crossings import answers_of
from oneway.defenses.codebook.identification import chance_named, mean_chance_named
from oneway.defenses.codebook.table import Codebook

ANSWERS = (1, 4, 16)
"""Numbers of answers that a certificate states figures of, as far as there are so many."""

WARD = 20
"""Candidates of the shares that are means over sets of candidates."""


@dataclass(frozen=True)
class SeveralAnswers:
    """What m answers reveal, to a query and to m - 1 changed copies of it.

    Attributes:
        answers: m.
        label: Share of the M certified queries that is named by the labels of m answers.
        release: Share that is named by the cells of m answers.
        most: Largest share that m answers allow: min(M, C^m) / M.
        label_of_ward: The mean of such shares over all sets of ``WARD`` queries; None where there
            are fewer.
        release_of_ward: The same, of cells.
        error: Mean squared error per pixel of the best attack that was run on the cells and vectors
            of m answers: an estimate, and no bound. None where none was run.
    """

    answers: int
    label: float
    release: float
    most: float
    label_of_ward: float | None
    release_of_ward: float | None
    error: float | None = None


@dataclass(frozen=True)
class Composition:
    """What several answers reveal, by their number.

    Attributes:
        distinct: M, the different queries whose copies were asked about.
        rows: The figures, by number of answers.
        clean: Error of the same attack, fitted to as many rows, on one clean answer; None where
            none was run.
        label: Error of the mean of the label, from as many rows; None where no attack was run.
    """

    distinct: int
    rows: tuple[SeveralAnswers, ...]
    clean: float | None = None
    label: float | None = None

    def gap(self, row: SeveralAnswers) -> float | None:
        """Return the closed gap G that the attack on several answers leaves; None without one.

        Args:
            row: Figures of a number of answers.
        """
        clean, label = self.clean, self.label
        if row.error is None or clean is None or label is None or clean >= label:
            return None
        return (row.error - clean) / (label - clean)

    def faults(self, cells: int, queries: int) -> Iterator[str]:
        """Yield what cannot be true of a table's figures.

        Args:
            cells: C of the table.
            queries: Number of certified queries.
        """
        if not 1 <= self.distinct <= queries:
            yield "the queries with changed copies are not a number of certified queries"
            return
        if not self.rows or min(each.answers for each in self.rows) < 1:
            yield "it does not say how many answers were asked for"
            return
        errors = [self.clean, self.label, *(each.error for each in self.rows)]
        if not all(map(_is_error, errors)):
            yield "an error of several answers, of a clean one or of the label is not from 0 to 1"
        elif len({error is None for error in errors}) > 1:
            yield "errors of several answers stand without those to compare them with"
        before: SeveralAnswers | None = None
        for each in self.rows:
            yield from _faults_of_row(each, before, self.distinct, cells)
            before = each


def _faults_of_row(
    row: SeveralAnswers, before: SeveralAnswers | None, distinct: int, cells: int
) -> Iterator[str]:
    where = f"of {row.answers} answers"
    if before is not None and before.answers >= row.answers:
        yield "its numbers of answers do not rise"
    if row.most != largest_share(distinct, cells, row.answers):
        yield f"the largest share {where} is not that of the table"
    shares = [(row.label, row.release)]
    if row.label_of_ward is not None and row.release_of_ward is not None:
        shares.append((row.label_of_ward, row.release_of_ward))
    if not all(0 < share <= 1 for pair in shares for share in pair):
        yield f"a share {where} is out of range"
        return
    if any(label > release + 1e-9 for label, release in shares) or row.release > row.most + 1e-9:
        yield f"the labels or cells {where} name too many"
    if before is not None and before.release > row.release + 1e-9:
        yield "more answers name fewer queries"


def _is_error(value: float | None) -> bool:
    """Return whether a value is None or a mean squared error of values in [0, 1]."""
    return value is None or 0 <= value <= 1


def largest_share(distinct: int, cells: int, answers: int) -> float:
    """Return min(M, C^m) / M without computing large powers."""
    if answers * math.log(cells) >= math.log(distinct) + 1e-9:
        return 1.0
    return float(cells**answers) / distinct


def numbers_of_answers(most: int) -> list[int]:
    """Return the numbers of answers that figures are stated of, from 1 to ``most``."""
    return sorted({*(count for count in ANSWERS if count <= most), most})


def compose(codebook: Codebook, logits: Tensor, variants: Tensor) -> Composition:
    """Return how many queries are told apart by several answers.

    Args:
        codebook: The table.
        logits: ``(M, K)`` clean scores of different queries.
        variants: ``(M, m, K)`` those of m changed copies of each.
    """
    answers = answers_of(logits, variants)
    labels, cells = answers.argmax(-1), cells_of_answers(codebook, answers)
    rows = []
    for count in numbers_of_answers(answers.shape[1]):
        by_label, by_cell = (sequences(each[:, :count]) for each in (labels, cells))
        ward = len(by_cell) >= WARD
        rows.append(
            SeveralAnswers(
                answers=count,
                label=chance_named(by_label),
                release=chance_named(by_cell),
                most=largest_share(len(by_cell), codebook.sizes.cells, count),
                label_of_ward=mean_chance_named(by_label, WARD) if ward else None,
                release_of_ward=mean_chance_named(by_cell, WARD) if ward else None,
            )
        )
    return Composition(len(answers), tuple(rows))


@torch.no_grad()
def cells_of_answers(codebook: Codebook, answers: Tensor) -> Tensor:
    """Return the ``(N, m)`` int64 cells of ``(N, m, K)`` scores."""
    cells: Tensor = codebook(answers.flatten(0, 1))
    return cells.view(answers.shape[:2])


def sequences(values: Tensor) -> Tensor:
    """Return ``(N)`` int64 numbers of the rows of ``(N, m)``: equal rows have the same."""
    numbers: Tensor = values.unique(dim=0, return_inverse=True)[1]
    return numbers
