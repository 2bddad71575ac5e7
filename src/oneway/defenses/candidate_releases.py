"""Candidate releases from coarse to fine, and the choice of the one that certifies most.

Codebooks, the largest entries rounded, everything rounded: all map many scores to few. All are
judged by the same figures on the same queries: what users lose, and the least error of any
attacker. Queries that are alone in their cell count as fully reconstructed, so that a fine grid is
credited only with what its cells hold together.

Rows are split in three: some fit, some judge, and some certify the winner. Figures of the best of
many candidates on the rows that judged them are too favorable.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from oneway.checks import check_images, check_logits_to_fit
from oneway.contracts import Defense
from oneway.defenses.codebook import (
    Certificate,
    CodebookOptions,
    CodebookRelease,
    FitSettings,
    HeldOut,
    cut_calibration,
    merge_calibration,
)
from oneway.defenses.codebook.certificate import MIN_PAIRS, certify_cells, rows_without_copies
from oneway.defenses.codebook.fit import RATE_WEIGHTS
from oneway.defenses.codebook.measures import (
    CellMoments,
    bits_beyond_label,
    distances,
    pairs_in,
)
from oneway.defenses.codebook.options import CENTERS
from oneway.defenses.codebook.traffic import first_copies, query_keys, split_rows
from oneway.defenses.registry import build_defense
from oneway.errors import InvalidOptionError
from oneway.releases import guarded_release

RELEASE_GRID: tuple[tuple[str, Mapping[str, Any]], ...] = (
    *(
        ("top-rounding", {"count": count, "decimals": decimals})
        for decimals in (1, 2, 3)
        for count in (1, 2, 3)
    ),
    *(("rounding", {"decimals": decimals}) for decimals in (1, 2, 3, 4)),
)
"""Candidates without a table, by defense and options."""

L1_DIGITS = 4
"""Decimals to which candidates' mean L1 distances are compared: users lose nothing by less."""

MIN_MEMBERS = (5, 20)
"""Default ``min_members`` of the candidate codebooks."""


@dataclass(frozen=True)
class MemberLeak:
    """What a candidate release reveals of which rows the model was trained on.

    Attributes:
        area: Area under the ROC curve of the strongest attacker.
        closed: G_mem by this area.
        bound: Most that TPR - FPR can be for attackers who see the released vector and know the
            true label, and nothing else of the row (95 %); None for a release of many vectors.
    """

    area: float
    closed: float
    bound: float | None


@dataclass(frozen=True)
class ReleaseCandidate:
    """A release, and its figures on queries that it was not fitted to.

    Attributes:
        defense: Registered name of the defense.
        options: Options of its constructor, or of its fit.
        release: The defense itself.
        l1_mean: Mean L1 distance of the probabilities, in [0, 2].
        certified: Estimate of the least mean squared error per pixel of any attacker; queries that
            are alone in their cell count as 0.
        alone: Share of queries that are alone in their cell.
        bits: Measured bits beyond the label.
        cells: Cells of the table; None for a release without one, whose cells nothing bounds.
        hidden: What a choice maximises: the certified error, unless a goal says otherwise.
        members: What it reveals of members; None if nobody attacked it for them.
    """

    defense: str
    options: Mapping[str, Any]
    release: Defense
    l1_mean: float
    certified: float
    alone: float
    bits: float
    cells: int | None
    hidden: float
    members: MemberLeak | None = None


