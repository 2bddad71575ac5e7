"""Release one vector per label: the mean of what is said of that label."""

import torch
from torch import Tensor

from oneway.defenses.class_means import FittedToClassMeans, check_classes
from oneway.defenses.label_modifier import lift_label
from oneway.defenses.scores import logits_of


class Prototypes(FittedToClassMeans):
    """Release the mean clean confidences of the predicted label, whatever the query.

    Nothing but the label is told, as by :class:`oneway.defenses.label_only.LabelOnly`, but at
    the least mean squared distortion that this allows. A label without calibration samples gets
    the mean top confidence, and the rest evenly.
    """

    requires_input = False
    keeps_label = True
    deterministic = True

    @torch.no_grad()
    def __call__(self, logits: Tensor, images: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Return ``(..., K)`` logits of each label's vector; ``images`` are ignored.

        The arg max of ``logits`` (the lowest index, if they tie) is the only maximum.

        Raises:
            InvalidTensorError: ``logits`` are no finite floating scores over the fitted classes.
        """
        check_classes(self.network, logits)
        labels = logits.argmax(-1)
        return lift_label(logits_of(self.network(labels), logits.dtype), labels, 0)
