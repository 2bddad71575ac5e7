"""The realistic black-box attacker, who learns from the answers of the defended API."""

from collections.abc import Mapping
from typing import ClassVar

from oneway.attacks.base import InversionAttack
from oneway.contracts import AttackerKnowledge, Reconstructor, TrainDecoder


class Retrained(InversionAttack):
    """Train a decoder on released confidences of the attacker's own images."""

    name: ClassVar = "retrained"
    knows: ClassVar = "released scores of its own images: the realistic attacker"
    improves_on: ClassVar = "static"
    attacks_clean_scores: ClassVar = False  # on clean scores this is the static attack
    left_out: ClassVar = None

    def run(self, knowledge: AttackerKnowledge, train: TrainDecoder) -> Mapping[str, Reconstructor]:
        """Train on released confidences; see :meth:`InversionAttack.run`."""
        decoder = train(knowledge.released, knowledge.images, knowledge.held_out)
        return {"decoder": Reconstructor(lambda released: decoder(released[0]))}
