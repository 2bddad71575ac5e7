"""The certificate of a codebook: what it lets out at most, on queries that it was not fitted to.

A release reveals its label and the number of a cell: whatever an attacker computes, that is at most
log2 of the label's cells beyond the label, in bits. :mod:`oneway.defenses.codebook.measures` says
what the least error of any attacker rests on.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from typing import Any

import torch
from torch import Generator, Tensor

from oneway.checks import check_images, check_level, check_logits_to_fit
from oneway.defenses.codebook.betting import LARGEST, one_of_each
from oneway.defenses.codebook.composition import Composition, compose
from oneway.defenses.codebook.crossings import check_variants
from oneway.defenses.codebook.fitted import NOT_CHECKED, HeldOut
from oneway.defenses.codebook.identification import (
    Identification,
    SensitiveAccuracy,
    identify,
    sensitive_accuracy,
)
from oneway.defenses.codebook.measures import (
    LEVEL,
    CellMoments,
    CertifiedError,
    bits_beyond_label,
    distances_from_table,
    pairs_in,
    top_kept,
)
from oneway.defenses.codebook.options import FitSettings
from oneway.defenses.codebook.parts import LEAST_ROWS, Kind, PartErrors, certify_parts
from oneway.defenses.codebook.table import Codebook
from oneway.defenses.codebook.together import Together
from oneway.defenses.codebook.traffic import (
    Copies,
    Traffic,
    check_groups,
    check_sensitive,
    first_copies,
    measure_traffic,
    query_keys,
    select_rows,
)
from oneway.defenses.codebook.worst_case import WorstCase, worst_case
from oneway.defenses.codebook.yardsticks import Yardsticks, yardsticks_of_labels
from oneway.errors import InvalidOptionError, InvalidTensorError
from oneway.options import options_of
from oneway.parsing import build_from

ASSUMPTIONS = (
    "Queries to come are independent draws from the distribution of the certified queries.",
    "The error is the mean squared error per pixel, averaged over queries. A single query may be "
    "reconstructed better; so may any query by an attacker who knows more about it than its "
    "distribution (who sent it, another picture of the same thing, a short list of candidates).",
    "The label is released as it is, and attacks that read only the label are not hindered.",
    "The attacker sees one answer of each certified version per query, and no other output of the "
    "model. "
    "Equal scores always get the same answer, but a query that is changed a little and sent again "
    "may fall into another cell, and reveal more.",
    "The certificate is about queries to come. The codebook itself is made from calibration "
    "queries, several behind each vector; that is not differential privacy.",
    "Intervals hold for these queries, this model and this table; a retrained model needs a newly "
    "fitted codebook.",
)
"""What a certificate rests on, sentence by sentence."""

MIN_PAIRS = 30
"""Pairs of queries that share a cell below which no error is certified, overall or of a label."""

MAX_ALONE = 0.5
"""Share of queries that may be alone in their cell of a codebook; with more, there are too few."""

QUANTILES = (0.5, 0.95, 0.99)

DECIMALS = 4
"""Digits after the point of a distance of a single query."""

LARGEST_DISTORTION = {"l1_probabilities": 2 + 1e-9, "logits": math.inf}


@dataclass(frozen=True)
class Certificate:
    """What one release lets out, on one set of queries.

    Attributes:
        table: SHA-256 of the certified table; empty for a release without a table.
        queries: Number of certified queries.
        held_out: Whether the codebook was fitted without these queries.
        traffic: Which traffic these queries stand for, and who is behind each cell.
        bits_most: Largest number of bits beyond the label that one release can reveal; None where
            nothing bounds it but the type of the numbers.
        bits_measured: Bits beyond the label on average: the entropy of these queries' cells given
            their labels.
        error: Certified error over all queries; None if the queries themselves were not given.
        error_by_label: Certified error of each predicted label with enough queries. Intervals, and
            lower bounds, hold for all labels at once.
        distortion: L1 distance of probabilities (``l1_probabilities``) and mean absolute difference
            of centered logits per class in nats (``logits``), each as ``mean``, ``p50``, ``p95``,
            ``p99`` and ``max``.
        members_least: Least number of distinct calibration queries behind a vector that reveals
            more than its label; of a release without a table, of certified queries behind a vector.
            Where labels share levels, the queries of one label alone: perhaps none.
        labels_alone: Number of labels with so few calibration queries that their vector reveals
            the label alone.
        level: Level of intervals and bounds.
        identification: How many candidates the release tells apart.
        sensitive: How well a sensitive value is guessed; None if the values were not given.
        worst_case: How often a cap on each answer's distance is kept; None without a cap.
        groups_least: Least number of groups (people, accounts, devices) behind such a vector; None
            where the codebook was fitted without groups.
        parts: Certified errors within the parts of a kind, ``cell`` and ``group``; of groups only
            where they are known, numbered from the worst on. The bound of a group takes its queries
            as independent draws from what the group asks.
        yardsticks: Errors to compare the certified error with; None if none is certified.
        version: Version of the guard, as servers state it; empty for a release without a table.
        together: What answers of several versions reveal, if the certificate is about those.
        certified_on: Day on which it was certified, in UTC, as in ``"2026-12-31"``; None where
            nobody said it.
        queries_hash: SHA-256 of the queries as they were read, those that fitted the table and
            copies among them; None where no queries were given.
        scores_hash: The same, of the clean logits.
        commit: Git revision of the source that certified; None for an installed package.
        composition: What several answers reveal, to a query and to changed copies of it; None if
            the scores of such copies were not given.
        shared_least: Least number of distinct calibration queries of all labels (or groups, where
            they were given) behind a level that labels share; None if none share any.
        top5_kept: Share of the clean five likeliest classes that are among the released five; None
            for a release without a table.
    """

    table: str
    queries: int
    held_out: HeldOut
    traffic: Traffic
    bits_most: float | None
    bits_measured: float
    error: CertifiedError | None
    error_by_label: Mapping[str, CertifiedError]
    distortion: Mapping[str, Mapping[str, float]]
    members_least: int
    labels_alone: int
    level: float = LEVEL
    identification: Identification | None = None
    sensitive: SensitiveAccuracy | None = None
    worst_case: WorstCase | None = None
    groups_least: int | None = None
    parts: Mapping[str, PartErrors] = field(default_factory=dict)
    yardsticks: Yardsticks | None = None
    version: str = ""
    together: Together | None = None
    certified_on: str | None = None
    queries_hash: str | None = None
    scores_hash: str | None = None
    commit: str | None = None
    composition: Composition | None = None
    shared_least: int | None = None
    top5_kept: float | None = None

    @property
    def worst(self) -> dict[str, tuple[str, CertifiedError]]:
        """The part with the least lower bound, and its error, by kind: label, cell, group.

        The bounds of a kind hold at once, so that the least of them holds, too.
        """
        kinds = {"label": self.error_by_label}
        kinds |= {kind: parts.errors for kind, parts in self.parts.items()}
        return {
            kind: min(errors.items(), key=lambda part: part[1].lower_bound)
            for kind, errors in kinds.items()
            if errors
        }

    def as_json(self) -> dict[str, Any]:
        """Return the certificate as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Certificate":
        """Read what :meth:`as_json` returned.

        Raises:
            UnknownNameError: A value is unknown.
            InvalidOptionError: A value is missing, or of another kind.
        """
        return build_from(cls, values, "the certificate")

    def fault(self, codebook: Codebook) -> str | None:
        """Return the first value that cannot be true of a table, in words; None if all can."""
        return next(self._faults(codebook), None)

    def _faults(self, codebook: Codebook) -> Iterator[str]:
        yield from self._faults_of_traffic(codebook)
        yield from self._faults_of_errors(codebook)
        if self.identification is None:
            yield "it does not state how many candidates the release tells apart"
        else:
            sizes = codebook.sizes
            yield from self.identification.faults(sizes.cells, sizes.num_classes, self.queries)
        for part in (self.sensitive, self.worst_case, self.yardsticks):
            if part is not None:
                yield from part.faults()
        if self.composition is not None:
            yield from self.composition.faults(codebook.sizes.cells, self.queries)
        if self.together is not None:
            yield "it is about answers of several versions, and not about this table alone"
        if self.certified_on is not None and not _is_day(self.certified_on):
            yield "it was certified on a day that does not exist"
        if not _is_within(0.0 if self.top5_kept is None else self.top5_kept, 0, 1):
            yield "top5_kept is not a share"
        for name in ("queries_hash", "scores_hash"):
            if not re.fullmatch(r"[0-9a-f]{64}", getattr(self, name) or "0" * 64):
                yield f"its {name} is not the SHA-256 of any data"
        for name, largest in LARGEST_DISTORTION.items():
            values = self.distortion.get(name, {"": math.nan}).values()
            if not all(_is_within(value, 0, largest) for value in values):
                yield f"the distortion of {name} is out of range"

    def _faults_of_traffic(self, codebook: Codebook) -> Iterator[str]:
        """Yield which figures of the table, and of how often its cells were met, cannot be true."""
        figures = figures_of_table(codebook)
        for name, true in figures.items():
            if getattr(self, name) != true:
                yield f"its {name} is not that of the table"
        yield from self.held_out.faults()
        if self.queries < 2:
            yield "queries is not a number of queries"
        yield from self.traffic.faults(codebook, self.queries)
        if not _is_within(self.bits_measured, 0, figures["bits_most"] + 1e-9):
            yield "bits_measured is out of range"
        elif abs(self.bits_measured - bits_of_counts(self.traffic.cells, codebook)) > 1e-9:
            yield "its bits_measured are not those of the cells that it counts"

    def _faults_of_errors(self, codebook: Codebook) -> Iterator[str]:
        """Yield which certified errors cannot be true, of all queries or of parts of them."""
        if not _is_within(self.level, 0, 1) or self.level in (0, 1):
            yield "level is not between 0 and 1"
        if not self.error_by_label.keys() <= {*map(str, range(codebook.sizes.num_classes))}:
            yield "it certifies a label that does not exist"
        of_parts = [error for parts in self.parts.values() for error in parts.errors.values()]
        for error in (*self.error_by_label.values(), *of_parts, self.error):
            if error is not None:
                yield from _faults_of_error(error, self.queries)
        for kind, parts in self.parts.items():
            if kind not in ("cell", "group"):
                yield "it certifies parts of a kind that does not exist"
            if parts.few < 0 or not _is_within(parts.few_share, 0, 1):
                yield "the parts with few queries are not a number of parts and a share"
        yield from _faults_of_counts(self, codebook)
        if (self.yardsticks is None) != (self.error is None):
            yield "an error stands without its yardsticks, or they without it"


