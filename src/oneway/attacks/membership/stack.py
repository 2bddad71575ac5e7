"""A mixture of all membership attacks, fitted in games against reference models."""

from typing import ClassVar

from torch import Tensor

from oneway.attacks.base import MembershipAttack
from oneway.attacks.membership.fitting import fit_odds
from oneway.attacks.membership.scores import normal_ranks
from oneway.contracts import MembershipKnowledge


class MembershipStack(MembershipAttack):
    """Weigh the ranks that all other attacks give a candidate, by logistic regression.

    The weights are fitted to games: a reference model stands for the attacked model, and its pair
    is left out of its own references. The true members take no part.
    """

    name: ClassVar = "membership-stack"
    knows: ClassVar = "all that the other membership attackers know"
    requires: ClassVar = frozenset({"candidate_scores"})

    def run(self, knowledge: MembershipKnowledge) -> Tensor:
        """Return the log odds of membership."""
        scores, members = knowledge.candidate_scores, knowledge.candidate_members
        assert scores is not None  # noqa: S101  required
        assert members is not None  # noqa: S101
        ranks = normal_ranks(scores).transpose(-1, -2)  # (1 + G, N, A)
        odds: Tensor = fit_odds(ranks[1:].flatten(0, 1), members.flatten(), hidden=0)(ranks[0])
        return odds.squeeze(-1)
