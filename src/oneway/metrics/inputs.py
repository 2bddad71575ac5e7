"""Checks of inputs that several measures share, in addition to :mod:`oneway.checks`."""

import torch
from torch import Tensor

from oneway.checks import FLOATING, check_images, check_logits, in_parts, name_of
from oneway.errors import InvalidTensorError


def check_pairs(images: Tensor, reconstructions: Tensor) -> None:
    """Refuse inputs and reconstructions unless they agree in shape, and are finite and floating.

    Args:
        images: ``(N, C, H, W)`` images or ``(N, features)`` records, ``N >= 1``.
        reconstructions: Same shape.

    Raises:
        InvalidTensorError: A tensor breaks the lines above.
    """
    check_images(images)
    if not len(images):
        raise InvalidTensorError(
            f"images must hold at least one row, but got shape {tuple(images.shape)}."
        )
    if reconstructions.shape != images.shape:
        raise InvalidTensorError(
            f"reconstructions must have the images' shape {tuple(images.shape)}, "
            f"but got {tuple(reconstructions.shape)}."
        )
    if reconstructions.dtype not in FLOATING:
        raise InvalidTensorError(
            f"reconstructions must be floating, but got {name_of(reconstructions.dtype)}. "
            "Pass `reconstructions / 255` if they hold bytes."
        )
    parts = in_parts(reconstructions.flatten(1))
    finite = torch.cat([rows.isfinite().all(-1) for rows in parts])
    if not finite.all():
        bad = (~finite).nonzero().flatten()
        raise InvalidTensorError(
            f"reconstructions must be finite, but {len(bad)} of {len(finite)} rows hold NaN or "
            f"infinity, row {int(bad[0])} first. Find out why the attack returns them; do not "
            "replace them."
        )


def check_unit_range(images: Tensor) -> None:
    """Refuse inputs outside ``[0, 1]``.

    Args:
        images: ``(N, ...)`` inputs.

    Raises:
        InvalidTensorError: A row leaves ``[0, 1]``.
    """
    outside = ((images < 0) | (images > 1)).flatten(1).any(-1)
    if outside.any():
        raise InvalidTensorError(
            f"images must lie in [0, 1], but {int(outside.sum())} of {len(images)} rows do not, "
            f"row {int(outside.nonzero()[0])} first. Pass `images / 255` if they hold bytes."
        )


def check_rows(scores: Tensor, name: str = "released") -> None:
    """Refuse scores unless they are ``(N, K)`` and finite, with ``N >= 1``.

    Raises:
        InvalidTensorError: The scores break the line above.
    """
    check_logits(scores, name)
    if scores.ndim != 2 or not len(scores):
        raise InvalidTensorError(
            f"{name} must have shape (N, K) with N >= 1, but got {tuple(scores.shape)}."
        )


def check_true_labels(labels: Tensor, scores: Tensor) -> None:
    """Refuse true labels unless they are int64, one per row of ``scores``, in ``[0, K)``.

    Unlike :func:`oneway.checks.check_labels`, the remedy is not the arg max.

    Raises:
        InvalidTensorError: The labels break the line above.
    """
    rows, classes = scores.shape
    if labels.dtype != torch.int64 or labels.shape != (rows,):
        raise InvalidTensorError(
            f"labels must be int64 of shape ({rows},), the true class of each row of "
            f"{tuple(scores.shape)}, but got {name_of(labels.dtype)} of shape "
            f"{tuple(labels.shape)}."
        )
    outside = int(((labels < 0) | (labels >= classes)).sum())
    if outside:
        raise InvalidTensorError(
            f"labels must lie in [0, {classes}), one of the {classes} classes, but {outside} of "
            f"{rows} do not."
        )
