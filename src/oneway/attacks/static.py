"""The paper's standard attacker, who learned to invert before there was a defense."""

from collections.abc import Mapping
from typing import ClassVar

from oneway.attacks.base import InversionAttack
from oneway.contracts import AttackerKnowledge, Reconstructor, TrainDecoder


class Static(InversionAttack):
    """Train a decoder on clean confidences, and invert released confidences with it.

    Source:
        Yang, Zhang, Chang & Liang, CCS 2019; Wen, Yiu & Hui, section V-A3.
    """

    name: ClassVar = "static"
    knows: ClassVar = "clean scores of its own images, from before the defense"
    requires: ClassVar = frozenset({"clean"})
    adaptive: ClassVar = False
    left_out: ClassVar = None

    def run(self, knowledge: AttackerKnowledge, train: TrainDecoder) -> Mapping[str, Reconstructor]:
        """Train on clean confidences; see :meth:`InversionAttack.run`."""
        assert knowledge.clean is not None  # noqa: S101  required
        decoder = train(knowledge.clean, knowledge.images, knowledge.held_out)
        return {"decoder": Reconstructor(lambda released: decoder(released[0]))}
