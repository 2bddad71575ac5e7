"""The certificate of a codebook: what it lets out at most, on queries that it was not fitted to.

A release reveals its label and the number of a cell: whatever an attacker computes, that is at most
log2 of the label's cells beyond the label, in bits. :mod:`oneway.defenses.codebook.measures` says
what the least error of any attacker rests on.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor

from oneway.checks import check_images, check_level, check_logits_to_fit
from oneway.defenses.codebook.measures import (
    LEVEL,
    CertifiedError,
    bits_beyond_label,
    certified_error,
    distances,
    pairs_in,
)
from oneway.defenses.codebook.table import Codebook
from oneway.defenses.codebook.yardsticks import Yardsticks, yardsticks_of_labels
from oneway.errors import InvalidOptionError, InvalidTensorError

ASSUMPTIONS = (
    "Queries to come are independent draws from the distribution of the certified queries.",
    "The error is the mean squared error per pixel, averaged over queries. A single query may be "
    "reconstructed better; so may any query by an attacker who knows more about it than its "
    "distribution (who sent it, another picture of the same thing, a short list of candidates).",
    "The label is released as it is, and attacks that read only the label are not hindered.",
    "The attacker sees one answer of this codebook per query, and no other output of the model. "
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

LARGEST_DISTORTION = {"l1_probabilities": 2 + 1e-9, "logits": math.inf}


@dataclass(frozen=True)
class Certificate:
    """What one release lets out, on one set of queries.

    Attributes:
        table: SHA-256 of the certified table; empty for a release without a table.
        queries: Number of certified queries.
        independent: Whether the codebook was fitted without these queries.
        bits_most: Largest number of bits beyond the label that one release can reveal; None where
            nothing bounds it but the type of the numbers.
        bits_measured: Bits beyond the label on average: the entropy of these queries' cells given
            their labels.
        error: Certified error over all queries; None if the queries themselves were not given.
        error_by_label: Certified error of each predicted label with enough queries. Each interval
            holds by itself, so that some of many miss.
        distortion: L1 distance of probabilities (``l1_probabilities``) and mean absolute difference
            of centered logits per class in nats (``logits``), each as ``mean``, ``p50``, ``p95``,
            ``p99`` and ``max``.
        members_least: Least number of calibration queries behind a vector that reveals more than
            its label; of a release without a table, of certified queries behind a vector.
        labels_alone: Number of labels with so few calibration queries that their vector reveals
            the label alone.
        level: Level of intervals and bounds.
        yardsticks: Errors to compare the certified error with; None if none is certified.
    """

    table: str
    queries: int
    independent: bool
    bits_most: float | None
    bits_measured: float
    error: CertifiedError | None
    error_by_label: Mapping[str, CertifiedError]
    distortion: Mapping[str, Mapping[str, float]]
    members_least: int
    labels_alone: int
    level: float = LEVEL
    yardsticks: Yardsticks | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the certificate as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Certificate":
        """Read what :meth:`as_json` returned.

        Raises:
            KeyError: A value is missing.
            TypeError: A value is unknown or of another kind.
        """
        error, by_label = values["error"], values["error_by_label"]
        yardsticks = values["yardsticks"]
        return cls(
            **{
                **values,
                "error": None if error is None else CertifiedError(**error),
                "error_by_label": {name: CertifiedError(**each) for name, each in by_label.items()},
                "yardsticks": None if yardsticks is None else Yardsticks.from_json(yardsticks),
            }
        )

    def fault(self, codebook: Codebook) -> str | None:
        """Return the first value that cannot be true of a table, in words; None if all can."""
        return next(self._faults(codebook), None)

    def _faults(self, codebook: Codebook) -> Iterator[str]:
        figures = figures_of_table(codebook)
        for name, true in figures.items():
            value = getattr(self, name)
            if type(value) is not type(true) or value != true:
                yield f"its {name} is not that of the table"
        independent: object = self.independent
        if not isinstance(independent, bool):
            yield "independent is neither true nor false"
        if not _is_count(self.queries, 2):
            yield "queries is not a number of queries"
        if not _is_within(self.bits_measured, 0, figures["bits_most"] + 1e-9):
            yield "bits_measured is out of range"
        if not _is_within(self.level, 0, 1) or self.level in (0, 1):
            yield "level is not between 0 and 1"
        labels = {str(label) for label in range(codebook.sizes.num_classes)}
        if not self.error_by_label.keys() <= labels:
            yield "it certifies a label that does not exist"
        for error in (*self.error_by_label.values(), self.error):
            if error is not None:
                yield from _faults_of_error(error, self.queries)
        if (self.yardsticks is None) != (self.error is None):
            yield "an error stands without its yardsticks, or they without it"
        elif self.yardsticks is not None:
            yield from self.yardsticks.faults()
        distortion: Any = self.distortion
        for name, largest in LARGEST_DISTORTION.items():
            values = distortion.get(name) if isinstance(distortion, dict) else None
            if not isinstance(values, dict) or not all(
                _is_within(value, 0, largest) for value in values.values()
            ):
                yield f"the distortion of {name} is out of range"


def certify(
    codebook: Codebook,
    logits: Tensor,
    queries: Tensor | None = None,
    *,
    independent: bool,
    generator: Generator,
    level: float = LEVEL,
) -> Certificate:
    """Certify what a codebook lets out, on queries like those that it will see.

    Args:
        codebook: A fitted table.
        logits: ``(N, K)`` clean scores, N at least 2.
        queries: ``(N, ...)`` in [0, 1], the queries that gave the scores; None: no error is
            certified.
        independent: Whether the codebook was fitted without these queries. Only then are interval
            and lower bound of the error valid.
        generator: On the CPU; draws the bootstrap and the pairs.
        level: Level of intervals and bounds, in (0, 1).

    Raises:
        InvalidTensorError: A tensor breaks the lines above.
        InvalidOptionError: ``level`` is outside its range, or there are too few queries.
    """
    codebook.check(logits)
    with torch.no_grad():
        cells = codebook(logits)
        released = codebook.expand(codebook.values, cells)
    certificate = _certificate(cells, released, logits, queries, independent, generator, level)
    error = certificate.error
    if error is not None and error.alone > MAX_ALONE:
        raise InvalidOptionError(
            f"at most {MAX_ALONE:.0%} of queries may be alone in their cell, but "
            f"{error.alone:.0%} of {len(logits)} are alone. Pass more queries, or fit cells with "
            "more members."
        )
    return replace(certificate, table=codebook.digest(), **figures_of_table(codebook))


def figures_of_table(codebook: Codebook) -> dict[str, Any]:
    """Return the certificate's figures that follow from the table alone, by name."""
    members = codebook.members[codebook.members > 0]
    return {
        "bits_most": math.log2(int(codebook.labels.bincount().max())),
        "members_least": int(members.min()) if len(members) else 0,
        "labels_alone": int((codebook.members == 0).sum()),
    }


