"""Reverse sigmoid: a deceptive perturbation that hides how far a score is from its ends."""

import torch
from torch import Tensor

from oneway.defenses.base import LabelOnRequest, ScoreDefense
from oneway.defenses.scores import log_probabilities, logits_of
from oneway.options import option


class ReverseSigmoid(LabelOnRequest, ScoreDefense):
    """Take ``beta * (sigmoid(gamma * logit(p)) - 1/2)`` from each probability ``p``.

    What falls below 0 is set to 0, and rows are scaled to sum to 1. Small probabilities are
    lifted most, so that the map from a clean score to a released score is not monotonic: two
    clean scores may have the same released score. With a large ``beta`` the label changes.

    Source:
        Lee, Edwards, Molloy & Su, "Defending Against Machine Learning Model Stealing Attacks
        Using Deceptive Perturbations", 2018.
    """

    beta: float = option("Size of the perturbation.", default=0.7, above=0)
    gamma: float = option("Slope of the perturbation.", default=0.2, above=0)

    def transform(self, logits: Tensor) -> Tensor:
        """Return ``(..., K)`` logits of the perturbed probabilities."""
        logs = log_probabilities(logits)
        probabilities = logs.exp()
        odds = logs - torch.log1p(-probabilities)
        taken = self.beta * ((self.gamma * odds).sigmoid() - 0.5)
        return logits_of((probabilities - taken).clamp_min(0), logits.dtype)
