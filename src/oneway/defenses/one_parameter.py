"""A differentially private mechanism over the scores, whose order is kept."""

import torch
from torch import Tensor

from oneway.defenses.base import RandomDefense
from oneway.defenses.scores import log_probabilities, logits_of
from oneway.options import option


class OneParameter(RandomDefense):
    """Draw scores by the exponential mechanism, put them into the clean order, normalize.

    This is our reading: of the paper we know the abstract, which says that a differential
    privacy mechanism with one parameter modifies and normalizes the scores, and that their order
    is kept. A vector s in ``[0, 1]**K`` is drawn with a density in proportion to
    ``exp(-epsilon * L1(s, p) / 4)``; L1 between two probability vectors is at most 2, so that the
    draw by itself is ``epsilon``-differentially private in p. Putting it into the clean order
    is not: the order, and with it the label, is released as it is.

    Source:
        Ye, Shen, Zhu, Liu & Zhou, "One Parameter Defense: Defending Against Data Inference
        Attacks via Differential Privacy", IEEE TIFS 2022. The exponential mechanism: McSherry &
        Talwar, FOCS 2007.
    """

    epsilon: float = option(
        "Privacy budget of one answer; more is less noise. A score moves by about ``4 / epsilon``.",
        default=100.0,
        above=0,
    )

    def sample(self, logits: Tensor, images: Tensor | None, count: int) -> Tensor:  # noqa: ARG002
        """Return ``(count, ..., K)`` logits of random scores in the clean order."""
        clean, rate = log_probabilities(logits).exp(), self.epsilon / 4
        shape = (count, *logits.shape)
        uniform = torch.rand(shape, generator=self.generator, dtype=torch.float64)
        drawn = _truncated_laplace(clean, uniform.to(clean.device), rate)
        order = logits.argsort(dim=-1, descending=True, stable=True).expand(shape)
        ranked = drawn.sort(dim=-1, descending=True).values
        return logits_of(torch.empty_like(drawn).scatter(-1, order, ranked), logits.dtype)


def _truncated_laplace(center: Tensor, uniform: Tensor, rate: float) -> Tensor:
    """Return numbers in (0, 1] with density in proportion to ``exp(-rate * |s - center|)``.

    By inverting the distribution function on each side of the center.

    Args:
        center: ``(..., K)`` float64 in [0, 1].
        uniform: ``(count, ..., K)`` float64 in [0, 1), the draws to transform.
        rate: Above 0.
    """
    below = -torch.expm1(-rate * center)
    above = -torch.expm1(-rate * (1 - center))
    mass = (1 - uniform) * (below + above)
    side = torch.sign(mass - below)
    drawn = center - side * torch.log1p(-(mass - below).abs()) / rate
    return drawn.clamp(torch.finfo(drawn.dtype).tiny, 1)
