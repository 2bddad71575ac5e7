"""Whether a reconstruction tells which input it came from: re-identification in a gallery.

An error per pixel says how far a reconstruction is from the truth, not whether it is nearer to it
than to others. Here the judge sees a reconstruction and a gallery of true inputs, one of which
it came from, and ranks them. Chance is ``within / gallery``; what the label alone gives away
lies above that, so compare with an attacker who has no more.

The judge shares nothing with the target: it knows auxiliary inputs alone.
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
"""Auxiliary rows that directions are taken from at least: seconds for any size of input."""

FIT_VALUES = 2**22
"""Values in all rows that they are taken from, where that allows more rows: of small inputs."""

LEAST_SHARE = 1e-10
"""Directions with less of the leading variance than this are rounding errors."""

LEAST_RESIDUAL = 0.01
"""Share of a feature's variance that a calibrated judge leaves unexplained at least."""

ROWS_AT_ONCE = 512


class Embedder(Protocol):
    """Describes inputs by rows of features, in which like inputs are near."""

    def __call__(self, images: Tensor) -> Tensor:
        """Describe inputs.

        Args:
            images: ``(N, C, H, W)`` images or ``(N, features)`` records, true or reconstructed.

        Returns:
            ``(N, D)`` float64. No row depends on any other row.
        """
        ...