def _certificate(
    cells: Tensor,
    released: Tensor,
    logits: Tensor,
    queries: Tensor | None,
    independent: bool,
    generator: Generator,
    level: float,
) -> Certificate:
    """Return the figures that follow from cells and released probabilities."""
    check_logits_to_fit(logits)
    if logits.ndim != 2 or len(logits) < 2:
        raise InvalidTensorError(
            f"logits must have shape (N, K) with N >= 2, but got {tuple(logits.shape)}."
        )
    check_level(level)
    labels = logits.argmax(-1)
    l1, difference = distances(released, logits.detach())
    error, by_label, yardsticks = None, dict[str, CertifiedError](), None
    if queries is not None:
        flat = _checked_queries(queries, cells)
        error = certified_error(cells, flat, generator, level)
        for label in labels.unique().tolist():
            rows = labels == label
            if pairs_in(cells[rows]) >= MIN_PAIRS:
                by_label[str(label)] = certified_error(cells[rows], flat[rows], generator, level)
        yardsticks = yardsticks_of_labels(labels, flat, level)
    return Certificate(
        table="",
        queries=len(logits),
        independent=independent,
        bits_most=None,
        bits_measured=bits_beyond_label(cells, labels),
        error=error,
        error_by_label=by_label,
        distortion={"l1_probabilities": _summary(l1), "logits": _summary(difference)},
        members_least=int(cells.unique(return_counts=True)[1].min()),
        labels_alone=0,
        level=level,
        yardsticks=yardsticks,
    )


def _checked_queries(queries: Tensor, cells: Tensor) -> Tensor:
    """Return ``(N, D)`` flat queries that an error can be certified of."""
    check_images(queries, rows=len(cells))
    if not (float(queries.min()) >= 0 and float(queries.max()) <= 1):
        raise InvalidTensorError(
            "queries must lie in [0, 1], since the lower bound rests on it, but some do not. "
            "Divide them by their range."
        )
    pairs = pairs_in(cells)
    if pairs < MIN_PAIRS:
        raise InvalidOptionError(
            f"an error needs at least {MIN_PAIRS} pairs of queries that share a cell, but "
            f"{len(cells)} queries make {pairs}. Pass more queries, or leave them out to certify "
            "bits and distortion alone."
        )
    return queries.detach().flatten(1)


def _summary(values: Tensor) -> dict[str, float]:
    shares = torch.tensor(QUANTILES, dtype=values.dtype, device=values.device)
    quantiles = zip(QUANTILES, values.quantile(shares).tolist(), strict=True)
    return {
        "mean": float(values.mean()),
        **{f"p{100 * share:g}": value for share, value in quantiles},
        "max": float(values.max()),
    }


def _faults_of_error(error: CertifiedError, queries: int) -> Iterator[str]:
    """Yield what cannot be true of squared errors of values in [0, 1]."""
    if not _is_count(error.queries, 1) or error.queries > queries:
        yield "an error is certified on a number of queries that cannot be"
    for name in ("estimate", "low", "lower_bound", "alone"):
        if not _is_within(getattr(error, name), 0, 1):
            yield f"the {name} of an error is not from 0 to 1"
    if not _is_within(error.high, 0, math.inf) or error.high < error.low:
        yield "the interval of an error is empty"


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_within(value: object, least: float, most: float) -> bool:
    """Return whether a value is a finite float from ``least`` to ``most``."""
    return isinstance(value, float) and math.isfinite(value) and least <= value <= most
