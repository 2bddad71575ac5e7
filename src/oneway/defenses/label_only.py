"""Release the label and nothing else: the floor that every other defense is measured against."""

import math

import torch
from torch import Tensor

from oneway.checks import check_above, check_logits
from oneway.defenses.label_modifier import lift_label
from oneway.errors import InvalidOptionError


class LabelOnly:
    """Release one fixed vector per label. An audit must find the gap closed: G of 1."""

    requires_input = False
    keeps_label = True
    deterministic = True

    def __init__(self, *, confidence: float = 0.99) -> None:
        """Prepare the defense.

        Args:
            confidence: What the label gets, between 0 and 1; the rest is shared evenly. With K
                classes the label leads only if it exceeds ``1 / K``. Not 1, since a zero
                probability has no logarithm and would break an attacker rather than inform it.

        Raises:
            InvalidOptionError: ``confidence`` is not between 0 and 1.
        """
        check_above("confidence", confidence, 0)
        if not confidence < 1:
            raise InvalidOptionError(f"confidence must be below 1, but got {confidence}.")
        self.confidence = confidence

    def __call__(self, logits: Tensor, images: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Return ``(..., K)`` logits that tell the label alone; ``images`` are ignored.

        The arg max of ``logits`` (the lowest index, if they tie) is the only maximum.

        Raises:
            InvalidTensorError: ``logits`` are no finite floating scores.
            InvalidOptionError: ``confidence`` is at most ``1 / K``.
        """
        check_logits(logits)
        classes = logits.shape[-1]
        if self.confidence * classes <= 1:
            raise InvalidOptionError(
                f"confidence must exceed 1 / K = {1 / classes:.3g} for {classes} classes, "
                f"but is {self.confidence}."
            )
        lead = math.log(self.confidence * (classes - 1) / (1 - self.confidence))
        labels = logits.argmax(-1)
        told = torch.zeros_like(logits).scatter(-1, labels.unsqueeze(-1), lead)
        # Next to 1 / K the lead may round to nothing.
        return lift_label(told, labels, 0)
