"""A differentially private mechanism over the scores, whose order is kept."""

import torch
from torch import Generator, Tensor

from oneway.checks import check_above, check_generator, check_logits
from oneway.defenses.label_modifier import lift_label
from oneway.defenses.scores import log_probabilities, logits_of


class OneParameter:
    """Draw scores by the exponential mechanism, put them into the clean order, normalize.

    This is our reading: of the paper we know the abstract, which says that a differential
    privacy mechanism with one parameter modifies and normalizes the scores, and that their order
    is kept. A vector s in ``[0, 1]**K`` is drawn with a density in proportion to
    ``exp(-epsilon * L1(s, p) / 4)``; L1 between two probability vectors is at most 2, so that the
    draw by itself is ``epsilon``-differentially private in p. Putting it into the clean order
    is not: the order, the label with it, is told as it is.

    Source:
        Ye, Shen, Zhu, Liu & Zhou, "One Parameter Defense: Defending Against Data Inference
        Attacks via Differential Privacy", IEEE TIFS 2022. The exponential mechanism: McSherry &
        Talwar, FOCS 2007.
    """

    requires_input = False
    keeps_label = True
    deterministic = False

    def __init__(self, *, epsilon: float = 100.0, generator: Generator) -> None:
        """Prepare the defense.

        Args:
            epsilon: The privacy budget of one answer, above 0; more is less noise. A score moves
                by about ``4 / epsilon``.
            generator: On the CPU; gives the draws. Who knows its seed undoes the noise.

        Raises:
            InvalidOptionError: An option is outside its range, or ``generator`` is none on the CPU.
        """
        check_above("epsilon", epsilon, 0)
        check_generator(generator)
        self.epsilon, self.generator = epsilon, generator

    def __call__(self, logits: Tensor, images: Tensor | None = None) -> Tensor:
        """Return ``(..., K)`` logits of random scores in the clean order; ``images`` are ignored.

        Raises:
            InvalidTensorError: ``logits`` are no finite floating scores.
        """
        return self.draws(logits, images, 1)[0]

    def draws(self, logits: Tensor, images: Tensor | None, count: int) -> Tensor:  # noqa: ARG002
        """Return ``(count, ..., K)`` independent answers."""
        check_logits(logits)
        clean, rate = log_probabilities(logits).exp(), self.epsilon / 4
        shape = (count, *logits.shape)
        uniform = torch.rand(shape, generator=self.generator, dtype=torch.float64)
        drawn = _truncated_laplace(clean, uniform.to(clean.device), rate)
        order = logits.argsort(dim=-1, descending=True, stable=True).expand(shape)
        ranked = drawn.sort(dim=-1, descending=True).values
        told = logits_of(torch.empty_like(drawn).scatter(-1, order, ranked), logits.dtype)
        return lift_label(told, logits.argmax(-1).expand(shape[:-1]), 0)


def _truncated_laplace(center: Tensor, uniform: Tensor, rate: float) -> Tensor:
    """Return numbers in (0, 1] with density in proportion to ``exp(-rate * |s - center|)``.

    By inverting the distribution's own function on each side of the center.
    """
    below = -torch.expm1(-rate * center)
    above = -torch.expm1(-rate * (1 - center))
    mass = (1 - uniform) * (below + above)
    side = torch.sign(mass - below)
    drawn = center - side * torch.log1p(-(mass - below).abs()) / rate
    return drawn.clamp(torch.finfo(drawn.dtype).tiny, 1)
