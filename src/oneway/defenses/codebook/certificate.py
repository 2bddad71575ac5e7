"""What a codebook lets out, at most: bits, the error of any attacker, distortion, members.

**Bits.** A release tells its label and the number of a cell: whatever an attacker computes, that
is at most log2 of the label's cells beyond the label.

**Error.** For every attacker A, who may know the distribution, the table and all else but x,

    E mean((x - A(release))^2)  >=  E Var(x | cell),

with pixels averaged, since the mean of a cell is the best guess of x that the cell allows. The
variance within the cells of a sample estimates the right side: with n_c rows of N in a cell and
their unbiased variance s_c^2,

    T = sum over cells with n_c >= 2 of n_c / N * s_c^2.

Cells that one row or none is in say nothing and count as 0, so that T errs to the safe side.

**How sure.** ``low`` and ``high`` are a bootstrap interval of T over queries, of what each adds
when it is left out and put back (its jackknife pseudo-value): in a cell of two that is more than
its share, since both rows hang on each other. ``lower_bound`` holds
for any distribution of queries in [0, 1] and any sample size, in two steps of half the
probability each. Rows of a cell are paired off; half their squared distance is unbiased for the
cell's variance, lies in [0, 1/2], and pairs are independent given the cells, so that an empirical
Bernstein bound holds (Maurer & Pontil, "Empirical Bernstein bounds and sample variance
penalization", COLT 2009, Theorem 11). Then the mean over N rows of their cells' variances, which
lie in [0, 1/4], is held against its expectation by Chernoff's bound with relative entropy.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor

from oneway.checks import check_images, check_level, check_logits
from oneway.contracts import Defense
from oneway.defenses.codebook.table import Codebook
from oneway.errors import InvalidOptionError, InvalidTensorError
from oneway.metrics import bootstrap_mean
from oneway.releases import guarded_release

ASSUMPTIONS = (
    "The queries that are to come are drawn, each by itself, from the distribution that the "
    "certified queries were drawn from.",
    "Error is the squared error per pixel in the mean over queries. A single query may be read "
    "better; so may any by an attacker who knows more about it than its distribution (who sent "
    "it, another picture of the same thing).",
    "The label is released as it is, and attacks that read only the label are not hindered.",
    "The attacker sees what this codebook released, and no other output of the model; and one "
    "answer to each query. The same scores are always answered the same, but a query that is "
    "changed a little and sent again may fall in another cell, and tell more.",
    "It is about queries to come. The codebook itself is made of calibration queries, at least so "
    "many to a vector; that is not differential privacy.",
    "Intervals are of these queries, this model and this table; a model that is trained again "
    "needs a codebook that is fitted again.",
)
"""What a certificate rests on, in words."""

LEVEL = 0.95
"""Of all intervals and bounds, unless asked otherwise."""

FEWEST_PAIRS = 30
"""Pairs of queries in one cell below which no error is certified: of all queries, or of a label."""

MOST_ALONE = 0.5
"""Share of queries that may be alone in their cell of a codebook; with more, there are too few."""

QUANTILES = (0.5, 0.95, 0.99)


@dataclass(frozen=True)
class CertifiedError:
    """The least mean squared error per pixel that any attacker can reach.

    Attributes:
        estimate: From the variance within cells.
        low: Lower end of its bootstrap interval.
        high: Upper end.
        lower_bound: What it is at least, whatever the distribution; 0 if so few queries say
            nothing.
        queries: How many it rests on.
        alone: Share of them that are alone in their cell, and count as 0.
    """

    estimate: float
    low: float
    high: float
    lower_bound: float
    queries: int
    alone: float


@dataclass(frozen=True)
class Certificate:
    """What was found about one release on one set of queries.

    Attributes:
        table: SHA-256 of the table that it is about; empty for a release without a table.
        queries: How many queries it was found on.
        independent: Whether the codebook was fitted without these queries.
        bits_most: Bits beyond the label that one release can tell, at most; None where nothing
            bounds it but the type of the numbers.
        bits_measured: Bits beyond the label that these releases tell: the entropy of cells given
            labels, by their shares.
        error: Of any attacker over all queries; None if the queries themselves were not given.
        error_by_label: Of those with each predicted label that has enough queries; each by itself,
            so that some of many intervals miss.
        distortion: L1 distance of probabilities and mean absolute difference of centered logits
            per class, each as ``mean``, ``p50``, ``p95``, ``p99`` and ``max``.
        members_least: Calibration queries behind any vector that tells more than its label; of a
            release without a table, certified queries behind any vector that was released.
        labels_alone: Labels with so few calibration queries that their vector tells no more.
        level: Of intervals and bounds.
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

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Certificate":
        """Read what :meth:`as_json` returned.

        Raises:
            KeyError: A value is missing.
            TypeError: One is unknown or of another kind.
        """
        told = dict(values)
        error = told["error"]
        told["error"] = None if error is None else CertifiedError(**error)
        told["error_by_label"] = {
            label: CertifiedError(**one) for label, one in told["error_by_label"].items()
        }
        return cls(**told)


