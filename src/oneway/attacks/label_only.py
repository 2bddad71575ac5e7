"""The baseline: an attacker who reads the predicted label and nothing else."""

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from oneway.attacks.base import InversionAttack
from oneway.attacks.label_means import label_means, means_without_row
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
    numerics: ClassVar = 2

    def run(self, knowledge: AttackerKnowledge, train: TrainDecoder) -> Mapping[str, Reconstructor]:
        """Take means and train on labels; see :meth:`InversionAttack.run`."""
        labels = knowledge.released.argmax(-1)
        # Trained on the clean labels, so that the decoder is the same for all releases.
        clean_labels = labels if knowledge.clean is None else knowledge.clean.argmax(-1)
        classes = knowledge.released.shape[-1]
        # A label without auxiliary images is answered with the mean of all images.
        means = label_means(knowledge.images, labels, classes)
        own = means_without_row(knowledge.images, labels, knowledge.judging)
        decoder = train(_label_vectors(clean_labels, classes), knowledge.images, knowledge.held_out)
        each = torch.arange(classes, device=labels.device)
        with torch.no_grad():
            decoded = decoder(_label_vectors(each, classes))
        held = labels[knowledge.held_out]
        tried = torch.stack([own[: len(held)], decoded[held]])
        weights = non_negative_weights(tried, knowledge.images[knowledge.held_out]).to(means)
        mixed = (weights[0] * means + weights[1] * decoded).clamp(0, 1)
        tried_mixed = torch.einsum("c,cm...->m...", weights, tried).clamp(0, 1)
        answers = {
            "mean image": (means, own),
            "decoder": (decoded, None),
            "mixture": (mixed, tried_mixed),
        }
        return {
            name: Reconstructor(partial(_answer, by_label), out_of_fold=made)
            for name, (by_label, made) in answers.items()
        }


def _answer(by_label: Tensor, released: Tensor) -> Tensor:
    """Return the ``(M, ...)`` reconstruction of the label of ``(1, M, K)`` confidences."""
    return by_label[released[0].argmax(-1)]


def _label_vectors(labels: Tensor, classes: int) -> Tensor:
    """Return ``(N, K)`` confidences that depend on the label alone, all above 0 for logarithms."""
    one_hot = torch.nn.functional.one_hot(labels, classes).float()
    return 0.01 / classes + 0.99 * one_hot
