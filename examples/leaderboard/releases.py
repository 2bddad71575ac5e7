"""Two releases of somebody else's: a class each, which declares its options and writes one method.

Run `oneway leaderboard --entry entry.toml` in this folder, so that the module is found.
"""

import torch
from torch import Tensor

from oneway.defenses.base import RandomDefense, ScoreDefense
from oneway.options import option


class WarmTopThree(ScoreDefense):
    """Scores at a higher temperature, all but the three largest replaced by their mean."""

    temperature: float = option("Divides all logits.", default=3.0, above=0)

    def transform(self, logits: Tensor) -> Tensor:
        """Return the logits to release."""
        scores = (logits / self.temperature).softmax(-1)
        ranks = scores.argsort(-1, descending=True).argsort(-1)
        rest = torch.where(ranks < 3, 0.0, scores)
        mean = rest.sum(-1, keepdim=True) / (ranks >= 3).sum(-1, keepdim=True).clamp(min=1)
        return torch.where(ranks < 3, scores, mean).log()


class LaplaceNoise(RandomDefense):
    """Laplace noise on each probability, cut off below at 1e-6; the label is then lifted."""

    scale: float = option("Scale of the noise.", default=0.05, above=0)

    def sample(
        self,
        logits: Tensor,
        images: Tensor | None,  # noqa: ARG002  the noise does not depend on them
        count: int,
    ) -> Tensor:
        """Return so many answers to each query."""
        scores = logits.softmax(-1)
        shape = (count, *scores.shape)
        uniform = torch.rand(shape, generator=self.generator, dtype=torch.float64).to(scores)
        centered = (uniform - 0.5).clamp(-0.5 + 1e-9, 0.5 - 1e-9)
        noise = -self.scale * centered.sign() * (1 - 2 * centered.abs()).log()
        return (scores + noise).clamp(min=1e-6).log()
