"""Sums of groups and the mean input of each label, from which attacks that use no decoder start."""

import torch
from torch import Tensor


def label_means(inputs: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return the mean input of each label; a label without inputs gets the mean of all.

    Args:
        inputs: ``(N, ...)`` inputs, ``N >= 1``.
        labels: ``(N)`` int64 released labels of the inputs.
        classes: Number of classes, K.

    Returns:
        ``(K, ...)`` means, of the type of the inputs.
    """
    sums, counts = group_sums(inputs, labels, classes)
    counts = counts.view(-1, *[1] * (inputs.ndim - 1))
    return torch.where(counts > 0, sums / counts.clamp_min(1), inputs.mean(0))


def means_without_row(inputs: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
    """Return the mean input of each row's label, without the row itself.

    The only row of a label gets the mean of all other rows.

    Args:
        inputs: ``(N, ...)`` inputs, ``N >= 2``.
        labels: ``(N)`` int64 released labels of the inputs.
        rows: ``(J)`` int64 numbers of the rows.

    Returns:
        ``(J, ...)`` means, of the type of the inputs.
    """
    sums, counts = group_sums(inputs, labels)
    others = (counts[labels[rows]] - 1).view(-1, *[1] * (inputs.ndim - 1))
    alike = (sums[labels[rows]] - inputs[rows]) / others.clamp_min(1)
    return torch.where(others > 0, alike, (inputs.sum(0) - inputs[rows]) / max(1, len(inputs) - 1))


def group_sums(inputs: Tensor, groups: Tensor, count: int = 0) -> tuple[Tensor, Tensor]:
    """Return the sum of the inputs of each group, and the number of its inputs.

    Args:
        inputs: ``(N, ...)`` inputs.
        groups: ``(N)`` int64 group of each input.
        count: Least number of groups; there are more if a group's number is higher.

    Returns:
        ``(G, ...)`` sums and ``(G)`` int64 counts.
    """
    counts = groups.bincount(minlength=count)
    return inputs.new_zeros(len(counts), *inputs.shape[1:]).index_add_(0, groups, inputs), counts
