"""The baseline: an attacker who reads the predicted label and nothing else."""

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from oneway.attacks.base import InversionAttack
from oneway.attacks.label_means import label_means
from oneway.contracts import AttackerKnowledge, Reconstructor, TrainDecoder
from oneway.inversion import non_negative_weights


class LabelOnly(InversionAttack):
    """Answer with each label's mean image, a decoder trained on one-hot labels, or a mixture.

    Where the auxiliary images come from another source than the queries, the decoder can beat the
    mean images. The lowest error of the three is the baseline.
    """

    name: ClassVar = "label-only"
    knows: ClassVar = "the predicted label: the baseline"
    falls_back: ClassVar = True
    left_out: ClassVar = None

    def run(self, knowledge: AttackerKnowledge, train: TrainDecoder) -> Mapping[str, Reconstructor]:
        """Take means and train on labels; see :meth:`InversionAttack.run`."""
        labels = knowledge.released.argmax(-1)
        # Trained on the clean labels, so that the decoder is the same for all releases.
        clean_labels = labels if knowledge.clean is None else knowledge.clean.argmax(-1)
        classes = knowledge.released.shape[-1]
        # Without the held-out rows, which choose among the reconstructors.
        kept = ~knowledge.held_out
        # A label without auxiliary images is answered with the mean of all images.
        means = label_means(knowledge.images[kept], labels[kept], classes)
        decoder = train(_label_vectors(clean_labels, classes), knowledge.images, knowledge.held_out)
        each = torch.arange(classes, device=labels.device)
        with torch.no_grad():
            decoded = decoder(_label_vectors(each, classes))
        held = labels[knowledge.held_out]
        weights = non_negative_weights(
            torch.stack([means[held], decoded[held]]), knowledge.images[knowledge.held_out]
        ).to(means)
        mixed = (weights[0] * means + weights[1] * decoded).clamp(0, 1)
        return {
            name: Reconstructor(partial(_answer, by_label))
            for name, by_label in (("mean image", means), ("decoder", decoded), ("mixture", mixed))
        }


def _answer(by_label: Tensor, released: Tensor) -> Tensor:
    """Return the ``(M, ...)`` reconstruction of the label of ``(1, M, K)`` confidences."""
    return by_label[released[0].argmax(-1)]


def _label_vectors(labels: Tensor, classes: int) -> Tensor:
    """Return ``(N, K)`` confidences that depend on the label alone, all above 0 for logarithms."""
    one_hot = torch.nn.functional.one_hot(labels, classes).float()
    return 0.01 / classes + 0.99 * one_hot
