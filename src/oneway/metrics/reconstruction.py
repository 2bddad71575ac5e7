"""Reconstructions against the truth: inversion errors, closed gap, similarity, columns."""

import math

import torch
from torch import Tensor

from oneway.checks import in_parts, name_of
from oneway.errors import InvalidOptionError, InvalidTensorError
from oneway.metrics.inputs import check_pairs, check_unit_range


def inversion_errors(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Return each image's mean squared error per pixel.

    Args:
        images: ``(N, ...)`` true inputs in ``[0, 1]``.
        reconstructions: Same shape.

    Returns:
        ``(N)`` errors, float64.

    Raises:
        InvalidTensorError: The shapes differ: broadcasting would average the wrong pixels.

    Source:
        Wen, Yiu & Hui, section V-B3. Theirs may be taken on another canvas: compare ratios.
    """
    if images.shape != reconstructions.shape:
        raise InvalidTensorError(
            f"reconstructions must have the images' shape {tuple(images.shape)}, "
            f"but got {tuple(reconstructions.shape)}."
        )
    # In parts, since whole sets of images in float64 cost more to allocate than to compare.
    pairs = zip(*(in_parts(each.flatten(1)) for each in (images, reconstructions)), strict=True)
    return torch.cat([(one.double() - two.double()).square().mean(-1) for one, two in pairs])


def lowest_share(errors: Tensor, share: float) -> float:
    """Return the mean error over the worst protected share of the queries.

    A mean over all queries hides the few that are recognized. For a measure that is high where an
    input is recovered, such as similarity, negate the measure and the result.

    Args:
        errors: ``(N)`` errors, one per query, floating, none NaN. The lowest ones are averaged.
        share: In ``(0, 1]``, such as 0.01 or 0.05; rounded to whole queries, at least one.

    Raises:
        InvalidTensorError: ``errors`` break the lines above.
        InvalidOptionError: ``share`` is outside its range.
    """
    if errors.ndim != 1 or not len(errors) or not errors.is_floating_point():
        raise InvalidTensorError(
            "errors must be floating of shape (N,) with N >= 1, one per query, but got "
            f"{name_of(errors.dtype)} of shape {tuple(errors.shape)}."
        )
    if errors.isnan().any():
        raise InvalidTensorError(
            f"errors must be numbers, but {int(errors.isnan().sum())} of {len(errors)} are NaN."
        )
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        raise InvalidOptionError(f"share must be above 0 and at most 1, but got {share!r}.")
    count = max(1, round(share * len(errors)))
    return float(errors.double().sort().values[:count].mean())


def lowest_rows(errors: Tensor, count: int) -> Tensor:
    """Return the rows of the best reconstructed queries, best first; ties keep their order.

    Args:
        errors: ``(N)`` errors, one per query.
        count: Number of rows to return; all rows, if there are fewer.

    Returns:
        ``(min(count, N))`` int64 row numbers.
    """
    return errors.argsort(stable=True)[:count]


def closed_gap(adaptive_error: float, clean_error: float, label_error: float) -> float:
    """Return G, the share of the scores' information beyond the label that a defense hides.

    Args:
        adaptive_error: Lowest error of all attackers who know the defense.
        clean_error: Lowest error on clean scores.
        label_error: Lowest error of attacks on the label alone.

    Returns:
        ``(adaptive - clean) / (label - clean)``: 0 = nothing hidden, 1 = as if only labels were
        released. Below 0, the release reveals more than the clean scores. Above 1, an attack
        failed, since every attacker may fall back on the label: do not publish it.

    Raises:
        InvalidOptionError: An error is negative or not finite, or ``label_error`` does not
            exceed ``clean_error``: then clean scores add nothing to the label, and there is no
            gap.
    """
    errors = {
        "adaptive_error": adaptive_error,
        "clean_error": clean_error,
        "label_error": label_error,
    }
    for name, error in errors.items():
        if not (math.isfinite(error) and error >= 0):
            raise InvalidOptionError(f"{name} must be finite and at least 0, but got {error}.")
    if not label_error > clean_error:
        raise InvalidOptionError(
            f"label_error ({label_error:.6g}) must exceed clean_error ({clean_error:.6g}): "
            "here the clean scores add nothing to the label. "
            "Train the attacker on clean scores for longer, or report that there is no gap."
        )
    return (adaptive_error - clean_error) / (label_error - clean_error)


WINDOW = 11
"""Side of the structural similarity's window in pixels; smaller images have a smaller window."""

WINDOW_SIGMA = 1.5
"""Standard deviation of its Gaussian weights, in pixels."""

LUMINANCE_CONSTANT = 0.01**2
CONTRAST_CONSTANT = 0.03**2
"""The paper's C1 and C2 for a data range of 1."""

PIXELS_AT_ONCE = 2**20
"""Most pixels at once: they take about 100 MB of float64 maps."""


def peak_signal_to_noise_ratio(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Return each image's peak signal-to-noise ratio, for a peak of 1.

    Args:
        images: ``(N, ...)`` true inputs in ``[0, 1]``.
        reconstructions: Same shape, finite.

    Returns:
        ``(N)`` decibels, float64: infinite where a reconstruction is exact. One such row makes
        the mean infinite, so report a quantile or the worst share; the ratio of the mean
        error, ``-10 * log10(inversion_errors(...).mean())``, is finite too.

    Raises:
        InvalidTensorError: The shapes differ, or ``images`` leave ``[0, 1]``.
    """
    check_pairs(images, reconstructions)
    check_unit_range(images)
    return -10 * inversion_errors(images, reconstructions).log10()


def structural_similarity(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Return each image's mean structural similarity (SSIM).

    Local means, variances and the covariance are weighted by a Gaussian of standard deviation
    1.5 in an 11 by 11 window, at every place where the whole window fits, and averaged over
    places and channels. A side below 11 pixels gets the largest odd window that fits, with the same
    Gaussian cut there; such values are comparable only between images of equal size. For images of
    one or two pixels the window is a single pixel, and only luminance is compared.

    Args:
        images: ``(N, C, H, W)`` true inputs in ``[0, 1]``, of any size.
        reconstructions: Same shape, finite.

    Returns:
        ``(N)`` float64 in ``[-1, 1]`` if the reconstructions are in ``[0, 1]``; 1 where a
        reconstruction is exact.

    Raises:
        InvalidTensorError: The shapes differ or are not those of images, or ``images`` leave
            ``[0, 1]``.

    Source:
        Wang, Bovik, Sheikh & Simoncelli, "Image Quality Assessment: From Error Visibility to
        Structural Similarity", IEEE Transactions on Image Processing 13(4), 2004. The smaller
        windows are ours.
    """
    check_pairs(images, reconstructions)
    check_unit_range(images)
    if images.ndim != 4 or not all(images.shape[1:]):
        raise InvalidTensorError(
            f"images must have shape (N, C, H, W), but got {tuple(images.shape)}: only images "
            "have a structure. Pass `images.unsqueeze(1)` if they lack the channel."
        )
    down, across = (_window_weights(side, images.device) for side in images.shape[-2:])
    rows = max(1, PIXELS_AT_ONCE // images[0].numel())
    parts = [
        _similarity(true.double(), guess.double(), down, across)
        for true, guess in zip(images.split(rows), reconstructions.split(rows), strict=True)
    ]
    return torch.cat(parts)


def _similarity(images: Tensor, reconstructions: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Return ``(N)`` similarities of a few images; the weights are those of both sides."""

    def local_mean(maps: Tensor) -> Tensor:
        return down @ maps @ across.mT

    first, second = local_mean(images), local_mean(reconstructions)
    variances = local_mean(images.square() + reconstructions.square())
    variances = variances - first.square() - second.square()
    covariance = local_mean(images * reconstructions) - first * second
    luminance = (2 * first * second + LUMINANCE_CONSTANT) / (
        first.square() + second.square() + LUMINANCE_CONSTANT
    )
    structure = (2 * covariance + CONTRAST_CONSTANT) / (variances + CONTRAST_CONSTANT)
    return (luminance * structure).flatten(1).mean(-1)


def _window_weights(side: int, device: torch.device) -> Tensor:
    """Return ``(places, side)`` rows, the window's weights at each place where it fits."""
    window = min(WINDOW, side - 1 + side % 2)
    places = torch.arange(side - window + 1, dtype=torch.float64, device=device)
    offsets = torch.arange(side, device=device) - places.unsqueeze(-1)
    weights = (-0.5 * ((offsets - window // 2) / WINDOW_SIGMA).square()).exp()
    weights = weights * ((offsets >= 0) & (offsets < window))
    return weights / weights.sum(-1, keepdim=True)


Block = tuple[int, int]


def categorical_accuracy(records: Tensor, reconstructions: Tensor, block: Block) -> Tensor:
    """Return, for each record, the chance that the reconstruction names the right category.

    Args:
        records: ``(N, features)`` true records, one-hot in ``block``.
        reconstructions: Same shape; the largest entry of the block names the category.
        block: Positions of the column.

    Returns:
        ``(N)`` float64: 1 if the true category is the only largest entry, 0 if it is not
        among the largest. Among ``m`` that tie, ``1 / m``: a block of equal entries is a guess,
        not the first category.

    Raises:
        InvalidTensorError: The shapes differ, or ``records`` are not one-hot there.
        InvalidOptionError: ``block`` is not inside the record.
    """
    start, stop = _check(records, reconstructions, block)
    true, guess = records[:, start:stop], reconstructions[:, start:stop]
    one_hot = ((true == 0) | (true == 1)).all(-1) & (true.sum(-1) == 1)
    if not one_hot.all():
        raise InvalidTensorError(
            f"records must be one-hot in block ({start}, {stop}), but {int((~one_hot).sum())} of "
            f"{len(records)} rows are not, row {int((~one_hot).nonzero()[0])} first. Pass the "
            "columns of this record layout; a numeric column has `numeric_error`."
        )
    largest = guess == guess.amax(-1, keepdim=True)
    named = (largest & (true == 1)).any(-1)
    return named.double() / largest.sum(-1)


def numeric_error(records: Tensor, reconstructions: Tensor, block: Block) -> Tensor:
    """Return, for each record, the absolute error of a numeric column.

    Args:
        records: ``(N, features)`` true records, in ``[0, 1]`` at ``block``.
        reconstructions: Same shape.
        block: Position of the column; or two positions, the number and whether it is missing (a
            reconstruction above 0.5 says so).

    Returns:
        ``(N)`` float64, in units of the column's range. Where only one of record and
        reconstruction has a value: 1, the whole range. Where neither has: 0.

    Raises:
        InvalidTensorError: The shapes differ, ``records`` leave ``[0, 1]`` there, or their second
            position is neither 0 nor 1.
        InvalidOptionError: ``block`` is not inside the record, or longer than two positions.
    """
    start, stop = _check(records, reconstructions, block)
    if stop - start > 2:
        raise InvalidOptionError(
            f"block of a numeric column must be one position, or two if values are missing, but "
            f"got ({start}, {stop}). A categorical column has `categorical_accuracy`."
        )
    true = records[:, start]
    outside = (true < 0) | (true > 1)
    if outside.any():
        raise InvalidTensorError(
            f"records must lie in [0, 1] at position {start}, but {int(outside.sum())} of "
            f"{len(records)} rows do not, row {int(outside.nonzero()[0])} first. Encode them first."
        )
    error = (true.double() - reconstructions[:, start].double()).abs()
    if stop - start == 1:
        return error
    flags = records[:, start + 1]
    unclear = (flags != 0) & (flags != 1)
    if unclear.any():
        raise InvalidTensorError(
            f"records must be 0 or 1 at position {start + 1}, which says whether a value is "
            f"missing, but {int(unclear.sum())} of {len(records)} rows are not. Encode them first."
        )
    missing, guess = flags == 1, reconstructions[:, start + 1] > 0.5
    return torch.where(missing | guess, (missing != guess).double(), error)


def _check(records: Tensor, reconstructions: Tensor, block: Block) -> Block:
    check_pairs(records, reconstructions)
    if records.ndim != 2:
        raise InvalidTensorError(
            f"records must have shape (N, features), but got {tuple(records.shape)}."
        )
    start, stop = block
    if not 0 <= start < stop <= records.shape[1]:
        raise InvalidOptionError(
            f"block must be (start, stop) with 0 <= start < stop <= {records.shape[1]}, the "
            f"features of a record, but got ({start}, {stop})."
        )
    return start, stop