def certify(
    codebook: Codebook,
    logits: Tensor,
    queries: Tensor | None = None,
    *,
    independent: bool,
    generator: Generator,
    level: float = LEVEL,
) -> Certificate:
    """Find what a codebook lets out, on queries like those that it will see.

    Args:
        codebook: A fitted table.
        logits: ``(N, K)`` clean scores.
        queries: ``(N, ...)`` in [0, 1], what was asked; None: no error is certified.
        independent: Whether the codebook was fitted without these queries. Only then do interval
            and lower bound of the error mean what they say.
        generator: Source of the bootstrap's draws and of the pairs.
        level: Of intervals and bounds, in (0, 1).

    Raises:
        InvalidTensorError: A tensor is not what is said above.
        InvalidOptionError: There are too few queries for what is asked.
    """
    codebook.check(logits)
    with torch.no_grad():
        cells = codebook(logits)
        released = codebook.spread(codebook.values, cells)
    found = _certified(cells, released, logits, queries, independent, generator, level)
    if found.error is not None and found.error.alone > MOST_ALONE:
        raise InvalidOptionError(
            f"{found.error.alone:.0%} of {len(logits)} queries are alone in their cell, which says "
            "nothing of the error in it. Pass more queries, or fit cells with more members."
        )
    return replace(found, table=table_hash(codebook), **figures_of_table(codebook))


def figures_of_table(codebook: Codebook) -> dict[str, Any]:
    """Return what a table tells of its certificate by itself, whatever is asked: by name."""
    telling = codebook.members[codebook.members > 0]
    return {
        "bits_most": math.log2(int(codebook.labels.bincount().max())),
        "members_least": int(telling.min()) if len(telling) else 0,
        "labels_alone": int((codebook.members == 0).sum()),
    }


def certify_release(
    defense: Defense,
    logits: Tensor,
    queries: Tensor | None = None,
    *,
    generator: Generator,
    level: float = LEVEL,
) -> Certificate:
    """Do the same for any release that maps many scores to one, such as rounding.

    Queries that are released as the same numbers are a cell. Where most cells hold one query,
    nothing is certified but what the others allow: see ``alone``.

    Args:
        defense: A deterministic one that needs scores alone.
        logits: ``(N, K)`` clean scores.
        queries: See :func:`certify`.
        generator: See there.
        level: See there.

    Raises:
        InvalidOptionError: The defense is random, or looks at the queries; or see
            :func:`certify`.
        InvalidTensorError: See :func:`certify`.
    """
    if defense.requires_input or not defense.deterministic:
        raise InvalidOptionError(
            "only a deterministic release of scores alone has cells to certify, but "
            f"{type(defense).__name__} is random or looks at the query."
        )
    check_logits(logits)
    released = guarded_release(defense, logits, dtype=torch.float64).confidences
    cells = released.unique(dim=0, return_inverse=True)[1]
    return _certified(cells, released, logits, queries, True, generator, level)


