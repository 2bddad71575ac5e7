"""Reverse sigmoid: a deceptive perturbation that hides how far a score is from its ends."""

import torch
from torch import Tensor

from oneway.checks import check_above, check_logits, check_switch
from oneway.defenses.label_modifier import lift_label
from oneway.defenses.scores import log_probabilities, logits_of


class ReverseSigmoid:
    """Take ``beta * (sigmoid(gamma * logit(p)) - 1/2)`` from each probability ``p``.

    What falls below 0 is set to 0, and rows are scaled to sum to 1. Small probabilities are
    lifted most, so that the map from a clean score to a released one is not monotonic: two
    clean scores may have one released one. With a large ``beta`` the label changes.

    Source:
        Lee, Edwards, Molloy & Su, "Defending Against Machine Learning Model Stealing Attacks
        Using Deceptive Perturbations", 2018.
    """

    requires_input = False
    deterministic = True

    def __init__(
        self,
        *,
        beta: float = 0.7,
        gamma: float = 0.2,
        keep_label: bool = False,
        margin: float = 1e-3,
    ) -> None:
        """Prepare the defense.

        Args:
            beta: Size of the perturbation, above 0.
            gamma: How fast it rises, above 0.
            keep_label: Lift the clean label over all others.
            margin: Least lead of a lifted label, in nats, above 0.

        Raises:
            InvalidOptionError: An option is outside its range.
        """
        check_above("beta", beta, 0)
        check_above("gamma", gamma, 0)
        check_above("margin", margin, 0)
        check_switch("keep_label", keep_label)
        self.beta, self.gamma, self.margin = beta, gamma, margin
        self.keeps_label = keep_label

    def __call__(self, logits: Tensor, images: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Return ``(..., K)`` logits of the perturbed probabilities; ``images`` are ignored.

        Raises:
            InvalidTensorError: ``logits`` are no finite floating scores.
        """
        check_logits(logits)
        logs = log_probabilities(logits)
        probabilities = logs.exp()
        odds = logs - torch.log1p(-probabilities)
        taken = self.beta * ((self.gamma * odds).sigmoid() - 0.5)
        moved = logits_of((probabilities - taken).clamp_min(0), logits.dtype)
        return lift_label(moved, logits.argmax(-1), self.margin) if self.keeps_label else moved
