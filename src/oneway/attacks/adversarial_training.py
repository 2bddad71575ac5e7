"""The paper's adaptive attacker: it knows the algorithm, and trains on noise of its own making."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from oneway.contracts import AttackerKnowledge, Defense, Reconstructor, TrainDecoder
from oneway.errors import InvalidOptionError
from oneway.releases import guarded_release, logits_from_confidences


def adversarial_training(
    knowledge: AttackerKnowledge, train: TrainDecoder
) -> Mapping[str, Reconstructor]:
    """Train a decoder on clean scores that the attacker's own copies of the defense changed.

    Each image goes through one of the copies, which differ in step size, so that the decoder
    learns to read all of them. There is no reconstructor without copies.

    Raises:
        InvalidOptionError: The attacker never saw clean confidences to put noise on.

    Source:
        Wen, Yiu & Hui, section V-D, after Madry et al., ICLR 2018. The attacker trains a
        surrogate of its own: it does not know the defender's weights.
    """
    copies = knowledge.simulated_defenses
    if not copies:
        return {}
    if knowledge.clean is None:
        raise InvalidOptionError(
            "the adversarial-training attacker puts noise of its own on clean confidences of the "
            "auxiliary images, and there are none. Pass them, or leave this attacker out."
        )
    noisy = put_through(copies, knowledge.clean, knowledge.images, every=len(copies))
    decoder = train(noisy, knowledge.images, knowledge.held_out)
    return {"decoder": Reconstructor(lambda released: decoder(released[0]))}


def put_through(
    copies: Sequence[Defense], confidences: Tensor, images: Tensor, *, every: int
) -> Tensor:
    """Put each row of scores through one of several defenses, in turn.

    Args:
        copies: The defenses; the n-th takes rows n, n + ``every``, n + 2 * ``every`` and so on.
        confidences: ``(N, K)`` clean. Not modified.
        images: ``(N, C, H, W)`` the queries that gave them.
        every: At least as many as there are copies; rows that fall to none stay clean.

    Returns:
        ``(N, K)`` confidences.
    """
    noisy = confidences.clone()
    for position, copy in enumerate(copies[: len(confidences)]):
        rows = slice(position, None, every)
        logits = logits_from_confidences(confidences[rows])
        noisy[rows] = guarded_release(copy, logits, images[rows]).confidences
    return noisy
