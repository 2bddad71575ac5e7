"""Inversion errors, and the closed gap, which compares defenses across data sets."""

import math

import torch
from torch import Tensor

from oneway.checks import in_parts, name_of
from oneway.errors import InvalidOptionError, InvalidTensorError


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
