"""Scores of a released vector that membership attacks share: each grows with membership."""

import torch
from torch import Tensor

LEAST = 1e-12
"""Least probability whose logarithm is taken: a release may hold zeros."""


def true_label_probability(released: Tensor, labels: Tensor) -> Tensor:
    """Return the released probability of the true label.

    Args:
        released: ``(..., N, Q, K)`` confidences.
        labels: ``(N)`` int64, the true classes.

    Returns:
        ``(..., N, Q)`` float64.
    """
    index = labels.view(-1, 1, 1).expand(*released.shape[:-1], 1)
    return released.double().gather(-1, index).squeeze(-1)


def scaled_confidence(released: Tensor, labels: Tensor) -> Tensor:
    """Return the log odds of the true label, which are near to normal over models.

    Args:
        released: ``(..., N, Q, K)`` confidences.
        labels: ``(N)`` int64, the true classes.

    Returns:
        ``(..., N, Q)`` float64, in nats.

    Source:
        Carlini et al., "Membership Inference Attacks From First Principles", IEEE S&P 2022.
    """
    index = labels.view(-1, 1, 1).expand(*released.shape[:-1], 1)
    others = released.double().scatter(-1, index, 0).sum(-1)
    right = true_label_probability(released, labels)
    return right.clamp_min(LEAST).log() - others.clamp_min(LEAST).log()


def modified_entropy(released: Tensor, labels: Tensor) -> Tensor:
    """Return the modified entropy: low for a confident and right answer.

    Args:
        released: ``(N, Q, K)`` confidences.
        labels: ``(N)`` int64, the true classes.

    Returns:
        ``(N, Q)`` float64, in nats.

    Source:
        Song & Mittal, "Systematic Evaluation of Privacy Risks of Machine Learning Models", USENIX
        Security 2021, equation 8.
    """
    p = released.double()
    q = (1 - p).clamp_min(LEAST)
    terms = -p * q.log()
    index = labels.view(-1, 1, 1).expand(*p.shape[:-1], 1)
    right = p.gather(-1, index)
    own = -(1 - right) * right.clamp_min(LEAST).log()
    return terms.scatter(-1, index, own).sum(-1)


def normal_ranks(scores: Tensor) -> Tensor:
    """Return each score's rank among all as a normal quantile; ties share their mean rank.

    Args:
        scores: ``(..., N)``.

    Returns:
        ``(..., N)`` float64: scores of several attacks on one scale.
    """
    ordered = scores.contiguous().sort(dim=-1).values
    below = torch.searchsorted(ordered, scores.contiguous())
    upto = torch.searchsorted(ordered, scores.contiguous(), right=True)
    quantiles: Tensor = torch.special.ndtri((below + upto).double() / (2 * scores.shape[-1]))
    return quantiles
