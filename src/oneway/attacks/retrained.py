"""The realistic black-box attacker: it learns from what the defended API answers."""

from collections.abc import Mapping

from oneway.contracts import AttackerKnowledge, Reconstructor, TrainDecoder


def retrained(knowledge: AttackerKnowledge, train: TrainDecoder) -> Mapping[str, Reconstructor]:
    """Train a decoder on released confidences of the attacker's own images."""
    decoder = train(knowledge.released, knowledge.images, knowledge.held_out)
    return {"decoder": Reconstructor(lambda released: decoder(released[0]))}
