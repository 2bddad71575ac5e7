"""How many candidates a release tells apart: exact figures of releases with finitely many answers.

**One set of candidates.** An attacker holds M candidates, and one of them is the query. The release
is deterministic, so that the candidates in the answer's cell are all that it leaves, and it ranks
none of them. With a prior p over candidates the best chance to name the right one is

    sum over cells of the largest p of a candidate in the cell,

which is (cells that hold a candidate) / M where all are equally likely. With r guesses the r
largest of each cell count. No attacker does better, and whoever may query the candidates, as the
attack ``matching`` does, reaches it: it needs neither the table nor the distribution of queries.

**Any set of candidates.** A table of C cells names the right one of M equally likely candidates in
at most C / M of the cases. For every success criterion and every side knowledge Z,

    E max over guesses of P(success | cell, Z)  <=  C * E max over guesses of P(success | Z),

since each cell's joint probability of a success is at most that without the cell. Beyond the label
the factor is the largest number of cells of one label. Answers to m queries about one candidate,
such as changed copies, are one of C^m sequences: the factor is C^m then.

Sources: Smith, "On the foundations of quantitative information flow" (FoSSaCS 2009) for the chance
after an answer; Braun, Chatzikokolakis & Palamidessi, "Quantitative notions of leakage for one-try
attacks" (MFPS 2009) for its largest growth, which is the number of answers of a deterministic
channel; Alvim, Chatzikokolakis, Palamidessi & Smith, "Measuring information leakage using
generalized gain functions" (CSF 2012) for any success criterion.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from oneway.checks import check_count, filled, in_parts, name_of
from oneway.defenses.codebook.sample import row_keys
from oneway.defenses.codebook.shares import lower_expectation, weights_of_rows
from oneway.errors import InvalidOptionError, InvalidTensorError
from oneway.releases import release

CANDIDATES = (10, 20, 50, 100, 200, 500, 1_000)
"""Numbers of candidates that a certificate states the chance of: a ward, a street, a hospital."""

GUESSES = 5
"""Guesses of the attacker who may name several candidates."""


@dataclass(frozen=True)
class NamedShare:
    """How often the right one of M equally likely candidates is named.

    Shares are means over all sets of M different certified queries; None where there are fewer.

    Attributes:
        candidates: M.
        label: Share named by the predicted label alone.
        release: Share named by the release.
        release_guesses: Share that is among ``GUESSES`` guesses, by the release.
        clean: Share named by clean float32 confidences.
        most: Largest share that any set of M candidates allows the release: C / M, at most 1.
    """

    candidates: int
    label: float | None
    release: float | None
    release_guesses: float | None
    clean: float | None
    most: float


@dataclass(frozen=True)
class Identification:
    """How many candidates a codebook tells apart.

    Attributes:
        cells: C, cells of the table.
        labels: K, labels of the table.
        distinct: Different queries behind the shares.
        curve: The shares, by number of candidates.
    """

    cells: int
    labels: int
    distinct: int
    curve: tuple[NamedShare, ...]

    def faults(self, cells: int, labels: int, queries: int) -> Iterator[str]:
        """Yield what cannot be true of a table's figures.

        Args:
            cells: C of the table.
            labels: K of the table.
            queries: Number of certified queries.
        """
        if (self.cells, self.labels) != (cells, labels):
            yield "its numbers of cells and labels are not those of the table"
        if not 1 <= self.distinct <= queries:
            yield "it has more different queries than queries, or none"
        if tuple(each.candidates for each in self.curve) != CANDIDATES:
            yield "its numbers of candidates are not those of every certificate"
            return
        for each in self.curve:
            yield from _faults_of_share(each, self)


def _faults_of_share(share: NamedShare, whole: Identification) -> Iterator[str]:
    where = f"for {share.candidates} candidates"
    if share.most != min(1.0, whole.cells / share.candidates):
        yield f"the largest share {where} is not that of the table"
    named = (share.label, share.release, share.release_guesses, share.clean)
    if share.candidates > whole.distinct:
        if named != (None,) * 4:
            yield f"it has shares {where}, more than it has queries"
    elif not all(
        each is not None and 1 / share.candidates - 1e-9 <= each <= 1 + 1e-9 for each in named
    ):
        yield f"a share {where} is out of range"
    elif share.label is not None and share.release is not None:
        most = min(1.0, whole.labels / share.candidates)
        if not share.label <= min(share.release, most) + 1e-9:
            yield f"the label alone names too many {where}"
        if share.release > share.most + 1e-9:
            yield f"the release names too many {where}"


@dataclass(frozen=True)
class SensitiveAccuracy:
    """How well a sensitive value, such as a diagnosis, is guessed from an answer.

    Attributes:
        values: Number of different values.
        nothing: Share of the most frequent value: the accuracy without any answer.
        label: Best accuracy given the predicted label, on these queries.
        release: Best accuracy given the cell, on these queries. The best guess is the cell's most
            frequent value among these same queries, which overestimates the accuracy on average.
        release_most: Upper bound on the accuracy of any attacker who sees the cell, on queries to
            come.
        homogeneous: Share of queries whose cell holds a single value, among these queries.
    """

    values: int
    nothing: float
    label: float
    release: float
    release_most: float
    homogeneous: float

    def faults(self) -> Iterator[str]:
        """Yield what cannot be true of accuracies."""
        if self.values < 1:
            yield "values is not a number of sensitive values"
        ordered = (0.0, self.nothing, self.label, self.release, self.release_most, 1.0)
        if not all(low <= high + 1e-9 for low, high in itertools.pairwise(ordered)):
            yield "accuracies at the sensitive value are not in their order"
        elif not 0 <= self.homogeneous <= self.release + 1e-9:
            yield "the share of queries in cells of a single value is out of range"


def chance_named(cells: Tensor, prior: Tensor | None = None, guesses: int = 1) -> float:
    """Return the best chance to name the right one of a set of candidates, given its cell.

    Args:
        cells: ``(M)`` int64, the cell of each candidate. Candidates are different: two copies of
            one query are one candidate.
        prior: ``(M)`` floating, at least 0, with sum 1: how likely each candidate is, given all
            that the attacker knows; None: all equally.
        guesses: Candidates that the attacker may name, at least 1.

    Returns:
        The chance, in ``[0, 1]``; see the module.

    Raises:
        InvalidTensorError: A tensor breaks the lines above.
        InvalidOptionError: ``guesses`` is below 1.
    """
    check_count("guesses", guesses)
    _check_cells(cells)
    if prior is None:
        prior = torch.full((len(cells),), 1 / len(cells), dtype=torch.float64, device=cells.device)
    elif (
        prior.shape != cells.shape
        or not prior.is_floating_point()
        or not bool((prior >= 0).all())
        or abs(float(prior.double().sum()) - 1) > 1e-6
    ):
        raise InvalidTensorError(
            f"prior must be floating of shape ({len(cells)},), at least 0 and with sum 1, but got "
            f"{name_of(prior.dtype)} of shape {tuple(prior.shape)}. Divide it by its sum."
        )
    order = prior.argsort(descending=True, stable=True)
    order = order[cells[order].argsort(stable=True)]
    # Each cell's candidates stand together now, the likeliest first.
    counts = cells.unique(return_counts=True)[1]
    starts = (counts.cumsum(0) - counts).repeat_interleave(counts)
    places = torch.arange(len(cells), device=cells.device) - starts
    return min(1.0, float(prior[order][places < guesses].double().sum()))


def mean_chance_named(cells: Tensor, candidates: int, guesses: int = 1) -> float:
    """Return :func:`chance_named`, averaged over all sets of equally likely candidates.

    Args:
        cells: ``(N)`` int64, the cells of N different queries that sets are drawn from.
        candidates: M, queries in a set, from 1 to N.
        guesses: Candidates that the attacker may name, at least 1.

    Returns:
        The mean chance, in ``[1 / M, 1]``. The number of a set's candidates in a cell of n queries
        is hypergeometric, so that the mean needs no draws.

    Raises:
        InvalidTensorError: ``cells`` are not int64 numbers of cells.
        InvalidOptionError: A number is out of range.
    """
    check_count("guesses", guesses)
    check_count("candidates", candidates)
    _check_cells(cells)
    if candidates > len(cells):
        raise InvalidOptionError(
            f"candidates must be at most the {len(cells)} queries that they are drawn from, but "
            f"got {candidates}. Pass more queries."
        )
    return _mean_chance(*_alike_cells(cells), candidates, guesses)


def _alike_cells(cells: Tensor) -> tuple[Tensor, Tensor]:
    """Return the float64 sizes of cells, each once, and how many cells have each size.

    Of clean scores nearly all cells have one query.
    """
    sizes, alike = cells.unique(return_counts=True)[1].cpu().double().unique(return_counts=True)
    return sizes, alike.double()


def _mean_chance(sizes: Tensor, alike: Tensor, candidates: int, guesses: int) -> float:
    """Return :func:`mean_chance_named` of queries whose cells have these sizes."""
    queries = int(sizes @ alike)
    # E min(X, r) = P(X > 0) + ... + P(X > r - 1).
    below, total = torch.zeros_like(sizes), 0.0
    for taken in range(min(guesses, candidates)):
        below = below + _hypergeometric(sizes, taken, queries, candidates)
        total += float((1 - below).clamp(0, 1) @ alike)
    return min(1.0, total / candidates)


def _hypergeometric(sizes: Tensor, taken: int, total: int, drawn: int) -> Tensor:
    """Return the chance that ``drawn`` of ``total`` queries hold ``taken`` of each cell's."""
    others = total - sizes
    possible = (sizes >= taken) & (others >= drawn - taken)
    whole = torch.tensor(total, dtype=torch.float64)
    logs = _log_choose(sizes, taken) + _log_choose(others, drawn - taken)
    return torch.where(possible, (logs - _log_choose(whole, drawn)).exp(), 0.0)