def _certified(
    cells: Tensor,
    released: Tensor,
    logits: Tensor,
    queries: Tensor | None,
    independent: bool,
    generator: Generator,
    level: float,
) -> Certificate:
    """Return all that cells and released probabilities tell by themselves."""
    if logits.ndim != 2 or len(logits) < 2:
        raise InvalidTensorError(
            f"logits must have shape (N, K) with N >= 2, but got {tuple(logits.shape)}."
        )
    check_level(level)
    labels = logits.argmax(-1)
    moved, difference = distances(released, logits.detach())
    error, by_label = None, dict[str, CertifiedError]()
    if queries is not None:
        check_images(queries, rows=len(logits))
        if not (float(queries.min()) >= 0 and float(queries.max()) <= 1):
            raise InvalidTensorError(
                "queries must lie in [0, 1], since the lower bound rests on it, but some do not. "
                "Divide them by their range."
            )
        flat = queries.detach().flatten(1)
        pairs = pairs_in(cells)
        if pairs < FEWEST_PAIRS:
            raise InvalidOptionError(
                f"an error is certified of {FEWEST_PAIRS} pairs of queries in one cell or more, "
                f"but {len(logits)} queries make {pairs}. Pass more queries, or leave them out to "
                "certify bits and distortion alone."
            )
        error = certified_error(cells, flat, generator, level)
        for label in labels.unique().tolist():
            own = labels == label
            if pairs_in(cells[own]) >= FEWEST_PAIRS:
                by_label[str(label)] = certified_error(cells[own], flat[own], generator, level)
    return Certificate(
        table="",
        queries=len(logits),
        independent=independent,
        bits_most=None,
        bits_measured=bits_beyond_label(cells, labels),
        error=error,
        error_by_label=by_label,
        distortion={
            "l1_probabilities": _summary(moved),
            "logits": _summary(difference),
        },
        members_least=int(cells.unique(return_counts=True)[1].min()),
        labels_alone=0,
        level=level,
    )


def certified_error(
    cells: Tensor, queries: Tensor, generator: Generator, level: float = LEVEL
) -> CertifiedError:
    """Return the least mean squared error that any attacker can reach; see the module.

    Args:
        cells: ``(N)`` int64, the cell of each query.
        queries: ``(N, D)`` in [0, 1].
        generator: Source of draws.
        level: Of interval and lower bound.
    """
    values, alone = error_shares(cells, queries)
    estimate = float(values.mean())
    inverse, sizes = (
        one.cpu() for one in cells.unique(return_inverse=True, return_counts=True)[1:]
    )
    own = sizes[inverse].double()
    # Of n in a cell, n s^2 less (n - 1) s^2 without this row; with two there is none without it.
    whole = torch.zeros(len(sizes), dtype=torch.float64).index_add(0, inverse, values)[inverse]
    # What is left of the sum of squares: a row takes its own times n / (n - 1), as it adds.
    left = (whole * (own - 1) / own - values).clamp_min(0)
    without = torch.where(own > 2, left * (own - 1) / (own - 2).clamp_min(1), 0.0)
    added = whole - without
    moves = bootstrap_mean(added - added.mean() + estimate, generator=generator, level=level)
    return CertifiedError(
        estimate=estimate,
        low=max(0.0, moves.low),
        high=moves.high,
        lower_bound=_lower_bound(inverse.to(cells.device), queries, len(cells), generator, level),
        queries=len(cells),
        alone=float(alone.double().mean()),
    )


