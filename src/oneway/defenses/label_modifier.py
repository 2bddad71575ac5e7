"""Keep the predicted class unchanged under a defense's noise."""

import torch
from torch import Tensor

from oneway.checks import check_above, check_labels, check_logits
from oneway.errors import InvalidTensorError


def keep_label(logits: Tensor, labels: Tensor, *, margin: float = 1e-3) -> Tensor:
    """Add to each row's ``labels`` entry just what keeps it the strict arg max.

    Rows whose label already leads by ``margin`` come back bit for bit, and so does every
    other entry of every row. Applying it twice changes nothing more. Any defense can use it.

    Args:
        logits: ``(..., K)`` noisy scores of any floating type, in nats, finite. Not modified.
        labels: ``(...)`` int64, the classes predicted before noise, in ``[0, K)``.
        margin: Least lead over the runner-up, in nats, above 0. The default survives a float32
            softmax; :func:`oneway.release` keeps the label strict in any type and rounding.

    Returns:
        ``(..., K)`` logits, same type and device, differentiable in ``logits``.

    Raises:
        InvalidTensorError: A tensor breaks the lines above, or a rival is the largest number
            of its type, so that nothing can lead it.
        InvalidOptionError: ``margin`` is not positive.

    Source:
        Wen, Yiu & Hui, "Defending Against Model Inversion Attack by Adversarial Examples",
        IEEE CSR 2021, Equation 2. As printed it lifts the label only to a tie, which an arg max
        breaks by index; the margin is ours.
    """
    check_logits(logits)
    check_labels(labels, logits)
    check_above("margin", margin, 0)
    kept = lift_label(logits, labels, margin)
    if torch.isinf(kept).any():
        raise InvalidTensorError(
            "logits hold the largest number of their type beside the label, so the label cannot "
            "lead. Scale the logits, or pass them in a wider type."
        )
    return kept


def lift_label(logits: Tensor, labels: Tensor, margin: float) -> Tensor:
    """Do what :func:`keep_label` does, without the checks: for the inside of a loop."""
    index = labels.unsqueeze(-1)
    entry = logits.gather(-1, index)
    rival = logits.scatter(-1, index, -torch.inf).amax(-1, keepdim=True)
    # Where rival is large, rival + margin rounds back to rival; one float up still leads.
    next_up = torch.nextafter(rival.detach(), torch.full_like(rival, torch.inf))
    return logits.scatter(-1, index, torch.maximum(entry, torch.maximum(rival + margin, next_up)))
