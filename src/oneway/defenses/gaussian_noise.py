"""Gaussian noise on the logits: whoever asks often enough averages it away."""

import torch
from torch import Generator, Tensor

from oneway.checks import check_above, check_generator, check_logits, check_switch
from oneway.defenses.label_modifier import lift_label
from oneway.defenses.scores import narrowed


class GaussianNoise:
    """Add independent Gaussian noise to every logit, drawn anew for every answer."""

    requires_input = False
    deterministic = False

    def __init__(
        self,
        *,
        standard_deviation: float = 1.0,
        keep_label: bool = False,
        margin: float = 1e-3,
        generator: Generator,
    ) -> None:
        """Prepare the defense.

        Args:
            standard_deviation: Of the noise on each logit, in nats, above 0.
            keep_label: Lift the clean label over all others.
            margin: Least lead of a lifted label, in nats, above 0.
            generator: On the CPU; gives the noise. Who knows its seed undoes it.

        Raises:
            InvalidOptionError: An option is outside its range, or ``generator`` is none on the CPU.
        """
        check_above("standard_deviation", standard_deviation, 0)
        check_above("margin", margin, 0)
        check_switch("keep_label", keep_label)
        check_generator(generator)
        self.standard_deviation, self.margin = standard_deviation, margin
        self.keeps_label, self.generator = keep_label, generator

    def __call__(self, logits: Tensor, images: Tensor | None = None) -> Tensor:
        """Return ``(..., K)`` noisy logits; ``images`` are ignored.

        Raises:
            InvalidTensorError: ``logits`` are no finite floating scores.
        """
        return self.draws(logits, images, 1)[0]

    def draws(self, logits: Tensor, images: Tensor | None, count: int) -> Tensor:  # noqa: ARG002
        """Return ``(count, ..., K)`` independent answers."""
        check_logits(logits)
        shape = (count, *logits.shape)
        noise = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        noisy = logits.detach().double() + self.standard_deviation * noise.to(logits.device)
        told = narrowed(noisy, logits.dtype)
        if self.keeps_label:
            told = lift_label(told, logits.argmax(-1).expand(shape[:-1]), self.margin)
        return told
