"""Algorithm 1: one step that raises an inverter's error, within the budget, label kept."""

import math

import torch
from torch import Tensor

from oneway.checks import check_above, check_logits, check_same_shape
from oneway.defenses.label_modifier import lift_label
from oneway.errors import InvalidOptionError, InvalidTensorError

NORMS = (1, 2, math.inf)


def noise_vector(
    clean_logits: Tensor,
    current_logits: Tensor,
    gradients: Tensor,
    *,
    step_size: float,
    budget: float | None = None,
    norm: float = 1,
    margin: float = 1e-3,
) -> Tensor:
    """Step along the gradient's sign, keep the label, and return the noise, within the budget.

    Each row stands for itself: its own label, its own norm. No batch-level quantity enters.

    Args:
        clean_logits: ``(..., K)`` scores before any noise (c0), floating, finite. Their arg max
            is the label that is kept (the lowest index, if they tie).
        current_logits: Same shape, scores with the noise so far (ct).
        gradients: Same shape, of the reconstruction error in ``current_logits``. Only the sign
            counts; where it is 0, nothing is added.
        step_size: Nats per step (eta), above 0.
        budget: Most that a row of noise may measure in ``norm`` (epsilon), in nats, above 0.
            None, as in the paper's experiments: unbounded.
        norm: p of the norm, one of 1, 2 and ``math.inf``.
        margin: Least lead of the label before the budget is applied, in nats, above 0.

    Returns:
        ``(..., K)`` noise in the type of ``clean_logits``, without gradient. The label is the
        only maximum of ``clean_logits + noise``, as computed in that type. The norm is at most
        ``budget``, but for rounding: a relative ``4 * eps``; in the label's entry, where that
        is what parts it from a tie, ``5 * eps`` times the largest logit; and ``K + 3`` times
        the type's smallest subnormal number, which counts in float16 only.

    Raises:
        InvalidTensorError: A tensor breaks the lines above.
        InvalidOptionError: An option is outside its range.

    Source:
        Wen, Yiu & Hui, IEEE CSR 2021, Algorithm 1. The strict margin is ours.
    """
    check_logits(clean_logits, "clean_logits")
    check_same_shape(current_logits, "current_logits", clean_logits)
    check_same_shape(gradients, "gradients", clean_logits)
    check_above("step_size", step_size, 0)
    if budget is not None:
        check_above("budget", budget, 0)
    check_norm("norm", norm)
    check_above("margin", margin, 0)
    labels = clean_logits.argmax(-1)
    noise = step_noise(
        clean_logits,
        current_logits.to(clean_logits.dtype),
        step_size * gradients.sign().to(clean_logits.dtype),
        labels,
        budget=budget,
        norm=norm,
        margin=margin,
    )
    noise = part_from_ties(clean_logits, noise, labels).detach()
    if not torch.isfinite(clean_logits + noise).all():
        raise InvalidTensorError(
            f"clean_logits are too close to the largest {clean_logits.dtype} to add noise to. "
            "Scale them, or pass them in a wider type."
        )
    return noise


def check_norm(name: str, value: float) -> None:
    """Refuse any p of a norm but 1, 2 and infinity.

    Raises:
        InvalidOptionError: It is another.
    """
    if isinstance(value, bool) or value not in NORMS:
        raise InvalidOptionError(f"{name} must be 1, 2 or math.inf, but got {value!r}.")


def step_noise(
    clean: Tensor,
    current: Tensor,
    step: Tensor,
    labels: Tensor,
    *,
    budget: float | None,
    norm: float,
    margin: float,
) -> Tensor:
    """Do what :func:`noise_vector` does with any step, but neither check nor part from ties."""
    noise = lift_label(current + step, labels, margin) - clean
    return noise if budget is None else project_to_budget(noise, budget, norm)


def project_to_budget(noise: Tensor, budget: float, norm: float) -> Tensor:
    """Scale each row of ``noise`` down to ``budget`` if its p-norm exceeds it.

    Scaling towards 0 keeps a label that leads with and without the noise.
    """
    # Halves have too few bits for a norm; a row's largest entry goes first, so that no square
    # overflows or vanishes.
    wide = noise.double()
    largest = wide.abs().amax(-1, keepdim=True)
    safe = largest.clamp_min(torch.finfo(torch.float64).tiny)
    unit = wide / safe
    size = torch.linalg.vector_norm(unit, ord=norm, dim=-1, keepdim=True)
    scaled = (unit * (budget / size)).to(noise.dtype)
    return torch.where(safe * size > budget, scaled, noise)


def part_from_ties(clean: Tensor, noise: Tensor, labels: Tensor) -> Tensor:
    """Raise the label's noise by a few float steps where ``clean + noise`` rounds to a tie."""
    index = labels.unsqueeze(-1)
    total = clean + noise
    rival = total.scatter(-1, index, -torch.inf).amax(-1, keepdim=True)
    label = clean.gather(-1, index)
    # The roundings below lose up to 2 spacings of the larger of the two; with 3, no pair of
    # numbers ties, which is tested on all pairs of bfloat16 mantissas.
    size = torch.maximum(rival.abs(), label.abs())
    spacing = torch.nextafter(size, torch.full_like(size, torch.inf)) - size
    needed = rival + 3 * spacing - label
    present = noise.gather(-1, index)
    leads = total.gather(-1, index) > rival
    return noise.scatter(-1, index, torch.where(leads, present, needed))
