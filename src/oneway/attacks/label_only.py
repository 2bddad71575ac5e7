"""The baseline: an attacker who is given the predicted label and nothing else."""

from collections.abc import Mapping

import torch
from torch import Tensor

from oneway.contracts import AttackerKnowledge, Reconstructor, TrainDecoder


def label_only(knowledge: AttackerKnowledge, train: TrainDecoder) -> Mapping[str, Reconstructor]:
    """Answer with each label's mean image, or with a decoder trained on one-hot labels.

    Where the auxiliary images come from elsewhere than the queries, the decoder can beat the
    means; the lower error of the two is the baseline.
    """
    labels = knowledge.released.argmax(-1)
    # The decoder answers a label, whoever gave it: it is the same for every release.
    taught = labels if knowledge.clean is None else knowledge.clean.argmax(-1)
    classes = knowledge.released.shape[-1]
    # Not the held-out rows: the choice between the two reconstructors is made on them.
    own = ~knowledge.held_out
    images = knowledge.images[own].flatten(1)
    one_hot = torch.nn.functional.one_hot(labels[own], classes).to(images.dtype)
    counts = one_hot.sum(0).unsqueeze(-1)
    # A label that no auxiliary image got is answered with the mean of all.
    means = torch.where(counts > 0, one_hot.T @ images / counts.clamp_min(1), images.mean(0))
    means = means.unflatten(-1, knowledge.images.shape[1:])
    decoder = train(_label_vectors(taught, classes), knowledge.images, knowledge.held_out)
    return {
        "mean image": Reconstructor(lambda released: means[released[0].argmax(-1)]),
        "decoder": Reconstructor(
            lambda released: decoder(_label_vectors(released[0].argmax(-1), classes))
        ),
    }


def _label_vectors(labels: Tensor, classes: int) -> Tensor:
    """Return confidences that tell the label alone; none is 0, which has no logarithm."""
    one_hot = torch.nn.functional.one_hot(labels, classes).float()
    return 0.01 / classes + 0.99 * one_hot