def _log_choose(count: Tensor, taken: int) -> Tensor:
    """Return the log of a binomial coefficient; of what is impossible, any number."""
    left = (count - taken).clamp_min(0)
    few = torch.tensor(taken + 1.0, dtype=torch.float64)
    return (count + 1).lgamma() - few.lgamma() - (left + 1).lgamma()


def identify(cells: Tensor, logits: Tensor, table_cells: int) -> Identification:
    """Return how many candidates a release tells apart, beside its label and clean scores.

    Args:
        cells: ``(N)`` int64, the cells of different queries.
        logits: ``(N, K)`` their clean scores.
        table_cells: C, cells of the table.
    """
    # Keys of rows: sorting the rows themselves takes several times their memory.
    keys = torch.empty(len(logits), dtype=torch.int64)
    clean = filled(keys, (row_keys(release(rows)) for rows in in_parts(logits.detach())))
    by_label, by_cell, by_scores = map(_alike_cells, (logits.argmax(-1), cells, clean))

    def mean(alike: tuple[Tensor, Tensor], candidates: int, guesses: int = 1) -> float | None:
        return None if candidates > len(cells) else _mean_chance(*alike, candidates, guesses)

    curve = tuple(
        NamedShare(
            candidates=candidates,
            label=mean(by_label, candidates),
            release=mean(by_cell, candidates),
            release_guesses=mean(by_cell, candidates, GUESSES),
            clean=mean(by_scores, candidates),
            most=min(1.0, table_cells / candidates),
        )
        for candidates in CANDIDATES
    )
    return Identification(table_cells, logits.shape[-1], len(cells), curve)


