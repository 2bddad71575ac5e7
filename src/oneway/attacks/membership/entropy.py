"""A threshold on the modified entropy, which reads all scores and the true label."""

from typing import ClassVar

from torch import Tensor

from oneway.attacks.base import MembershipAttack
from oneway.attacks.membership.scores import modified_entropy
from oneway.contracts import MembershipKnowledge


class ModifiedEntropy(MembershipAttack):
    """Take candidates with a low modified entropy for members.

    Source:
        Song & Mittal, "Systematic Evaluation of Privacy Risks of Machine Learning Models", USENIX
        Security 2021.
    """

    name: ClassVar = "modified-entropy"
    knows: ClassVar = "released scores and the true label"

    def run(self, knowledge: MembershipKnowledge) -> Tensor:
        """Return the negative modified entropy."""
        return -modified_entropy(knowledge.released, knowledge.labels)[:, 0]
