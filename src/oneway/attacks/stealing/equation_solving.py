"""Solve for the weights of a logistic regression: each answer gives K - 1 linear equations."""

from collections.abc import Mapping

import torch
from torch import Tensor

from oneway.attacks.stealing.base import Copy, StealingAttack, ThiefKnowledge

SMALLEST = 1e-30
"""Probabilities below, zeros among them, are taken for this one."""


class EquationSolving(StealingAttack):
    """Fit a linear map from inputs to differences of log confidences, by least squares.

    Clean answers of a logistic regression on D inputs give its weights exactly from D + 1 queries.
    From noisy or coarse answers it is a linear regression, and the more queries the better. Whether
    the model is linear shows only in the grade.

    Source:
        Tramer et al., "Stealing Machine Learning Models via Prediction APIs", USENIX Security 2016.
    """

    name = "equation-solving"
    knows = "inputs like the queries, and that the model is a logistic regression"
    requires = frozenset({"own"})

    def run(self, knowledge: ThiefKnowledge) -> Mapping[str, Copy]:
        """Ask about the first ``budget`` inputs, and solve."""
        asked = knowledge.own[: knowledge.budget]
        logits = knowledge.ask(asked).double().clamp_min(SMALLEST).log()
        return {"least squares": linear_copy(with_one(asked), logits)}


def with_one(inputs: Tensor) -> Tensor:
    """Return ``(N, D + 1)`` float64 rows of flat inputs, with a 1 for the intercept."""
    flat = inputs.flatten(1).double()
    return torch.cat([flat, torch.ones_like(flat[:, :1])], -1)


def linear_copy(rows: Tensor, logits: Tensor) -> Copy:
    """Return the linear model with the least squared error, and of these the smallest weights.

    Args:
        rows: ``(N, D + 1)`` from :func:`with_one`.
        logits: ``(N, K)`` float64.
    """
    centred = logits - logits.mean(-1, keepdim=True)
    weights = torch.linalg.pinv(rows.cpu()) @ centred.cpu()
    return as_copy(weights)


def as_copy(weights: Tensor) -> Copy:
    """Return the copy with these ``(D + 1, K)`` weights, the intercept last."""

    def copy(inputs: Tensor) -> Tensor:
        return with_one(inputs) @ weights.to(inputs.device)

    return copy