def certify(
    codebook: Codebook,
    logits: Tensor,
    queries: Tensor | None = None,
    *,
    held_out: HeldOut = NOT_CHECKED,
    drop_copies: bool = False,
    level: float = LEVEL,
    sensitive: Tensor | None = None,
    max_l1_worst: float | None = None,
    groups: Tensor | None = None,
    variants: Tensor | None = None,
) -> Certificate:
    """Certify what a codebook lets out, on queries like those that it will see.

    Args:
        codebook: A fitted table.
        logits: ``(N, K)`` clean scores, N at least 2; a query that is frequent in the traffic is as
            frequent here.
        queries: ``(N, ...)`` in [0, 1], the queries that gave the scores; None: no error is
            certified.
        held_out: Whether the codebook was fitted without these queries, from
            :meth:`FittedQueries.judge`. Only then are interval and lower bound of the error valid.
        drop_copies: Count copies of a query once. The certificate then speaks of traffic in which
            each of these queries is as frequent as any other.
        level: Level of intervals and bounds, in (0, 1).
        groups: ``(N)`` int64, of queries that depend on each other (frames of a video, pictures of
            one person) the same number; None: all are independent. Errors are then means over
            groups of the mean over each group's queries.
        sensitive: ``(N)`` int64, a numbered sensitive value of each query, such as a diagnosis.
        max_l1_worst: Cap on each answer's L1 distance of probabilities, in (0, 2]: the share of
            queries within it is certified.
        variants: ``(N, m, K)`` clean scores of m changed copies of each query, such as frames of a
            video: the certificate states what several answers reveal.

    Raises:
        InvalidTensorError: A tensor breaks the lines above.
        InvalidOptionError: ``level`` or ``max_l1_worst`` is outside its range, there are too few
            queries, or copies are to be dropped of queries that are not given.
    """
    codebook.check(logits)
    _check_inputs(logits, sensitive, max_l1_worst, variants)
    keys = None if queries is None else query_keys(queries)
    if drop_copies:
        distinct = rows_without_copies(queries, len(logits), keys)
        logits = logits[distinct.to(logits.device)]
        queries, groups, sensitive, keys, variants = (
            select_rows(each, distinct) for each in (queries, groups, sensitive, keys, variants)
        )
    with torch.no_grad():
        cells = codebook(logits)
        moved = distances_from_table(codebook, cells, logits)
    figures = figures_of_table(codebook)
    # Labels with few queries each: identification holds without any that share a cell.
    few = figures["shared_least"] is not None and not _share_cells(cells)
    certificate = certify_cells(
        cells,
        moved,
        logits,
        None if few else queries,
        held_out=held_out,
        groups=groups,
        copies="dropped" if drop_copies else "kept",
        level=level,
        keys=keys,
    )
    _check_company(certificate)
    counts = cells.bincount(minlength=codebook.sizes.cells).tolist()
    # Copies are one candidate. Without the queries, equal scores are taken for copies.
    distinct = first_copies(query_keys(logits) if keys is None else keys)
    distinct, composition, accuracy = distinct.to(cells.device), None, None
    if variants is not None:
        # The first of several equal queries stands for them, with its own copies.
        composition = compose(codebook, logits[distinct], variants[distinct.to(variants.device)])
    if sensitive is not None:
        labels, values = logits.argmax(-1), sensitive.to(cells.device)
        accuracy = sensitive_accuracy(cells, labels, values, level, groups)
    return replace(
        certificate,
        table=codebook.digest(),
        traffic=replace(certificate.traffic, cells=tuple(counts)),
        identification=identify(cells[distinct], logits[distinct], codebook.sizes.cells),
        sensitive=accuracy,
        worst_case=None
        if max_l1_worst is None
        else worst_case(moved[0], max_l1_worst, level, groups),
        composition=composition,
        top5_kept=top_kept(codebook, cells, logits),
        **figures,
    )


