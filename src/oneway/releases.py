"""From logits to what leaves the building, and back: the last step of every release."""

import torch
from torch import Tensor

from oneway.checks import FLOATING, check_confidences, check_logits, name_of
from oneway.errors import InvalidOptionError

MOST_DECIMALS = 12
"""Beyond this, float64 cannot say exactly what a row of rounded numbers sums to."""


def release(
    logits: Tensor, *, dtype: torch.dtype = torch.float32, decimals: int | None = None
) -> Tensor:
    """Turn logits into the probabilities that clients see, with the label strictly on top.

    The softmax is taken in float64, rounded if asked, then cast. In the result the arg max of
    ``logits`` (the lowest index, if they tie) is the only maximum of its row, always: where a
    cast or a rounding would tie it, it is lifted by one step.

    Args:
        logits: ``(..., K)`` scores of any floating type, in nats, finite. Not modified.
        dtype: Type of the result: float64, float32, float16 or bfloat16.
        decimals: If given, from 0 to 12, round to multiples of ``10**-decimals`` by largest
            remainders, so that each row still sums to 1 (rounding each entry by itself does
            not). Every entry stays within one multiple of its exact value; the label, and one
            rival that it had to be parted from, within two.

    Returns:
        ``(..., K)`` probabilities on the same device, without gradient. Rows sum to 1 within
        ``torch.finfo(dtype).eps`` (float64: ``K`` times that, as much as the softmax's own sum
        may err) plus ``K`` times its smallest subnormal number.

    Raises:
        InvalidTensorError: ``logits`` break the line above.
        InvalidOptionError: ``dtype`` or ``decimals`` is none of the above.
    """
    check_logits(logits)
    if dtype not in FLOATING:
        raise InvalidOptionError(
            f"dtype must be one of {', '.join(map(name_of, FLOATING))}, but got {dtype}."
        )
    if decimals is not None and (
        isinstance(decimals, bool)
        or not isinstance(decimals, int)
        or not 0 <= decimals <= MOST_DECIMALS
    ):
        raise InvalidOptionError(
            f"decimals must be a whole number from 0 to {MOST_DECIMALS}, or None, "
            f"but got {decimals!r}."
        )
    index = logits.detach().argmax(-1, keepdim=True)
    probabilities = logits.detach().double().softmax(-1)
    if decimals is not None:
        probabilities = _round_rows(probabilities, index, 10**decimals)
    return _lead(probabilities.to(dtype), index)


def _lead(rows: Tensor, index: Tensor) -> Tensor:
    """Lift the entry at ``index`` to the next number above its rivals, unless it is there."""
    rival = rows.scatter(-1, index, -torch.inf).amax(-1, keepdim=True)
    least = torch.nextafter(rival, torch.full_like(rival, torch.inf))
    return rows.scatter(-1, index, torch.maximum(rows.gather(-1, index), least))


def _round_rows(probabilities: Tensor, index: Tensor, units: int) -> Tensor:
    """Round rows to multiples of ``1 / units`` that sum to 1, ``index`` strictly largest."""
    scaled = probabilities * units
    counts = scaled.floor()
    missing = units - counts.sum(-1, keepdim=True)
    # Whoever was cut most gets a unit back; among equals the label first, then by index.
    remainder = scaled - counts
    own = remainder.gather(-1, index)
    remainder = remainder.scatter(-1, index, torch.nextafter(own, torch.full_like(own, 2)))
    order = remainder.argsort(stable=True, dim=-1, descending=True)
    rank = torch.empty_like(order).scatter(
        -1, order, torch.arange(order.shape[-1], device=order.device).expand_as(order)
    )
    counts = counts + (rank < missing)
    # A rival with as many units as the label hands one over; any other then trails by one.
    rival, at = counts.scatter(-1, index, -1).max(-1, keepdim=True)
    tied = (rival >= counts.gather(-1, index)).to(counts.dtype)
    counts = counts.scatter_add(-1, index, tied).scatter_add(-1, at, -tied)
    return counts / units


def logits_from_confidences(confidences: Tensor) -> Tensor:
    """Return log probabilities: the logits, up to a constant per row that softmax ignores.

    For a defender who sees only what an API returns. Rows are renormalised in float64. A zero
    is read as the smallest number of the given type, since its own log is not finite.

    Args:
        confidences: ``(..., K)`` probabilities of any floating type, ``K >= 2``; rows sum to 1
            within 0.05. Not modified.

    Returns:
        ``(..., K)`` float64 on the same device. The arg max of ``confidences`` (the lowest
        index, if they tie) is the only maximum.

    Raises:
        InvalidTensorError: They are not probabilities.
    """
    check_confidences(confidences)
    limits = torch.finfo(confidences.dtype)
    probabilities = confidences.double()
    probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    logits = probabilities.clamp_min(limits.tiny * limits.eps).log()
    # The log is flat near 1: two probabilities that differ may have one log.
    return _lead(logits, confidences.argmax(-1, keepdim=True))
