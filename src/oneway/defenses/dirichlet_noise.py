"""Dirichlet noise: a random probability vector whose mean is the clean one."""

import torch
from torch import Generator, Tensor

from oneway.checks import check_above, check_generator, check_logits, check_switch
from oneway.defenses.label_modifier import lift_label
from oneway.defenses.scores import log_probabilities, narrowed


class DirichletNoise:
    """Release a draw from a Dirichlet distribution around the clean probabilities.

    Its parameters are ``concentration`` times the clean probabilities, so that their mean is
    kept: an entry p gets a variance of ``p (1 - p) / (concentration + 1)``, and a saturated row
    hardly any noise. A draw may be so small that it is released as 0.
    """

    requires_input = False
    deterministic = False

    def __init__(
        self,
        *,
        concentration: float = 100.0,
        keep_label: bool = False,
        margin: float = 1e-3,
        generator: Generator,
    ) -> None:
        """Prepare the defense.

        Args:
            concentration: Sum of the distribution's parameters, above 0; more is less noise.
            keep_label: Lift the clean label over all others.
            margin: Least lead of a lifted label, in nats, above 0.
            generator: On the CPU; gives the draws. Who knows its seed undoes the noise.

        Raises:
            InvalidOptionError: An option is outside its range, or ``generator`` is none on the CPU.
        """
        check_above("concentration", concentration, 0)
        check_above("margin", margin, 0)
        check_switch("keep_label", keep_label)
        check_generator(generator)
        self.concentration, self.margin = concentration, margin
        self.keeps_label, self.generator = keep_label, generator

    def __call__(self, logits: Tensor, images: Tensor | None = None) -> Tensor:
        """Return ``(..., K)`` logits of a random probability vector; ``images`` are ignored.

        Raises:
            InvalidTensorError: ``logits`` are no finite floating scores.
        """
        return self.draws(logits, images, 1)[0]

    def draws(self, logits: Tensor, images: Tensor | None, count: int) -> Tensor:  # noqa: ARG002
        """Return ``(count, ..., K)`` independent answers."""
        check_logits(logits)
        parameters = (self.concentration * log_probabilities(logits).exp()).cpu()
        shape = (count, *logits.shape)
        # A gamma draw of a tiny parameter underflows, its log does not: a draw of 1 + a, times
        # a uniform number to the power of 1 / a, is one of a.
        gamma = torch._standard_gamma((1 + parameters).expand(shape), generator=self.generator)
        uniform = torch.rand(shape, generator=self.generator, dtype=torch.float64)
        # Below, the quotient would not be finite.
        logs = gamma.log() + (1 - uniform).log() / parameters.clamp_min(1e-300)
        told = narrowed(logs - logs.amax(-1, keepdim=True), logits.dtype).to(logits.device)
        if self.keeps_label:
            told = lift_label(told, logits.argmax(-1).expand(shape[:-1]), self.margin)
        return told
