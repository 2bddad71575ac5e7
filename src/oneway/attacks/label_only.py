"""The baseline: an attacker who reads the predicted label and nothing else."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from oneway.attacks.base import InversionAttack
from oneway.contracts import AttackerKnowledge, Reconstructor, TrainDecoder


class LabelOnly(InversionAttack):
    """Answer with each label's mean image, or with a decoder trained on one-hot labels.

    Where the auxiliary images come from another source than the queries, the decoder can beat the
    mean images. The lower error of the two is the baseline.
    """

    name: ClassVar = "label-only"
    knows: ClassVar = "the predicted label: the baseline"
    left_out: ClassVar = None

    def run(self, knowledge: AttackerKnowledge, train: TrainDecoder) -> Mapping[str, Reconstructor]:
        """Take means and train on labels; see :meth:`InversionAttack.run`."""
        labels = knowledge.released.argmax(-1)
        # Trained on the clean labels, so that the decoder is the same for all releases.
        clean_labels = labels if knowledge.clean is None else knowledge.clean.argmax(-1)
        classes = knowledge.released.shape[-1]
        # Without the held-out rows, which choose between the two reconstructors.
        kept = ~knowledge.held_out
        images = knowledge.images[kept].flatten(1)
        one_hot = torch.nn.functional.one_hot(labels[kept], classes).to(images.dtype)
        counts = one_hot.sum(0).unsqueeze(-1)
        # A label without auxiliary images is answered with the mean of all images.
        means = torch.where(counts > 0, one_hot.T @ images / counts.clamp_min(1), images.mean(0))
        means = means.unflatten(-1, knowledge.images.shape[1:])
        decoder = train(_label_vectors(clean_labels, classes), knowledge.images, knowledge.held_out)
        return {
            "mean image": Reconstructor(lambda released: means[released[0].argmax(-1)]),
            "decoder": Reconstructor(
                lambda released: decoder(_label_vectors(released[0].argmax(-1), classes))
            ),
        }


def _label_vectors(labels: Tensor, classes: int) -> Tensor:
    """Return ``(N, K)`` confidences that depend on the label alone, all above 0 for logarithms."""
    one_hot = torch.nn.functional.one_hot(labels, classes).float()
    return 0.01 / classes + 0.99 * one_hot
