"""The paper's adaptive attacker, which knows the algorithm and trains on simulated defenses."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from oneway.attacks.base import InversionAttack
from oneway.contracts import AttackerKnowledge, Defense, Reconstructor, TrainDecoder
from oneway.releases import guarded_release, logits_from_confidences


class AdversarialTraining(InversionAttack):
    """Train a decoder on clean scores that simulated defenses have changed.

    Each image goes through one simulated defense. The simulated defenses differ in step size, so
    that the decoder learns to read all of them.

    Source:
        Wen, Yiu & Hui, section V-D, after Madry et al., ICLR 2018. The attacker trains another
        surrogate than the defender's, whose weights are unknown to the attacker.
    """

    name: ClassVar = "adversarial-training"
    knows: ClassVar = "the algorithm and its parameters, on a surrogate of its own"
    requires: ClassVar = frozenset({"clean", "simulated_defenses"})
    attacks_clean_scores: ClassVar = False  # without a defense there is nothing to simulate

    def run(self, knowledge: AttackerKnowledge, train: TrainDecoder) -> Mapping[str, Reconstructor]:
        """Train on simulated releases; see :meth:`InversionAttack.run`."""
        assert knowledge.clean is not None  # noqa: S101  required
        defenses = knowledge.simulated_defenses
        noisy = put_through(defenses, knowledge.clean, knowledge.images, every=len(defenses))
        decoder = train(noisy, knowledge.images, knowledge.held_out)
        return {"decoder": Reconstructor(lambda released: decoder(released[0]))}


def put_through(
    defenses: Sequence[Defense], confidences: Tensor, images: Tensor, *, every: int
) -> Tensor:
    """Put each row of scores through one of several defenses, in turn.

    Args:
        defenses: The n-th defense takes rows n, n + ``every``, n + 2 * ``every`` and so on.
        confidences: ``(N, K)`` clean confidences. Not modified.
        images: ``(N, C, H, W)`` queries that the confidences answer.
        every: Number of rows from one row of a defense to its next, at least the number of
            defenses. Rows without a defense stay clean.

    Returns:
        ``(N, K)`` confidences.
    """
    noisy = confidences.clone()
    for position, defense in enumerate(defenses[: len(confidences)]):
        rows = slice(position, None, every)
        logits = logits_from_confidences(confidences[rows])
        noisy[rows] = guarded_release(defense, logits, images[rows]).confidences
    return noisy
