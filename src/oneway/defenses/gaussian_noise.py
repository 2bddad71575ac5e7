"""Gaussian noise on the logits: a client who asks often enough averages it away."""

import torch
from torch import Tensor

from oneway.defenses.base import LabelOnRequest, RandomDefense
from oneway.options import option


class GaussianNoise(LabelOnRequest, RandomDefense):
    """Add independent Gaussian noise to every logit, drawn anew for every answer."""

    standard_deviation: float = option(
        "Standard deviation of the noise on each logit, in nats.",
        default=1.0,
        above=0,
        is_strength=True,
    )

    def sample(self, logits: Tensor, images: Tensor | None, count: int) -> Tensor:  # noqa: ARG002
        """Return ``(count, ..., K)`` noisy logits."""
        shape = (count, *logits.shape)
        noise = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        return logits.double() + self.standard_deviation * noise.to(logits.device)