def _check_company(certificate: Certificate) -> None:
    """Refuse queries too many of which are alone in their cell."""
    error = certificate.error
    if error is not None and error.alone > MAX_ALONE:
        raise InvalidOptionError(
            f"at most {MAX_ALONE:.0%} of queries may be alone in their cell, but "
            f"{error.alone:.0%} of {certificate.queries} are alone. Pass more queries, or fit "
            "cells with more members."
        )


def _share_cells(cells: Tensor) -> bool:
    """Return whether enough queries share a cell with another one, so that errors are certified."""
    counts = cells.unique(return_counts=True)[1]
    alone = int((counts == 1).sum())
    return alone <= MAX_ALONE * len(cells) and int((counts // 2).sum()) >= MIN_PAIRS


def rows_without_copies(queries: Tensor | None, rows: int, keys: Tensor | None = None) -> Tensor:
    """Return the ``(M)`` int64 rows of distinct queries: of copies, the first.

    Args:
        queries: ``(N, ...)``; None is refused.
        rows: N.
        keys: ``(N)`` int64, equal for equal queries; None: they are computed.

    Raises:
        InvalidTensorError: ``queries`` are not as many as ``rows``.
        InvalidOptionError: They are not given.
    """
    if queries is None:
        raise InvalidOptionError(
            "copies can only be dropped of queries that are given. Pass the queries, or keep the "
            "copies."
        )
    check_images(queries, rows=rows)
    return first_copies(query_keys(queries) if keys is None else keys)


def _of_groups(found: PartErrors) -> PartErrors:
    """Return errors of groups, numbered from the worst on.

    Certificates lie in guards that are deployed: numbers of people stay with the operator.
    """
    errors = sorted(found.errors.values(), key=lambda error: error.lower_bound)
    return replace(found, errors={str(place): error for place, error in enumerate(errors, 1)})


def figures_of_table(codebook: Codebook) -> dict[str, Any]:
    """Return the certificate's figures that follow from the table alone, by name."""
    cells = codebook.labels.bincount()
    is_shared, is_only = codebook.shared > 0, cells[codebook.labels] == 1
    # The only vector of a label that shares its shape says nothing of the queries in its cell.
    counts = ~(is_shared & is_only)
    levels = codebook.shared[is_shared & ~is_only]
    return {
        "bits_most": math.log2(int(cells.max())),
        "members_least": int(codebook.members[counts].min()) if counts.any() else 0,
        "labels_alone": int((is_shared & is_only).sum()),
        "groups_least": int(codebook.groups[counts].min())
        if codebook.groups.any() and counts.any()
        else None,
        "version": codebook.version,
        "shared_least": int(levels.min()) if len(levels) else None,
    }


def bits_of_counts(counts: Sequence[int], codebook: Codebook) -> float:
    """Return the entropy of cells given labels, in bits.

    Args:
        counts: Number of certified queries in each cell of the table; at least one.
        codebook: The table.
    """
    by_label = _counts_by_label(counts, codebook)
    bits = [
        count * math.log2(by_label[label] / count)
        for count, label in zip(counts, codebook.labels.tolist(), strict=True)
        if count
    ]
    return math.fsum(bits) / sum(counts)


def _counts_by_label(counts: Sequence[int], codebook: Codebook) -> list[int]:
    by_label = [0] * codebook.sizes.num_classes
    for count, label in zip(counts, codebook.labels.tolist(), strict=True):
        by_label[label] += count
    return by_label


def certify_cells(
    cells: Tensor,
    moved: tuple[Tensor, Tensor],
    logits: Tensor,
    queries: Tensor | None,
    *,
    held_out: HeldOut,
    groups: Tensor | None = None,
    copies: Copies = "kept",
    level: float = LEVEL,
    keys: Tensor | None = None,
) -> Certificate:
    """Certify what any release into cells lets out, with a table or without.

    Args:
        cells: ``(N)`` int64.
        moved: From :func:`oneway.defenses.codebook.measures.distances`.
        logits: See :func:`certify`.
        queries: See :func:`certify`.
        held_out: See :func:`certify`.
        groups: See :func:`certify`.
        copies: Whether copies of these queries were dropped.
        level: See :func:`certify`.
        keys: ``(N)`` int64, equal for equal queries; None: they are computed.

    Raises:
        InvalidTensorError: See :func:`certify`.
        InvalidOptionError: See :func:`certify`.
    """
    check_logits_to_fit(logits)
    if groups is not None:
        check_groups(groups, len(logits))
    _check_rows(logits)
    check_level(level)
    labels = logits.argmax(-1)
    l1, difference = moved
    error, yardsticks = None, None
    by_label: Mapping[str, CertifiedError] = {}
    parts = dict[str, PartErrors]()
    if queries is not None:
        flat = _checked_queries(queries, cells, groups)
        keys = query_keys(queries) if keys is None else keys
        if groups is not None:
            (of_groups,) = certify_parts([Kind(groups)], cells, flat, level, keys=keys)
            parts["group"] = _of_groups(of_groups)
        moments = CellMoments.of(cells, flat)
        shares = moments.error_shares() if groups is None else None
        # A cell of a release that keeps the label has one label.
        is_nested = _have_one_label(moments.cells, labels)
        kinds = [
            Kind(torch.zeros_like(cells), shares, least=1),
            Kind(cells, shares),
            Kind(labels, shares if is_nested else None),
        ]
        whole, parts["cell"], of_labels = certify_parts(kinds, cells, flat, level, groups, keys)
        error, by_label = whole.errors["0"], of_labels.errors
        if groups is None:
            joined = moments.joined(labels) if is_nested else CellMoments.of(labels, flat)
            yardsticks = yardsticks_of_labels(labels, flat, level, joined)
        else:
            # As the attack on clean scores, they are about independent draws.
            alone = one_of_each(groups.cpu(), Generator().manual_seed(0))
            once = labels[alone.to(labels.device)], flat[alone.to(flat.device)]
            yardsticks = yardsticks_of_labels(*once, level, CellMoments.of(*once))
    return Certificate(
        table="",
        queries=len(logits),
        held_out=held_out,
        traffic=measure_traffic(cells, copies, keys=keys, groups=groups),
        bits_most=None,
        bits_measured=bits_beyond_label(cells, labels),
        error=error,
        error_by_label=by_label,
        distortion={"l1_probabilities": _summary(l1), "logits": _summary(difference)},
        members_least=int(cells.unique(return_counts=True)[1].min()),
        labels_alone=0,
        level=level,
        parts=parts,
        yardsticks=yardsticks,
    )


def _have_one_label(cells: Tensor, labels: Tensor) -> bool:
    """Return whether all queries of each cell have the same label."""
    least, most = (
        torch.zeros_like(cells).scatter_reduce(0, cells, labels, way, include_self=False)
        for way in ("amin", "amax")
    )
    return torch.equal(least, most)


def _check_inputs(
    logits: Tensor,
    sensitive: Tensor | None,
    max_l1_worst: float | None,
    variants: Tensor | None,
) -> None:
    """Refuse too few rows, and what does not fit them or is outside its range."""
    _check_rows(logits)
    if sensitive is not None:
        check_sensitive(sensitive, len(logits))
    if max_l1_worst is not None:
        options_of(FitSettings)["max_l1_worst"].refuse(max_l1_worst)
    if variants is not None:
        check_variants(variants, logits)


def _check_rows(logits: Tensor) -> None:
    if logits.ndim != 2 or len(logits) < 2:
        raise InvalidTensorError(
            f"logits must have shape (N, K) with N >= 2, but got {tuple(logits.shape)}. Pass the "
            "scores of more queries."
        )


def _checked_queries(queries: Tensor, cells: Tensor, groups: Tensor | None) -> Tensor:
    """Return ``(N, D)`` flat queries that an error can be certified of."""
    check_images(queries, rows=len(cells))
    if not queries.numel():
        raise InvalidTensorError(
            f"queries must have values, but have shape {tuple(queries.shape)}. Leave them out to "
            "certify bits and distortion alone."
        )
    least, most = queries.aminmax()
    if not (least >= 0 and most <= 1):
        raise InvalidTensorError(
            "queries must lie in [0, 1], since the lower bound rests on it, but some do not. "
            "Divide them by their range."
        )
    pairs, of = (
        pairs_in(cells, groups),
        "queries" if groups is None else "different groups' queries",
    )
    if pairs < MIN_PAIRS:
        raise InvalidOptionError(
            f"an error needs at least {MIN_PAIRS} pairs of {of} that share a cell, but "
            f"{len(cells)} queries make {pairs}. Pass more queries, or leave them out to certify "
            "bits and distortion alone."
        )
    return queries.detach().flatten(1)


def _summary(values: Tensor) -> dict[str, float]:
    shares = torch.tensor(QUANTILES, dtype=values.dtype, device=values.device)
    single = [*values.quantile(shares).tolist(), float(values.max())]
    names = [*(f"p{100 * share:g}" for share in QUANTILES), "max"]
    # With all digits, whoever has the certificate could test whether a candidate is this query.
    rounded = {name: round(value, DECIMALS) for name, value in zip(names, single, strict=True)}
    return {"mean": float(values.mean()), **rounded}


def _faults_of_counts(certificate: Certificate, codebook: Codebook) -> Iterator[str]:
    """Yield which figures of errors contradict the number of queries in each cell."""
    counts, error = certificate.traffic.cells, certificate.error
    by_label = _counts_by_label(counts, codebook)
    for label, each in certificate.error_by_label.items():
        if each.queries != by_label[int(label)]:
            yield f"the error of label {label} is certified on another number of queries"
    known = {str(cell): count for cell, count in enumerate(counts)}
    of_cells = certificate.parts["cell"].errors if "cell" in certificate.parts else {}
    if any(each.queries != known.get(cell) for cell, each in of_cells.items()):
        yield "the error of a cell is certified on another number of queries"
    if error is not None and error.queries != certificate.queries:
        yield "an error is certified on another number of queries"
    alone = counts.count(1) / certificate.queries
    # With groups, a cell of one group is alone, too.
    if error is None or certificate.traffic.groups is not None:
        return
    if abs(error.alone - alone) > 1e-9:
        yield "the share of queries that are alone is not that of the cells that it counts"
    if certificate.parts.keys() != {"cell"}:
        yield "it does not certify the cells by themselves"
        return
    few = [count for count in counts if 0 < count < LEAST_ROWS]
    if (certificate.parts["cell"].few, len(of_cells)) != (len(few), _many(counts)):
        yield "it certifies another number of cells than have enough queries"
    elif len(certificate.error_by_label) != _many(by_label):
        yield "it certifies another number of labels than have enough queries"
    # The estimate is the mean of those of all cells, and a variance is at most 1/4.
    least = sum(each.estimate * each.queries for each in of_cells.values())
    most = least + sum(LARGEST * count * count / (count - 1) for count in few if count > 1)
    if not least - 1e-6 <= error.estimate * certificate.queries <= most + 1e-6:
        yield "its error is not the mean of those of its cells"


def _many(counts: Sequence[int]) -> int:
    return sum(count >= LEAST_ROWS for count in counts)


def _faults_of_error(error: CertifiedError, queries: int) -> Iterator[str]:
    """Yield what cannot be true of squared errors of values in [0, 1]."""
    if not 1 <= error.queries <= queries:
        yield "an error is certified on a number of queries that cannot be"
    for name in ("estimate", "low", "lower_bound", "alone"):
        if not _is_within(getattr(error, name), 0, 1):
            yield f"the {name} of an error is not from 0 to 1"
    if not _is_within(error.high, 0, math.inf) or error.high < error.low:
        yield "the interval of an error is empty"
    elif not max(error.low, error.lower_bound) <= error.estimate <= error.high:
        yield "an error's estimate is not between its bounds"


def _is_day(value: str) -> bool:
    try:
        return date.fromisoformat(value).isoformat() == value
    except ValueError:
        return False


def _is_within(value: float, least: float, most: float) -> bool:
    """Return whether a value is finite, and from ``least`` to ``most``."""
    return math.isfinite(value) and least <= value <= most