@dataclass(frozen=True)
class PrincipalComponents:
    """The leading principal components of auxiliary inputs: for faces, eigenfaces.

    They are not whitened: that would give the most weight to detail, which reconstructions lack.
    A :class:`Calibration` weighs each by what it tells.

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
            images: ``(M, C, H, W)`` or ``(M, features)``, auxiliary: none of the target's
                inputs, none of the queries. Of more than 1,000, some at even distances count.
            components: How many to keep; fewer if the inputs do not differ in so many ways.

        Raises:
            InvalidTensorError: ``images`` are something else, or all alike.
            InvalidOptionError: ``components`` is below 1.
        """
        check_images(images)
        check_count("components", components)
        most = max(FIT_ROWS, FIT_VALUES // max(1, images[:1].numel()))
        chosen = torch.arange(min(most, len(images)), device=images.device)
        rows = images[chosen * len(images) // max(1, len(chosen))].flatten(1).double()
        mean = rows.mean(0)
        rows = rows - mean
        # Of both Gram matrices, the smaller one has all the directions.
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
            InvalidTensorError: The inputs have another size than those it was fitted to.
        """
        size = images[:1].flatten(1).shape[-1]
        if size != len(self.mean):
            raise InvalidTensorError(
                f"images must have {len(self.mean)} values each, as those that the components "
                f"were fitted to, but got {size} in shape {tuple(images.shape)}."
            )
        mean, directions = self.mean.to(images.device), self.directions.to(images.device)
        return torch.cat(
            [(some.flatten(1).double() - mean) @ directions for some in images.split(ROWS_AT_ONCE)]
        )


@dataclass(frozen=True)
class Calibration:
    """What a reconstruction's features tell of the true ones, feature by feature.

    The true feature, given the reconstructed one, is taken to be Gaussian about ``slope`` times
    it. A feature that the reconstructions lack has slope 0 and decides nothing, and one that they
    render well decides much.

    Attributes:
        shift: ``(D)`` mean of the reconstructions' features.
        center: ``(D)`` mean of the true features.
        slope: ``(D)`` regression of the true on the reconstructed.
        variance: ``(D)`` of the true features.
        residual: ``(D)`` of the true features, given the reconstructed.
    """

    shift: Tensor
    center: Tensor
    slope: Tensor
    variance: Tensor
    residual: Tensor

    @classmethod
    def fit(cls, embedder: Embedder, images: Tensor, reconstructions: Tensor) -> Self:
        """Learn from pairs that the attacker has: its held-out auxiliary inputs.

        Args:
            embedder: Describes both.
            images: ``(M, ...)`` inputs that its decoder was not trained on, and no queries;
                a hundred are enough.
            reconstructions: What it made of the answers to them, in the same order.

        Raises:
            InvalidTensorError: They are no pairs, or fewer than two.
        """
        check_pairs(images, reconstructions)
        if len(images) < 2:
            raise InvalidTensorError("a calibration needs at least 2 pairs, but got 1.")
        true, made = embedder(images), embedder(reconstructions)
        center, shift = true.mean(0), made.mean(0)
        true, made = true - center, made - shift
        variance = true.square().mean(0)
        power = made.square().mean(0)
        # Rounding errors are no signal: where reconstructions hardly differ, the slope is 0.
        seen = power > LEAST_SHARE * variance.max()
        slope = torch.where(seen, (true * made).mean(0) / power.where(seen, 1), 0)
        residual = (true - slope * made).square().mean(0)
        return cls(shift, center, slope, variance, residual.clamp_min(LEAST_RESIDUAL * variance))


def reidentification_ranks(
    embedder: Embedder,
    images: Tensor,
    reconstructions: Tensor,
    *,
    generator: Generator,
    gallery: int = 1000,
    calibration: Calibration | None = None,
) -> Tensor:
    """Return how high each true input ranks among others, given its reconstruction.

    The queries are dealt into galleries of one size at random; each reconstruction is compared
    with every true input of its gallery. Those that tie stand in random order, so that
    reconstructions which are all alike score at chance.

    Args:
        embedder: Describes inputs; fitted on auxiliary ones.
        images: ``(N, ...)`` true inputs of the queries.
        reconstructions: Same shape and order.
        generator: Deals the galleries; on any device.
        gallery: True inputs in each, the right one included; from 2 to ``N``.
        calibration: How far the embedder's features are to be trusted: candidates are ranked by
            the likelihood of their features, given the reconstruction, over that without one.
            The stronger judge by far: publish its ranks. None: they are ranked by the cosine of
            features, less the mean of each side.

    Returns:
        ``(N)`` int64 from 1, the best, to ``gallery``.

    Raises:
        InvalidTensorError: The shapes differ, or the calibration is of another embedder.
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
    queries, candidates = embedder(reconstructions), embedder(images)
    if calibration is None:
        queries, candidates, bonus = _cosine_terms(queries, candidates)
    else:
        if calibration.center.shape != queries.shape[1:]:
            raise InvalidTensorError(
                f"calibration must be of the embedder's {queries.shape[-1]} features, but has "
                f"{len(calibration.center)}. Fit it with the same embedder."
            )
        queries, candidates, bonus = _likelihood_terms(queries, candidates, calibration)
    place = torch.arange(gallery, device=images.device)
    ranks = torch.empty(count, dtype=torch.int64, device=images.device)
    for members, first in _deal(count, gallery, generator):
        members = members.to(images.device)
        shown, extra = candidates[members], bonus[members]
        for some in place[first:].split(ROWS_AT_ONCE):
            scores = queries[members[some]] @ shown.mT + extra
            own = scores.gather(-1, some.unsqueeze(-1))
            # A gallery stands in random order, so of equals the first may come first.
            before = (scores > own) | ((scores == own) & (place < some.unsqueeze(-1)))
            ranks[members[some]] = 1 + before.sum(-1)
    return ranks


def rank_share(ranks: Tensor, within: int = 1) -> float:
    """Return the share of queries whose true input is among the first ``within``.

    Args:
        ranks: ``(N)`` int64 from 1, as :func:`reidentification_ranks` returns them, ``N >= 1``.
        within: 1 for rank-1, 5 for rank-5.

    Raises:
        InvalidTensorError: ``ranks`` are something else.
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


def _deal(count: int, gallery: int, generator: Generator) -> Iterator[tuple[Tensor, int]]:
    """Yield galleries in random order, and from which place on their members are ranked.

    The last one is filled up with members who were ranked before.
    """
    order = torch.randperm(count, generator=generator, device=generator.device)
    for start in range(0, count, gallery):
        begin = min(start, count - gallery)
        yield order[begin : begin + gallery], start - begin


Terms = tuple[Tensor, Tensor, Tensor]
"""Rows of queries and of candidates, and a bonus per candidate, whose sum of product and bonus
is the score."""


def _cosine_terms(queries: Tensor, candidates: Tensor) -> Terms:
    # Reconstructions may all be off in one way, such as too dark: that part tells nothing.
    rows = [
        torch.nn.functional.normalize(each - each.mean(0), dim=-1) for each in (queries, candidates)
    ]
    return rows[0], rows[1], rows[1].new_zeros(len(candidates))


def _likelihood_terms(queries: Tensor, candidates: Tensor, calibration: Calibration) -> Terms:
    """Expand the log likelihood ratio, without what is the same for all candidates."""
    varies = calibration.variance > 0
    residual = calibration.residual.where(varies, 1)
    prior = calibration.variance.where(varies, 1)
    expected = calibration.slope * (queries - calibration.shift)
    features = candidates - calibration.center
    bonus = (features.square() * (1 / prior - 1 / residual)).sum(-1)
    return 2 * expected / residual, features, bonus
