"""From logits to probabilities and back inside a defense, where nothing overflows."""

import torch
from torch import Tensor

ZERO_NATS = 800.0
"""Distance of the logit of a probability of exactly 0 from its row's maximum, in nats.

``exp(-800)`` is 0 in float64, so that the last step of a release gives 0 in every type.
"""


def log_probabilities(logits: Tensor) -> Tensor:
    """Return the log-softmax of ``(..., K)`` logits, float64, finite and without gradient."""
    logs = logits.detach().double().log_softmax(-1)
    return logs.clamp_min(torch.finfo(torch.float64).min)


def logits_of(probabilities: Tensor, dtype: torch.dtype) -> Tensor:
    """Return logits whose softmax is ``probabilities``, zeros exactly.

    Args:
        probabilities: ``(..., K)`` float64, at least 0, at least one of each row above 0; rows
            need not sum to 1.
        dtype: Type of the result.
    """
    logs = probabilities.log()
    zero = logs.amax(-1, keepdim=True) - ZERO_NATS
    return narrowed(torch.where(probabilities > 0, logs, zero), dtype)


def narrowed(logs: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``logs`` in ``dtype``; what lies outside its range, at its ends."""
    limits = torch.finfo(dtype)
    # The largest number is left free: a label must be able to lead.
    largest = torch.tensor(limits.max, dtype=dtype).nextafter(torch.zeros((), dtype=dtype))
    return logs.double().clamp(limits.min, float(largest)).to(dtype)
