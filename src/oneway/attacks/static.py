"""The paper's standard attacker: it learned to invert before the defense was there."""

from collections.abc import Mapping

from oneway.contracts import AttackerKnowledge, Reconstructor, TrainDecoder
from oneway.errors import InvalidOptionError


def static(knowledge: AttackerKnowledge, train: TrainDecoder) -> Mapping[str, Reconstructor]:
    """Train a decoder on clean confidences; it will be fed whatever is released.

    Raises:
        InvalidOptionError: The attacker never saw clean confidences.

    Source:
        Yang, Zhang, Chang & Liang, CCS 2019; Wen, Yiu & Hui, section V-A3.
    """
    if knowledge.clean is None:
        raise InvalidOptionError(
            "the static attacker is trained on clean confidences of the auxiliary images, "
            "and there are none. Pass them, or leave this attacker out."
        )
    decoder = train(knowledge.clean, knowledge.images, knowledge.held_out)
    return {"decoder": Reconstructor(lambda released: decoder(released[0]))}