def measure_candidates(
    logits: Tensor,
    queries: Tensor,
    *,
    generator: Generator,
    min_members: tuple[int, ...] = MIN_MEMBERS,
    max_cells: int | None = None,
    held_out: float = CodebookOptions.held_out,
    groups: Tensor | None = None,
    drop_copies: bool = False,
    on_share: Callable[[float], None] | None = None,
) -> list[ReleaseCandidate]:
    """Fit and judge all candidate releases, on the rows that do not certify the winner.

    Half of these rows fit, the others judge. :func:`certify_candidate` certifies on the rest.

    Args:
        logits: ``(N, K)`` clean scores of queries like those to come.
        queries: ``(N, ...)`` in [0, 1], the queries that gave the scores.
        generator: On the CPU; draws which queries fit, judge and certify.
        min_members: Least numbers of members of the candidate codebooks.
        max_cells: Largest number of cells of a table, at least one per label. Releases without a
            table are then left out: more queries fill more of their cells.
        held_out: Share of the queries that certify the winner, in (0, 1).
        groups: See :meth:`CodebookRelease.fit`.
        drop_copies: See :meth:`CodebookRelease.fit`.
        on_share: Called with the share that is done.

    Raises:
        InvalidTensorError: There are too few queries, or a tensor breaks the lines above.
        InvalidOptionError: ``held_out`` leaves nothing to fit, to judge or to certify with; or
            ``min_members`` is empty.
    """
    if not min_members:
        raise InvalidOptionError("min_members must have at least one number, but is empty.")
    check_logits_to_fit(logits)
    check_images(queries, rows=len(logits))
    judging, fitting = _parts(queries, generator, held_out, groups, drop_copies)[1:]
    fitting = fitting[first_copies(query_keys(queries[fitting.to(queries.device)]))]
    if len(fitting) < max(min_members):
        raise InvalidOptionError(
            f"cells of {max(min_members)} members need as many distinct queries to fit them, but "
            f"{len(fitting)} of {len(queries)} queries fit, and the others judge and certify. Pass "
            "more queries, or lower min_members."
        )
    judging, fitting = judging.to(logits.device), fitting.to(logits.device)
    shown, asked = queries[judging].flatten(1), logits[judging]
    own = None if groups is None else groups.to(fitting.device)[fitting]
    grid = RELEASE_GRID if max_cells is None else ()
    total = len(min_members) * len(CENTERS) * len(RATE_WEIGHTS) + len(grid)
    candidates = dict[tuple[float, ...], ReleaseCandidate]()
    numbers = itertools.count(1)

    def released_by(defense: Defense) -> Tensor:
        return guarded_release(defense, asked, dtype=torch.float64).confidences

    def add(
        name: str,
        options: Mapping[str, Any],
        defense: Defense,
        released: Tensor,
        moments: CellMoments,
    ) -> None:
        candidate = _measured(name, options, defense, released, asked, moments)
        # Two settings may give the same table: the first stands for both. Errors do not tell, as
        # they are added up from other parts, and differ in their last bits.
        candidates.setdefault((candidate.l1_mean, candidate.bits), candidate)
        if on_share is not None:
            on_share(next(numbers) / total)

    for least in min_members:
        for center in reversed(CENTERS):
            settings = FitSettings(min_members=least, center=center, max_cells=max_cells)
            calibration = cut_calibration(logits[fitting], settings, groups=own)
            books = [merge_calibration(calibration, weight) for weight in RATE_WEIGHTS]
            cells = torch.stack([book.to(asked.device)(asked) for book in books], -1)
            # Queries that share a cell in all tables are added up once for all of them.
            alike = cells.unique(dim=0, return_inverse=True)[1]
            finest = CellMoments.of(alike, shown)
            for place, (weight, book) in enumerate(zip(RATE_WEIGHTS, books, strict=True)):
                fitted = {"min_members": least, "rate_weight": weight, "center": center}
                fitted |= {} if max_cells is None else {"max_cells": max_cells}
                guard, moments = CodebookRelease(book), finest.joined(cells[:, place])
                add("codebook", fitted, guard, released_by(guard), moments)
    for name, options in grid:
        defense = build_defense(name, options, None)
        released = released_by(defense)
        alike = released.unique(dim=0, return_inverse=True)[1]
        add(name, options, defense, released, CellMoments.of(alike, shown))
    return list(candidates.values())


def _parts(
    queries: Tensor,
    generator: Generator,
    held_out: float,
    groups: Tensor | None,
    drop_copies: bool,
) -> list[Tensor]:
    """Return the rows that certify, those that judge, and those that fit.

    The first are those that :meth:`CodebookRelease.fit` certifies on, with the same generator.
    """
    rows = torch.arange(len(queries))
    if drop_copies:
        rows = rows_without_copies(queries, len(queries))
        groups = None if groups is None else groups.cpu()[rows]
    parts = split_rows(len(rows), [held_out, (1 - held_out) / 2], generator, groups)
    sizes = [len(part) for part in parts]
    if not 0 < held_out < 1 or min(sizes) < 2:
        raise InvalidOptionError(
            f"held_out must leave queries to certify, to judge and to fit with, but {held_out} of "
            f"{len(rows)} leaves {sizes[0]}, {sizes[1]} and {sizes[2]}. Pass more queries, or "
            "another share."
        )
    return [rows[part] for part in parts]


