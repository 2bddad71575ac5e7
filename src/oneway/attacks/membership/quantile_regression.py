"""Quantile regression: is the score high for such an input? It needs no reference models."""

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from oneway.attacks.base import MembershipAttack
from oneway.attacks.membership.fitting import fit
from oneway.attacks.membership.scores import scaled_confidence
from oneway.contracts import MembershipKnowledge

COMPONENTS = 16
"""Principal components of the inputs that the regression reads."""

HIDDEN = 16


class QuantileRegression(MembershipAttack):
    """Predict the distribution of a non-member's score from the input and its label.

    A normal distribution is fitted to the population's scores. A candidate's score is its quantile
    there.

    Source:
        Bertran et al., "Scalable Membership Inference Attacks via Quantile Regression", NeurIPS
        2023: the Gaussian form. Their regressors are larger.
    """

    name: ClassVar = "quantile-regression"
    knows: ClassVar = "released scores, the true label, and inputs that were not trained on"

    def run(self, knowledge: MembershipKnowledge) -> Tensor:
        """Return the standardized scores of the candidates."""
        own = scaled_confidence(knowledge.population_released, knowledge.population_labels)[:, 0]
        classes = knowledge.released.shape[-1]
        flat = knowledge.population.double().flatten(1)
        mean = flat.mean(0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            count = min(COMPONENTS, *flat.shape)
            directions = torch.svd_lowrank(flat - mean, count)[2]

        def features(inputs: Tensor, labels: Tensor) -> Tensor:
            projected = (inputs.double().flatten(1) - mean) @ directions
            return torch.cat([projected, functional.one_hot(labels, classes).double()], -1)

        shown = features(knowledge.population, knowledge.population_labels)
        network = fit(shown, lambda out, rows: _loss(out, own[rows]), hidden=HIDDEN, outputs=2)
        predicted, spread = _normal(network(features(knowledge.inputs, knowledge.labels)))
        scores = scaled_confidence(knowledge.released, knowledge.labels)[:, 0]
        return (scores - predicted) / spread


def _normal(outputs: Tensor) -> tuple[Tensor, Tensor]:
    return outputs[:, 0], functional.softplus(outputs[:, 1]) + 0.1


def _loss(outputs: Tensor, scores: Tensor) -> Tensor:
    """Return the mean negative log likelihood of scores."""
    mean, spread = _normal(outputs)
    return (((scores - mean) / spread).square() / 2 + spread.log()).mean()
