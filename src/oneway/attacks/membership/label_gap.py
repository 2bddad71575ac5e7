"""The label-only gap: right answers are members."""

from typing import ClassVar

from torch import Tensor

from oneway.attacks.base import MembershipAttack
from oneway.contracts import MembershipKnowledge


class LabelGap(MembershipAttack):
    """Take rightly classified candidates for members. It reads the released label alone.

    Source:
        Yeom et al., "Privacy Risk in Machine Learning", IEEE CSF 2018.
    """

    name: ClassVar = "label-gap"
    knows: ClassVar = "the released label and the true label"

    def run(self, knowledge: MembershipKnowledge) -> Tensor:
        """Return 1 for a right answer, 0 for a wrong one."""
        return (knowledge.released[:, 0].argmax(-1) == knowledge.labels).double()
