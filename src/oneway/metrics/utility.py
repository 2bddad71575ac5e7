"""Measures of a defense's cost to users of the scores."""

from dataclasses import dataclass

import torch
from torch import Tensor

from oneway.checks import check_same_shape


@dataclass(frozen=True)
class Distortion:
    """The distance of a release from the clean scores.

    Attributes:
        logits: Mean absolute difference of the logits over samples and classes, in nats: the
            paper's "confidence score distortion" (section V-B2).
        l1_mean: Mean over samples of the L1 distance of the probabilities, in [0, 2].
        l1_p99: The 99th percentile of that L1 distance.
        l1_max: The largest L1 distance.
    """

    logits: float
    l1_mean: float
    l1_p99: float
    l1_max: float


def distortion(
    clean_logits: Tensor, noisy_logits: Tensor, clean: Tensor, released: Tensor
) -> Distortion:
    """Measure the distortion of logits and of probabilities.

    Args:
        clean_logits: ``(N, K)`` logits before the defense, in nats.
        noisy_logits: ``(N, K)`` logits after the defense.
        clean: ``(N, K)`` probabilities without a defense.
        released: ``(N, K)`` released probabilities.

    Returns:
        Both distortions. Logits are compared as they are, as the paper does, so that a constant
        added to a row counts, although a softmax ignores it.

    Raises:
        InvalidTensorError: The shapes differ.
    """
    check_same_shape(noisy_logits, "noisy_logits", clean_logits)
    check_same_shape(released, "released", clean)
    rows = (released.double() - clean.double()).abs().sum(-1)
    return Distortion(
        logits=float((noisy_logits.double() - clean_logits.double()).abs().mean()),
        l1_mean=float(rows.mean()),
        l1_p99=float(torch.quantile(rows, 0.99)),
        l1_max=float(rows.max()),
    )


def label_changes(clean_logits: Tensor, released: Tensor) -> int:
    """Count rows where the clean arg max is not the unique maximum of the release.

    A tie counts: a client's arg max may then give another class.

    Args:
        clean_logits: ``(N, K)`` logits before the defense, in nats.
        released: ``(N, K)`` released probabilities.

    Raises:
        InvalidTensorError: The shapes differ.
    """
    check_same_shape(released, "released", clean_logits)
    index = clean_logits.argmax(-1, keepdim=True)
    rival = released.scatter(-1, index, -torch.inf).amax(-1, keepdim=True)
    return int((released.gather(-1, index) <= rival).sum())
