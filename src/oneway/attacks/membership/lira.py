"""The likelihood ratio attack: is the score like that of models trained on the candidate?"""

from typing import ClassVar

import torch
from torch import Tensor

from oneway.attacks.base import MembershipAttack
from oneway.attacks.membership.scores import scaled_confidence
from oneway.contracts import MembershipKnowledge


class OnlineLiRA(MembershipAttack):
    """Compare two normal distributions: scores of models with and without the candidate.

    Each of the Q answers counts as independent; the spread is that of all candidates together,
    since few reference models say too little about that of one.

    Source:
        Carlini et al., "Membership Inference Attacks From First Principles", IEEE S&P 2022.
    """

    name: ClassVar = "online-lira"
    knows: ClassVar = "released scores, the true label, and reference models trained on candidates"
    requires: ClassVar = frozenset({"references"})

    def run(self, knowledge: MembershipKnowledge) -> Tensor:
        """Return the logarithms of the likelihood ratios."""
        own, theirs = _scores(knowledge)
        inside = _log_density(own, *_normal(theirs, knowledge.reference_members))
        outside = _log_density(own, *_normal(theirs, ~knowledge.reference_members))
        return (inside - outside).sum(-1)


class OfflineLiRA(MembershipAttack):
    """Test whether the score is above those of models that were not trained on the candidate.

    Source:
        Carlini et al., "Membership Inference Attacks From First Principles", IEEE S&P 2022.
    """

    name: ClassVar = "offline-lira"
    knows: ClassVar = "released scores, the true label, and reference models"
    requires: ClassVar = frozenset({"references"})

    def run(self, knowledge: MembershipKnowledge) -> Tensor:
        """Return the mean standardized scores."""
        own, theirs = _scores(knowledge)
        mean, spread = _normal(theirs, ~knowledge.reference_members)
        return ((own - mean) / spread).mean(-1)


def _scores(knowledge: MembershipKnowledge) -> tuple[Tensor, Tensor]:
    """Return ``(N, Q)`` scores of the attacked model and ``(S, N, Q)`` of the references."""
    labels = knowledge.labels
    own = scaled_confidence(knowledge.released, labels)
    return own, scaled_confidence(knowledge.reference_released, labels)


def _normal(scores: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``(N, Q)`` means over the chosen models, and the ``(Q)`` spread around them."""
    weight = chosen.unsqueeze(-1).double()
    count = weight.sum(0).clamp_min(1)
    mean = (scores * weight).sum(0) / count
    squares = ((scores - mean).square() * weight).sum((0, 1))
    freedom = (count - 1).clamp_min(0).sum(0)
    # A single model has no spread around its own score: take that of all scores.
    spread = torch.where(freedom > 0, squares / freedom.clamp_min(1), scores.var((0, 1)))
    return mean, spread.sqrt().clamp_min(1e-3)


def _log_density(scores: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
    return -((scores - mean) / spread).square() / 2 - spread.log()
