"""The label-only attack with changed copies: members stay rightly classified when moved."""

from typing import ClassVar

from torch import Tensor

from oneway.attacks.base import MembershipAttack
from oneway.attacks.membership.fitting import fit_odds
from oneway.contracts import MembershipKnowledge


class LabelCopies(MembershipAttack):
    """Read which of a candidate's jittered copies are rightly classified: labels alone.

    Logistic regression on the right answers of reference models weighs the copies; without
    reference models the number of right answers counts.

    Source:
        Choquette-Choo et al., "Label-Only Membership Inference Attacks", ICML 2021.
    """

    name: ClassVar = "label-copies"
    knows: ClassVar = "the released labels of the candidate and of its copies, and the true label"
    requires: ClassVar = frozenset({"copies"})

    def run(self, knowledge: MembershipKnowledge) -> Tensor:
        """Return the log odds of membership, or the share of right answers."""
        right = _right(knowledge.released, knowledge.labels)
        if not len(knowledge.reference_members):
            return right.mean(-1)
        theirs = _right(knowledge.reference_released, knowledge.labels).flatten(0, 1)
        odds: Tensor = fit_odds(theirs, knowledge.reference_members.flatten(), hidden=0)(right)
        return odds.squeeze(-1)


def _right(released: Tensor, labels: Tensor) -> Tensor:
    """Return ``(..., N, Q)`` float64: 1 for a right answer, 0 for a wrong one."""
    return (released.argmax(-1) == labels.unsqueeze(-1)).double()
