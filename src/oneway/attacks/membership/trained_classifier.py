"""A classifier of members and non-members, trained on the answers of reference models."""

from typing import ClassVar

import torch
from torch import Tensor

from oneway.attacks.base import MembershipAttack
from oneway.attacks.membership.fitting import fit_odds
from oneway.attacks.membership.scores import LEAST, scaled_confidence
from oneway.contracts import MembershipKnowledge

LARGEST = 10
"""Number of the largest confidences that are read."""

HIDDEN = 16


class TrainedClassifier(MembershipAttack):
    """Train a network on sorted confidences of reference models, for all classes together.

    Source:
        Shokri et al., "Membership Inference Attacks Against Machine Learning Models", IEEE S&P
        2017. Theirs has a network for each class.
    """

    name: ClassVar = "trained-classifier"
    knows: ClassVar = "released scores, the true label, and reference models"
    requires: ClassVar = frozenset({"references"})

    def run(self, knowledge: MembershipKnowledge) -> Tensor:
        """Return the network's log odds of membership."""
        labels = knowledge.labels
        features = _features(knowledge.reference_released, labels).flatten(0, 1)
        network = fit_odds(features, knowledge.reference_members.flatten(), hidden=HIDDEN)
        odds: Tensor = network(_features(knowledge.released, labels))
        return odds.squeeze(-1)


def _features(released: Tensor, labels: Tensor) -> Tensor:
    """Return ``(..., N, F)`` features: logs of the largest confidences, and the true label's."""
    largest = released[..., 0, :].double().sort(dim=-1, descending=True).values[..., :LARGEST]
    own = scaled_confidence(released, labels)[..., :1]
    return torch.cat([largest.clamp_min(LEAST).log(), own, (own > 0).double()], -1)