def error_shares(cells: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    """Return what each query adds to the certified error, whose estimate is their mean.

    Args:
        cells: ``(N)`` int64, the cell of each query.
        queries: ``(N, D)`` in [0, 1].

    Returns:
        ``(N)`` float64 on the CPU, and ``(N)`` bool: which are alone in their cell, and add 0.
    """
    numbers, inverse = cells.unique(return_inverse=True)
    own = inverse.bincount(minlength=len(numbers))[inverse].double()
    spread = _squared_distances_from_means(inverse, queries, len(numbers))
    values = torch.where(own > 1, spread * own / (own - 1).clamp_min(1), 0.0)
    return values.cpu(), own == 1


def distances(released: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return how far each row is from its clean scores, in both spaces.

    Args:
        released: ``(N, K)`` float64 probabilities.
        logits: ``(N, K)`` clean scores.

    Returns:
        ``(N)`` L1 distances of the probabilities, and ``(N)`` mean absolute differences of the
        centered logits per class, in nats.
    """
    clean = logits.double()
    logs = released.clamp_min(torch.finfo(torch.float64).tiny).log()
    difference = _centered(logs) - _centered(clean)
    return (released - clean.softmax(-1)).abs().sum(-1), difference.abs().mean(-1)


def bits_beyond_label(cells: Tensor, labels: Tensor) -> float:
    """Return the entropy of ``(N)`` cells given their labels, in bits, by their shares."""
    whole = len(cells)
    joint = torch.stack([cells, labels], -1)
    of_both, of_labels = (
        one.unique(dim=0, return_counts=True)[1].double() / whole for one in (joint, labels)
    )
    # H(cell, label) - H(label).
    bits = (of_labels * of_labels.log2()).sum() - (of_both * of_both.log2()).sum()
    return max(0.0, float(bits))


def pairs_in(cells: Tensor) -> int:
    """Return how many disjoint pairs of queries there are that share a cell."""
    return int((cells.unique(return_counts=True)[1] // 2).sum())


def table_hash(codebook: Codebook) -> str:
    """Return the SHA-256 of a table's sizes and of all its tensors."""
    digest = hashlib.sha256(repr(sorted(codebook.architecture.items())).encode())
    for name, tensor in sorted(codebook.state_dict().items()):
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _squared_distances_from_means(inverse: Tensor, queries: Tensor, cells: int) -> Tensor:
    """Return ``(N)`` float64: each row's mean squared distance from its cell's mean."""
    counts = inverse.bincount(minlength=cells).double().unsqueeze(-1)
    means = queries.new_zeros(cells, queries.shape[1], dtype=torch.float64)
    for rows, numbers in zip(queries.split(4096), inverse.split(4096), strict=True):
        means.index_add_(0, numbers, rows.double())
    means /= counts
    parts = [
        (rows.double() - means[numbers]).square().mean(-1)
        for rows, numbers in zip(queries.split(4096), inverse.split(4096), strict=True)
    ]
    return torch.cat(parts)


def _lower_bound(
    inverse: Tensor, queries: Tensor, count: int, generator: Generator, level: float
) -> float:
    """Return a lower bound on E Var(x | cell) that holds for any distribution in [0, 1]."""
    # Within each cell neighbours in a random order are pairs; of an odd number one is left over.
    order = torch.randperm(count, generator=generator).to(inverse.device)
    order = order[inverse[order].argsort(stable=True)]
    sorted_cells = inverse[order]
    starts = torch.ones_like(sorted_cells, dtype=torch.bool)
    starts[1:] = sorted_cells[1:] != sorted_cells[:-1]
    places = torch.arange(count, device=order.device)
    first = torch.where(starts, places, 0).cummax(0).values
    odd = (places - first) % 2 == 1
    right = places[odd]
    pairs = len(right)
    if pairs < 2:
        return 0.0
    left_rows, right_rows = queries[order[right - 1]], queries[order[right]]
    halves = torch.cat(
        [
            (one.double() - other.double()).square().mean(-1) / 2
            for one, other in zip(left_rows.split(4096), right_rows.split(4096), strict=True)
        ]
    )
    # In [0, 1] for the inequality; half of the risk for each of the two steps.
    scaled, risk = 2 * halves, (1 - level) / 2
    log = math.log(2 / risk)
    slack = math.sqrt(2 * float(scaled.var()) * log / pairs) + 7 * log / (3 * (pairs - 1))
    mean = max(0.0, (float(scaled.mean()) - slack) / 2)
    # What is left over counts as 0.
    seen = mean * 2 * pairs / count
    return lower_expectation(4 * seen, count, risk) / 4


def lower_expectation(mean: float, count: int, risk: float) -> float:
    """Return the least expectation that a mean of independent values in [0, 1] is likely of.

    Args:
        mean: What was seen, in [0, 1].
        count: Of how many values.
        risk: Probability with which the expectation may be lower.

    Returns:
        The least p with ``count * KL(mean || p) <= log(1 / risk)``.

    Source:
        Hoeffding, "Probability inequalities for sums of bounded random variables" (1963),
        Theorem 1.
    """
    if mean <= 0:
        return 0.0
    mean, limit = min(mean, 1.0), math.log(1 / risk) / count
    low, high = 0.0, mean
    for _ in range(60):
        middle = (low + high) / 2
        if middle > 0 and _divergence(mean, middle) <= limit:
            high = middle
        else:
            low = middle
    # The end that is surely far enough.
    return low


def _divergence(mean: float, other: float) -> float:
    """Return the relative entropy of two Bernoulli distributions, in nats."""
    parts = [
        own * math.log(own / theirs)
        for own, theirs in ((mean, other), (1 - mean, 1 - other))
        if own > 0
    ]
    return sum(parts)


def _centered(rows: Tensor) -> Tensor:
    return rows - rows.mean(-1, keepdim=True)


def _summary(values: Tensor) -> dict[str, float]:
    ends = torch.tensor(QUANTILES, dtype=values.dtype, device=values.device)
    found = values.quantile(ends).tolist()
    return {
        "mean": float(values.mean()),
        **{f"p{100 * q:g}": value for q, value in zip(QUANTILES, found, strict=True)},
        "max": float(values.max()),
    }
