"""Release the label and nothing else: the baseline that every other defense is measured against."""

import math

import torch
from torch import Tensor

from oneway.defenses.base import ScoreDefense
from oneway.errors import InvalidOptionError
from oneway.options import option


class LabelOnly(ScoreDefense):
    """Release one fixed vector per label. An audit must find the gap closed: G of 1."""

    # A confidence of 1 would give probabilities of 0, whose logarithm breaks an attacker.
    confidence: float = option(
        "Probability of the label; the others share the rest evenly. With K classes it must "
        "exceed 1 / K.",
        default=0.99,
        above=0,
        below=1,
    )

    def transform(self, logits: Tensor) -> Tensor:
        """Return ``(..., K)`` logits: 0, and the same lead at each row's label.

        Raises:
            InvalidOptionError: ``confidence`` is at most ``1 / K``.
        """
        classes = logits.shape[-1]
        if self.confidence * classes <= 1:
            raise InvalidOptionError(
                f"confidence must exceed 1 / K = {1 / classes:.3g} for {classes} classes, "
                f"but is {self.confidence}."
            )
        lead = math.log(self.confidence * (classes - 1) / (1 - self.confidence))
        # Next to 1 / K the lead may round to nothing; the label is lifted afterwards.
        return torch.zeros_like(logits).scatter(-1, logits.argmax(-1, keepdim=True), lead)
