"""A threshold on the confidence of the true label."""

from typing import ClassVar

from torch import Tensor

from oneway.attacks.base import MembershipAttack
from oneway.attacks.membership.scores import scaled_confidence
from oneway.contracts import MembershipKnowledge


class TrueLabelConfidence(MembershipAttack):
    """Take candidates with a confident true label for members.

    Source:
        Yeom et al., "Privacy Risk in Machine Learning", IEEE CSF 2018.
    """

    name: ClassVar = "true-label-confidence"
    knows: ClassVar = "released scores and the true label"

    def run(self, knowledge: MembershipKnowledge) -> Tensor:
        """Return the log odds of the true label."""
        return scaled_confidence(knowledge.released, knowledge.labels)[:, 0]
