"""Dirichlet noise: a random probability vector whose mean is the clean vector."""

import torch
from torch import Tensor

from oneway.defenses.base import LabelOnRequest, RandomDefense
from oneway.defenses.scores import log_probabilities
from oneway.options import option


class DirichletNoise(LabelOnRequest, RandomDefense):
    """Release a draw from a Dirichlet distribution around the clean probabilities.

    Its parameters are ``concentration`` times the clean probabilities, so that their mean is
    kept: an entry p gets a variance of ``p (1 - p) / (concentration + 1)``, and a saturated row
    hardly any noise. A draw may be so small that it is released as 0.
    """

    concentration: float = option(
        "Sum of the distribution's parameters; more is less noise.", default=100.0, above=0
    )

    def sample(self, logits: Tensor, images: Tensor | None, count: int) -> Tensor:  # noqa: ARG002
        """Return ``(count, ..., K)`` log probabilities, the largest of each row 0."""
        parameters = (self.concentration * log_probabilities(logits).exp()).cpu()
        shape = (count, *logits.shape)
        # A gamma draw of a tiny parameter underflows, its log does not: a draw of 1 + a, times
        # a uniform number to the power of 1 / a, is a draw of a.
        gamma = torch._standard_gamma((1 + parameters).expand(shape), generator=self.generator)
        uniform = torch.rand(shape, generator=self.generator, dtype=torch.float64)
        # Below 1e-300 the quotient would not be finite.
        logs = gamma.log() + (1 - uniform).log() / parameters.clamp_min(1e-300)
        return (logs - logs.amax(-1, keepdim=True)).to(logits.device)
