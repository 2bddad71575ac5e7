"""The mean input of each label, from which attacks that use no decoder start."""

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
    rows = inputs.flatten(1)
    sums = rows.new_zeros(classes, rows.shape[1]).index_add_(0, labels, rows)
    counts = labels.bincount(minlength=classes).unsqueeze(-1)
    means = torch.where(counts > 0, sums / counts.clamp_min(1), rows.mean(0))
    by_label: Tensor = means.unflatten(-1, inputs.shape[1:])
    return by_label