def certify_candidate(
    candidate: ReleaseCandidate,
    logits: Tensor,
    queries: Tensor,
    *,
    generator: Generator,
    held_out: float = CodebookOptions.held_out,
    groups: Tensor | None = None,
    drop_copies: bool = False,
) -> tuple[Defense, Certificate]:
    """Certify the chosen candidate on rows that neither fitted nor chose it.

    A codebook is fitted anew to all other rows, as :meth:`CodebookRelease.fit` does: the same
    options and the same generator give the same table and the same certificate.

    Args:
        candidate: The chosen one of :func:`measure_candidates`.
        logits: As given there.
        queries: As given there.
        generator: Seeded as it was there, so that the same rows certify.
        held_out: As given there.
        groups: As given there.
        drop_copies: As given there.

    Returns:
        The release, a codebook fitted anew, and the certificate. It has no error where hardly any
        queries share an answer, as with fine rounding.

    Raises:
        InvalidTensorError: See :func:`measure_candidates`.
        InvalidOptionError: There are too few queries for a codebook's certificate.
    """
    if candidate.defense == "codebook":
        fitted = CodebookRelease.fit(
            logits,
            queries,
            generator=generator,
            settings=FitSettings(**candidate.options),
            held_out=held_out,
            groups=groups,
            drop_copies=drop_copies,
        )
        assert fitted.certificate is not None  # noqa: S101  narrows the type; fit gives one
        return fitted, fitted.certificate
    rows = _parts(queries, generator, held_out, groups, drop_copies)[0].to(logits.device)
    released = guarded_release(candidate.release, logits[rows], dtype=torch.float64).confidences
    cells = released.unique(dim=0, return_inverse=True)[1]
    own = None if groups is None else groups.to(rows.device)[rows]
    certificate = certify_cells(
        cells,
        distances(released, logits[rows]),
        logits[rows],
        queries[rows] if pairs_in(cells, own) >= MIN_PAIRS else None,
        held_out=HeldOut("yes"),
        groups=own,
        copies="dropped" if drop_copies else "kept",
    )
    return candidate.release, certificate


def _measured(
    name: str,
    options: Mapping[str, Any],
    defense: Defense,
    released: Tensor,
    logits: Tensor,
    moments: CellMoments,
) -> ReleaseCandidate:
    """Judge what a release makes of ``(N, K)`` logits, and what is known of its cells."""
    certified, alone = moments.error_shares()
    l1 = (released - logits.double().softmax(-1)).abs_().sum(-1)
    return ReleaseCandidate(
        defense=name,
        options=options,
        release=defense,
        l1_mean=float(l1.mean()),
        certified=float(certified.mean()),
        alone=float(alone.double().mean()),
        bits=bits_beyond_label(moments.cells, logits.argmax(-1)),
        cells=defense.state.sizes.cells if isinstance(defense, CodebookRelease) else None,
        hidden=float(certified.mean()),
    )


def choose_candidate(candidates: list[ReleaseCandidate], l1_budget: float) -> ReleaseCandidate:
    """Return the candidate that hides most within a budget; of equals, the one that moves least.

    Args:
        candidates: From :func:`measure_candidates`.
        l1_budget: Mean L1 distance of probabilities that users may lose, in [0, 2].

    Raises:
        InvalidOptionError: No candidate keeps within the budget.
    """
    within = [candidate for candidate in candidates if candidate.l1_mean <= l1_budget]
    if not within:
        nearest = min(candidate.l1_mean for candidate in candidates)
        raise InvalidOptionError(
            f"no candidate release moves probabilities by {l1_budget} or less; the nearest moves "
            f"them by {nearest:.2g}. Allow more."
        )
    return max(within, key=lambda candidate: (candidate.hidden, -candidate.l1_mean))


def pareto_optimal(candidates: list[ReleaseCandidate]) -> list[ReleaseCandidate]:
    """Return the candidates that no other beats in both distortion and what they hide.

    Distortions that are the same to ``L1_DIGITS`` decimals count as equal: the candidate that hides
    most stands for all of them.
    """
    best, kept = -math.inf, list[ReleaseCandidate]()
    for candidate in sorted(
        candidates, key=lambda each: (round(each.l1_mean, L1_DIGITS), -each.hidden)
    ):
        if candidate.hidden > best:
            best = candidate.hidden
            kept.append(candidate)
    return kept
