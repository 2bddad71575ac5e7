"""Re-identification in a gallery: whether a reconstruction reveals which input it came from.

An error per pixel measures the distance to the truth, not whether other inputs are closer. Here
the judge sees a reconstruction and a gallery of true inputs, the query among them, and ranks the
gallery. Chance is ``within / gallery``. The label alone reveals more than chance, so compare with
an attacker who has only the label.

The judge shares nothing with the target and knows auxiliary inputs alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Generator, Tensor

from oneway.checks import check_count, check_images, name_of
from oneway.errors import InvalidOptionError, InvalidTensorError
from oneway.metrics.inputs import check_pairs

FIT_ROWS = 1000
"""Most auxiliary rows that directions are fitted to, which takes seconds."""

FIT_VALUES = 2**22
"""Values in all rows that directions are fitted to; small inputs allow more rows."""

LEAST_SHARE = 1e-10
"""Directions with less of the leading variance than this are rounding errors."""

LEAST_RESIDUAL = 0.01
"""Least share of a feature's variance that a regression leaves unexplained."""

ROWS_AT_ONCE = 128

GALLERY = 1000
"""Most true inputs of a gallery."""


class Embedder(Protocol):
    """Describes inputs by rows of features; similar inputs have similar features."""

    def __call__(self, images: Tensor) -> Tensor:
        """Describe inputs.

        Args:
            images: ``(N, C, H, W)`` images or ``(N, features)`` records, true or reconstructed.

        Returns:
            ``(N, D)`` float64, finite. No row depends on any other row.
        """
        ...


def features_of(embedder: Embedder, images: Tensor) -> Tensor:
    """Return ``(N, D)`` features of ``(N, ...)`` inputs, on their device.

    Raises:
        InvalidTensorError: The embedder breaks its promise. NaN would be ranked first.
    """
    features = embedder(images)
    if features.dtype != torch.float64 or features.ndim != 2 or len(features) != len(images):
        raise InvalidTensorError(
            f"features must be float64 of shape ({len(images)}, D), one row per input, but the "
            f"embedder returned {name_of(features.dtype)} of shape {tuple(features.shape)}. Let it "
            "return `features.flatten(1).double()`."
        )
    finite = features.isfinite().all(-1)
    if not finite.all():
        raise InvalidTensorError(
            f"features must be finite, but the embedder returned NaN or infinity for "
            f"{int((~finite).sum())} of {len(images)} inputs. Reconstructions may lie outside "
            "[0, 1] and may be constant: let it describe them, too."
        )
    return features.to(images.device)


