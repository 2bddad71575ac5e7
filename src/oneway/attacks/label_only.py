"""The floor: an attacker who is given the predicted label and nothing else."""

from collections.abc import Mapping

import torch
from torch import Tensor

from oneway.contracts import Candidate, Observations, TrainDecoder


def label_only(observations: Observations, train: TrainDecoder) -> Mapping[str, Candidate]:
    """Answer with each label's mean image, or with a decoder trained on one-hot labels.

    Where the auxiliary images come from elsewhere than the queries, the decoder can beat the
    means; the lower error of the two is the floor.
    """
    labels = observations.released.argmax(-1)
    # The decoder answers a label, whoever gave it: it is the same for every release.
    taught = labels if observations.clean is None else observations.clean.argmax(-1)
    classes = observations.released.shape[-1]
    # Not the held-out rows: the choice between the two candidates is made on them.
    own = ~observations.held_out
    images = observations.images[own].flatten(1)
    one_hot = torch.nn.functional.one_hot(labels[own], classes).to(images.dtype)
    counts = one_hot.sum(0).unsqueeze(-1)
    # A label that no auxiliary image got is answered with the mean of all.
    means = torch.where(counts > 0, one_hot.T @ images / counts.clamp_min(1), images.mean(0))
    means = means.unflatten(-1, observations.images.shape[1:])
    decoder = train(_label_vectors(taught, classes), observations.images, observations.held_out)
    return {
        "mean image": Candidate(lambda released: means[released[0].argmax(-1)]),
        "decoder": Candidate(
            lambda released: decoder(_label_vectors(released[0].argmax(-1), classes))
        ),
    }


def _label_vectors(labels: Tensor, classes: int) -> Tensor:
    """Return confidences that tell the label alone; none is 0, which has no logarithm."""
    one_hot = torch.nn.functional.one_hot(labels, classes).float()
    return 0.01 / classes + 0.99 * one_hot