def sensitive_accuracy(
    cells: Tensor,
    labels: Tensor,
    values: Tensor,
    level: float,
    groups: Tensor | None = None,
) -> SensitiveAccuracy:
    """Return how well a sensitive value is guessed from the cell, and from the label alone.

    The bound rests on this: the rule that is best for queries to come is fixed before these queries
    are drawn, and on them it is right no more often than the rule that is best on them. So its
    number of hits, a sum of independent draws, is at most the one seen here, which bounds its
    expectation from above (Hoeffding 1963, Theorem 1).

    Args:
        cells: ``(N)`` int64, the cells of queries that the codebook was not fitted to, copies
            included: independent draws from the traffic.
        labels: ``(N)`` int64, their predicted labels.
        values: ``(N)`` int64, the sensitive value of each query, numbered.
        level: Level of the bound, in (0, 1).
        groups: ``(N)`` int64, the person, account or device behind each query: then groups are the
            independent draws, and each counts as one, whatever its number of queries.
    """
    weights, draws = weights_of_rows(groups, len(cells))
    numbers = values.unique(return_inverse=True)[1].cpu()

    def masses(known: Tensor) -> Tensor:
        """Return the weight of each key's rows with each value."""
        keys = known.unique(return_inverse=True)[1].cpu()
        shape = int(keys.max()) + 1, int(numbers.max()) + 1
        return torch.zeros(shape, dtype=torch.float64).index_put(
            (keys, numbers), weights, accumulate=True
        )

    def accuracy(known: Tensor) -> float:
        return min(1.0, float(masses(known).amax(1).sum()) / draws)

    of_cells, best = masses(cells), accuracy(cells)
    return SensitiveAccuracy(
        values=of_cells.shape[1],
        nothing=accuracy(torch.zeros_like(cells)),
        label=accuracy(labels),
        release=best,
        release_most=1 - lower_expectation(1 - best, draws, 1 - level),
        homogeneous=float(of_cells[(of_cells > 0).sum(1) == 1].sum()) / draws,
    )


def _check_cells(cells: Tensor) -> None:
    if cells.ndim != 1 or cells.dtype != torch.int64 or not len(cells):
        raise InvalidTensorError(
            "cells must be int64 of shape (N,) with N >= 1, but got "
            f"{name_of(cells.dtype)} of shape {tuple(cells.shape)}. Pass `codebook(logits)`."
        )