@dataclass(frozen=True)
class PrincipalComponents:
    """The leading principal components of auxiliary inputs: for faces, eigenfaces.

    They are not whitened: that would give the most weight to detail, which reconstructions lack.
    A :class:`FeatureRegression` weighs each by how well reconstructions render it.

    Attributes:
        mean: ``(P)`` mean of the auxiliary inputs, flattened; float64.
        directions: ``(P, D)`` orthonormal columns, in falling order of variance; float64.

    Source:
        Turk & Pentland, "Eigenfaces for Recognition", Journal of Cognitive Neuroscience 3(1),
        1991.
    """

    mean: Tensor
    directions: Tensor

    @classmethod
    def fit(cls, images: Tensor, components: int = 64) -> Self:
        """Find the directions in which auxiliary inputs differ most. Deterministic.

        Args:
            images: ``(M, C, H, W)`` or ``(M, features)`` auxiliary inputs, without the target's
                training data and without queries. Of more than 1,000 rows, evenly spaced rows are
                used.
            components: Number of components; fewer if the inputs span fewer directions.

        Raises:
            InvalidTensorError: ``images`` break the line above, or are all alike.
            InvalidOptionError: ``components`` is below 1.
        """
        check_images(images)
        check_count("components", components)
        most = max(FIT_ROWS, FIT_VALUES // max(1, images[:1].numel()))
        chosen = torch.arange(min(most, len(images)), device=images.device)
        rows = images[chosen * len(images) // max(1, len(chosen))].flatten(1).double()
        mean = rows.mean(0)
        rows = rows - mean
        # The smaller of the two Gram matrices has all the directions.
        wide = rows.shape[1] > rows.shape[0]
        variances, vectors = torch.linalg.eigh(rows @ rows.mT if wide else rows.mT @ rows)
        kept = variances > LEAST_SHARE * variances[-1:].clamp_min(torch.finfo(rows.dtype).tiny)
        if not kept.any():
            raise InvalidTensorError(
                f"images must differ from each other, but all {len(images)} are alike. Pass the "
                "attacker's auxiliary images."
            )
        vectors = vectors[:, kept].flip(-1)[:, :components]
        if wide:
            vectors = rows.mT @ vectors
        return cls(mean, vectors / vectors.norm(dim=0))

    def __call__(self, images: Tensor) -> Tensor:
        """Return ``(N, D)`` coordinates along the directions.

        Raises:
            InvalidTensorError: The inputs have another size than the fitted ones.
        """
        size = images[:1].flatten(1).shape[-1]
        if size != len(self.mean):
            raise InvalidTensorError(
                f"images must have {len(self.mean)} values each, as those that the components "
                f"were fitted to, but got {size} in shape {tuple(images.shape)}."
            )
        mean, directions = self.mean.to(images.device), self.directions.to(images.device)
        return torch.cat(
            [(rows.flatten(1).double() - mean) @ directions for rows in images.split(ROWS_AT_ONCE)]
        )


@dataclass(frozen=True)
class FeatureRegression:
    """A regression of true features on reconstructed features, feature by feature.

    Given the reconstructed feature, the true feature is modelled as Gaussian about ``slope`` times
    it. A feature that reconstructions lack has slope 0 and decides nothing; a feature that they
    render well decides much.

    Attributes:
        shift: ``(D)`` mean of the reconstructions' features.
        center: ``(D)`` mean of the true features.
        slope: ``(D)`` slope of the true on the reconstructed features.
        variance: ``(D)`` variance of the true features.
        residual: ``(D)`` variance of the true features, given the reconstructed ones.
    """

    shift: Tensor
    center: Tensor
    slope: Tensor
    variance: Tensor
    residual: Tensor

    @classmethod
    def fit(cls, embedder: Embedder, images: Tensor, reconstructions: Tensor) -> Self:
        """Fit the regression to the attacker's held-out auxiliary inputs.

        Args:
            embedder: Describes inputs and reconstructions.
            images: ``(M, ...)`` inputs that the decoder was not trained on, and not queries; a
                hundred are enough.
            reconstructions: Their reconstructions, same shape and order.

        Raises:
            InvalidTensorError: The shapes differ, there are fewer than two pairs, or the embedder
                returns features of another type or shape, or NaN.
        """
        check_pairs(images, reconstructions)
        if len(images) < 2:
            raise InvalidTensorError(
                "a regression needs at least 2 pairs, but got 1. Pass more held-out inputs."
            )
        true, guess = features_of(embedder, images), features_of(embedder, reconstructions)
        center, shift = true.mean(0), guess.mean(0)
        true, guess = true - center, guess - shift
        variance = true.square().mean(0)
        power = guess.square().mean(0)
        # Rounding errors are no signal: where reconstructions hardly differ, the slope is 0.
        seen = power > LEAST_SHARE * variance.max()
        slope = torch.where(seen, (true * guess).mean(0) / power.where(seen, 1), 0)
        residual = (true - slope * guess).square().mean(0)
        return cls(shift, center, slope, variance, residual.clamp_min(LEAST_RESIDUAL * variance))


def reidentification_ranks(
    embedder: Embedder,
    images: Tensor,
    reconstructions: Tensor,
    *,
    generator: Generator,
    gallery: int = GALLERY,
    regression: FeatureRegression | None = None,
) -> Tensor:
    """Return the rank of each true input in its gallery, given its reconstruction.

    The queries are dealt at random into galleries of one size. Each reconstruction is compared with
    every true input of its gallery. Ties are ranked at random, so that equal reconstructions score
    at chance.

    Args:
        embedder: Describes inputs; fitted on auxiliary inputs.
        images: ``(N, ...)`` true inputs of the queries.
        reconstructions: Same shape and order.
        generator: Source of the galleries, on any device.
        gallery: Number of true inputs in each gallery, from 2 to ``N``.
        regression: Regression that ranks candidates by the likelihood ratio of their features, with
            and without the reconstruction. This judge is much stronger: publish its ranks. None:
            candidates are ranked by the cosine of features, less the mean of each side.

    Returns:
        ``(N)`` int64 from 1, the best, to ``gallery``.

    Raises:
        InvalidTensorError: The shapes differ, the regression is of another embedder, or the
            embedder returns features of another type or shape, or NaN.
        InvalidOptionError: ``gallery`` is outside its range.
    """
    check_pairs(images, reconstructions)
    check_count("gallery", gallery, 2)
    count = len(images)
    if gallery > count:
        raise InvalidOptionError(
            f"gallery must be at most the {count} queries, but got {gallery}. Ranks compare "
            "among galleries of one size alone: ask more queries, or use one size everywhere."
        )
    queries, candidates = features_of(embedder, reconstructions), features_of(embedder, images)
    if regression is None:
        queries, candidates, bonus = _cosine_terms(queries, candidates)
    else:
        if regression.center.shape != queries.shape[1:]:
            raise InvalidTensorError(
                f"regression must be of the embedder's {queries.shape[-1]} features, but has "
                f"{len(regression.center)}. Fit it with the same embedder."
            )
        queries, candidates, bonus = _likelihood_terms(queries, candidates, regression)
    place = torch.arange(gallery, device=images.device)
    ranks = torch.empty(count, dtype=torch.int64, device=images.device)
    for members, first in deal_galleries(count, gallery, generator):
        members = members.to(images.device)
        shown, extra = candidates[members], bonus[members]
        for rows in place[first:].split(ROWS_AT_ONCE):
            scores = queries[members[rows]] @ shown.mT + extra
            right = scores.gather(-1, rows.unsqueeze(-1))
            # A gallery is in random order, so ties may be ranked in that order.
            before = (scores > right) | ((scores == right) & (place < rows.unsqueeze(-1)))
            ranks[members[rows]] = 1 + before.sum(-1)
    return ranks


def rank_share(ranks: Tensor, within: int = 1) -> float:
    """Return the share of queries with their true input among the first ``within`` ranks.

    Args:
        ranks: ``(N)`` int64 from 1, as :func:`reidentification_ranks` returns them, ``N >= 1``.
        within: 1 for rank-1, 5 for rank-5.

    Raises:
        InvalidTensorError: ``ranks`` break the line above.
        InvalidOptionError: ``within`` is below 1.
    """
    check_count("within", within)
    if ranks.dtype != torch.int64 or ranks.ndim != 1 or not len(ranks) or int(ranks.min()) < 1:
        raise InvalidTensorError(
            "ranks must be int64 of shape (N,) with N >= 1, counted from 1, but got "
            f"{name_of(ranks.dtype)} of shape {tuple(ranks.shape)}. Pass what "
            "`reidentification_ranks` returns."
        )
    return float((ranks <= within).double().mean())


def deal_galleries(count: int, gallery: int, generator: Generator) -> Iterator[tuple[Tensor, int]]:
    """Yield galleries in random order, and the first place of each from which members are ranked.

    The last gallery is filled up with members that are ranked already.

    Args:
        count: Number of queries.
        gallery: Number of members of each gallery, from 1 to ``count``.
        generator: Source of the order, on any device.

    Yields:
        ``(gallery)`` int64 numbers of queries, and the first place whose member is ranked here.
    """
    order = torch.randperm(count, generator=generator, device=generator.device)
    for start in range(0, count, gallery):
        begin = min(start, count - gallery)
        yield order[begin : begin + gallery], start - begin


Terms = tuple[Tensor, Tensor, Tensor]
"""Rows of queries, rows of candidates, and a bonus per candidate: product plus bonus is the
score."""


def _cosine_terms(queries: Tensor, candidates: Tensor) -> Terms:
    # All reconstructions may share an error, such as being too dark, which carries no information.
    rows = [
        torch.nn.functional.normalize(each - each.mean(0), dim=-1) for each in (queries, candidates)
    ]
    return rows[0], rows[1], rows[1].new_zeros(len(candidates))


def _likelihood_terms(queries: Tensor, candidates: Tensor, regression: FeatureRegression) -> Terms:
    """Expand the log likelihood ratio, without terms that are equal for all candidates."""
    varies = regression.variance > 0
    residual = regression.residual.where(varies, 1)
    prior = regression.variance.where(varies, 1)
    expected = regression.slope * (queries - regression.shift)
    features = candidates - regression.center
    bonus = (features.square() * (1 / prior - 1 / residual)).sum(-1)
    return 2 * expected / residual, features, bonus


def expected_hits(distances: Tensor, places: Tensor, within: int = 1) -> Tensor:
    """Return each query's probability that its candidate is among the nearest ``within``.

    Candidates at equal distance are ranked at random. So if ``t`` candidates tie for the first
    rank, the right one among them, rank 1 counts ``1 / t``.

    Args:
        distances: ``(N, M)`` floating, without NaN: the distance of each query to each candidate.
            The lowest is the attacker's answer.
        places: ``(N)`` int64 in ``[0, M)``: the place of each query's right candidate.
        within: Ranks that count, at least 1: 1 for rank 1, 5 for rank 5.

    Returns:
        ``(N)`` float64, in ``[0, 1]``.

    Raises:
        InvalidTensorError: A tensor breaks the lines above.
        InvalidOptionError: ``within`` is below 1.
    """
    check_count("within", within)
    if distances.ndim != 2 or not distances.is_floating_point() or distances.isnan().any():
        raise InvalidTensorError(
            "distances must be floating of shape (N, M), without NaN, but got "
            f"{name_of(distances.dtype)} of shape {tuple(distances.shape)} with "
            f"{int(distances.isnan().sum())} NaN. Pass a distance for each query and candidate."
        )
    count, candidates = distances.shape
    if (
        places.dtype != torch.int64
        or places.shape != (count,)
        or not ((places >= 0) & (places < candidates)).all()
    ):
        raise InvalidTensorError(
            f"places must be int64 of shape ({count},) in [0, {candidates}), one per row of "
            f"distances, but got {name_of(places.dtype)} of shape {tuple(places.shape)}. Pass the "
            "column of each query's right candidate."
        )
    own = distances.gather(-1, places.unsqueeze(-1))
    nearer = (distances < own).sum(-1)
    tied = (distances == own).sum(-1)
    return ((within - nearer).double() / tied).clamp(0, 1)
